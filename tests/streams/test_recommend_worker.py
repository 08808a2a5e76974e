"""Workers of the recommend pipeline on the log in this process: whole, together, and one after the other."""

from __future__ import annotations

import uuid
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import orjson
import pytest
from fraud_logs import Record
from live_recommend import Running, lists, send, shop
from recommend_logs import walk
from workers import read_all, until

from streams.errors import ConfigError
from streams.recommend_worker import make_worker
from streams.topics import DEAD_LETTERS, ITEMS

pytestmark = pytest.mark.timeout(120)


def check_lengths(served: Sequence[dict[str, Any]], records: Sequence[Record]) -> None:
    """Each list was made with all that its user had done, nothing twice: the length of the session says so."""
    seen: Counter[str] = Counter()
    expected = {}
    for record in records:
        event = orjson.loads(record.value or b"")
        seen[event["user_id"]] += 1
        expected[event["event_id"]] = seen[event["user_id"]]
    for listed in served:
        if listed["features"] is not None:
            assert listed["features"]["session_length"][0] == expected[listed["event_id"]]


def test_a_list_for_each_event_and_books_that_agree() -> None:
    settings, log = shop()
    records = walk(300)
    worker = Running(settings).wait_ready()
    send(log, [*records[:150], Record(b"?", b"u1"), records[0]])
    lists(log, 150)
    until(lambda: worker.pipeline.serving.known == 12, "the items to be known")
    send(log, records[150:])
    served = lists(log, 300)
    until(lambda: worker.pipeline.figures()["received"] == 302, "all to be received")
    figures = worker.stop()
    assert figures["recommended"] == 300 and figures["dead_letters"] == figures["duplicates"] == 1
    assert sum(n for name, n in figures.items() if name.startswith("rung_")) == 300
    assert sorted(listed["event_id"] for listed in served) == list(range(300))
    assert all(listed["items"] for listed in served) and served[-1]["rung"] == "candidates"
    check_lengths(served, records)
    published = read_all(log, ITEMS, lambda got: len({key for b in got for key in b.keys}) == 12)
    assert {key for b in published for key in b.keys} == {b"%d" % i for i in range(12)}
    assert len(read_all(log, DEAD_LETTERS, lambda got: sum(map(len, got)) == 1)) == 1


def test_two_workers_share_the_work_and_know_all_items() -> None:
    settings, log = shop()
    first, second = Running(settings).wait_ready(), Running(settings).wait_ready()
    records = walk(200)
    send(log, records)
    served = lists(log, 200)
    for worker in (first, second):
        until(lambda worker=worker: worker.pipeline.serving.known == 12, "both to know all items")  # type: ignore[misc]
    figures = [first.stop(), second.stop()]
    assert sum(f["recommended"] for f in figures) == 200 and all(f["received"] for f in figures)
    check_lengths(served, records)


@pytest.mark.parametrize("delivery", ["at_least_once", "exactly_once"])
def test_a_worker_that_comes_back_goes_on(delivery: str, tmp_path: Path) -> None:
    names = {} if delivery == "at_least_once" else {"transactional_id": f"t-{uuid.uuid4().hex}"}
    settings, log = shop(delivery=delivery, checkpoints=str(tmp_path / "states"), **names)
    records = walk(300)
    worker = Running(settings).wait_ready()
    send(log, records[:200])
    lists(log, 200)
    worker.stop()
    send(log, records[200:])
    again = Running(settings).wait_ready()
    served = lists(log, 300)
    figures = again.stop()
    assert figures["recommended"] == 100 and figures["items_known"] == 12
    assert sorted(listed["event_id"] for listed in served) == list(range(300))
    check_lengths(served, records)
    assert {listed["rung"] for listed in served[200:]} == {"candidates"}, "the items were read before the first list"


def test_settings_that_cannot_be(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"setting explore: 1.5 is above 1; give the share of lists"):
        make_worker(shop(explore=1.5)[0])
    with pytest.raises(ConfigError, match=r"--models .*not there: no such directory; train a model into it"):
        make_worker(shop(models=str(tmp_path / "not there"))[0])


def test_without_a_checkpoint_the_state_comes_from_the_log() -> None:
    settings, log = shop(checkpoints="none")
    records = walk(120)
    worker = Running(settings).wait_ready()
    send(log, records[:60])
    lists(log, 60)
    worker.stop()
    again = Running(settings).wait_ready()
    send(log, records[60:])
    served = lists(log, 120)
    figures = again.stop()
    assert figures["replayed"] >= 60 and figures["recommended"] == 60
    check_lengths(served, records)
