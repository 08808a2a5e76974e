"""A transaction that is never to end holds the offsets that it committed: whoever needs them says so, and why."""

from __future__ import annotations

import uuid

import pytest
from confluent_kafka import Consumer, Producer, TopicPartition

from streams import kafka_consumer
from streams.broker import Broker
from streams.errors import FatalError
from streams.log import TP, TopicInfo, connect

pytestmark = pytest.mark.kafka


def test_offsets_that_a_transaction_holds_are_refused_by_name(kafka: Broker, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kafka_consumer, "_COMMITTED_S", 1.0)
    monkeypatch.setattr(kafka_consumer, "_UNSTABLE_S", 2.0)
    topic, group = (f"hanging-{uuid.uuid4().hex[:6]}" for _ in range(2))
    settings = {"bootstrap.servers": kafka.bootstrap}
    log = connect(f"headrace://{kafka.bootstrap}")
    log.admin().create_topics([TopicInfo(topic, 2, "")])
    member = Consumer({**settings, "group.id": group})
    producer = Producer({**settings, "transactional.id": group})
    producer.init_transactions(30)
    producer.begin_transaction()
    producer.send_offsets_to_transaction([TopicPartition(topic, 1, 7)], member.consumer_group_metadata(), 30)
    consumer = log.consumer(group)
    try:
        with pytest.raises(FatalError) as refused:
            consumer.committed([TP(topic, 0), TP(topic, 1)])
        assert refused.value.reason == "offsets-unstable"
        assert group in str(refused.value) and f"{topic}/1" in str(refused.value)
        assert "find-hanging" in str(refused.value)
        producer.commit_transaction(30)
        assert consumer.committed([TP(topic, 0), TP(topic, 1)]) == {TP(topic, 0): None, TP(topic, 1): 7}
    finally:
        member.close()
        consumer.close()
