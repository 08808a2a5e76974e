"""A client that forgets its broker for ever (librdkafka's issue 5301) is noticed, and replaced or ended by name."""

from __future__ import annotations

import logging
from collections.abc import Iterator

import pytest
from cluster import Tail, fresh_topics, until
from proxy import Proxy

from streams.broker import Broker
from streams.errors import FatalError
from streams.kafka import KafkaLog
from streams.log import OutBatch
from streams.topics import FRAUD_SCORES

pytestmark = pytest.mark.kafka

#: a client that asks often and does not go back to its first addresses loses a broker that says it is not there
#: surely; by default it takes two answers in one moment
FORGETS = {
    "metadata.recovery.strategy": "none",
    "topic.metadata.refresh.interval.ms": 300,
    "consumer.session.timeout.ms": 6_000,
}


@pytest.fixture
def proxy(kafka: Broker) -> Iterator[Proxy]:
    proxy = Proxy(kafka.port)
    yield proxy
    proxy.close()


def forget(proxy: Proxy) -> None:
    """Every client behind the proxy hears that there is no broker, and loses its connections."""
    proxy.no_brokers = True
    until(lambda: proxy.said_none > 0, "a client that asks")
    proxy.cut()
    proxy.no_brokers = False


def test_a_consumer_that_forgot_its_broker_begins_anew(
    kafka: Broker, proxy: Proxy, caplog: pytest.LogCaptureFixture
) -> None:
    topic = FRAUD_SCORES
    producer = fresh_topics(kafka.bootstrap, 1).producer()
    with Tail(KafkaLog(f"127.0.0.1:{proxy.port}", FORGETS), topic) as tail, caplog.at_level(logging.WARNING):
        producer.send(OutBatch(topic, [b"1"], None, None, [[("source", b"1")]]))
        tail.read(1)
        forget(proxy)
        producer.send(OutBatch(topic, [b"2"], None, None, [[("source", b"2")]]))
        tail.read(2)
    producer.close()
    assert [out.value for out in tail.by_source.values()] == [b"1", b"2"]
    assert caplog.text.count("begins anew") == 1


def test_a_producer_that_forgot_its_broker_ends_by_name(kafka: Broker, proxy: Proxy) -> None:
    fresh_topics(kafka.bootstrap, 1)
    producer = KafkaLog(f"127.0.0.1:{proxy.port}", FORGETS).producer()
    producer.send(OutBatch(FRAUD_SCORES, [b"1"]))
    assert producer.flush(30) == 0
    forget(proxy)
    producer.send(OutBatch(FRAUD_SCORES, [b"2"]))
    with pytest.raises(FatalError, match=r"producer-lost-broker.* with 1 records"):
        until(lambda: producer.flush(1.0) == 0, "the end of this producer")
