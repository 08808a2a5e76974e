"""Where logs end, as a broker says that has just started: an answer without an offset is none."""

from __future__ import annotations

from concurrent.futures import Future
from typing import Any

import pytest
from confluent_kafka.admin import ListOffsetsResultInfo

from streams import kafka_offsets
from streams.kafka_connection import BrokerWatch
from streams.kafka_offsets import Offsets
from streams.log import TP, LogUnavailable

PLACE = TP("topic", 0)


@pytest.fixture
def offsets(monkeypatch: pytest.MonkeyPatch) -> Offsets:
    """Of a broker that answers -1001, -1001, 3 and 7."""
    answers = iter([-1001, -1001, 3, 7])

    def ask(client: Any, partitions: list[TP], *_: Any) -> dict[TP, Future[ListOffsetsResultInfo]]:
        futures: dict[TP, Future[ListOffsetsResultInfo]] = {tp: Future() for tp in partitions}
        for future in futures.values():
            future.set_result(ListOffsetsResultInfo(next(answers), 0, 0))
        return futures

    monkeypatch.setattr(kafka_offsets, "_ask", ask)
    config = {"bootstrap.servers": "127.0.0.1:1"}
    return Offsets(BrokerWatch("127.0.0.1:1", config), config, "read_committed")


def test_a_range_waits_for_offsets(offsets: Offsets, caplog: pytest.LogCaptureFixture) -> None:
    assert offsets.range(PLACE) == (3, 7)
    assert "could not ask the end of topic/0 yet: offset -1001 in the answer" in caplog.text


def test_ends_without_an_offset_are_not_known(offsets: Offsets) -> None:
    with pytest.raises(LogUnavailable, match="offset -1001"):
        offsets.ends([PLACE])()
    with pytest.raises(LogUnavailable, match="offset -1001"):
        offsets.ends([PLACE])()
    assert offsets.ends([PLACE])() == {PLACE: 3}
