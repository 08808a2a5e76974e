"""Workers of the recommend pipeline on the log in this process: whole, together, and one after the other."""

from __future__ import annotations

import uuid
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import lightgbm as lgb
import numpy as np
import orjson
import pytest
from fraud_logs import Record
from live_recommend import Running, lists, send, shop
from recommend_logs import walk
from swaps import model_events
from workers import end_offsets, read_all, until

from features.shopping import FEATURES, SCHEMA_HASH
from models.package import Draft
from models.registry import Registry
from streams.cli.main import main
from streams.errors import ConfigError
from streams.log import OutBatch
from streams.pipelines.recommend_withdrawn import MARK
from streams.recommend_worker import make_worker
from streams.topics import DEAD_LETTERS, ITEMS, RECOMMENDATIONS

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


def add_ranker(folder: Path, version: int) -> None:
    """The next version of package ``shop``."""
    x = np.random.default_rng(version).random((300, len(FEATURES)))
    data = lgb.Dataset(x, x[:, 0], feature_name=list(FEATURES))
    booster = lgb.train({"verbosity": -1, "num_leaves": 4, "num_threads": 1}, data, 1 + version)
    Registry(folder).add(
        Draft("shop", booster.model_to_string(), FEATURES, SCHEMA_HASH, "2026-01-01T00:00:00+00:00"), None
    )


def test_promotions_take_effect_at_the_offsets_that_are_in_the_log(tmp_path: Path) -> None:
    models = tmp_path / "models"
    for version in (1, 2):
        add_ranker(models, version)
    settings, log = shop(models=str(models), models_poll_ms=20)
    worker, records = Running(settings).wait_ready(), walk(240)
    for part, champion in enumerate((None, "shop@1", "shop@2")):
        if champion is not None:
            Registry(models).set_alias("champion", champion)
            until(
                lambda of=champion: sum(e["event"] == "swap" and e["model"] == of for e in model_events(log)) == 2,  # type: ignore[misc]
                f"{champion} on both partitions",
            )
        send(log, records[80 * part : 80 * part + 80])
        lists(log, 80 * part + 80)
    Registry(models).set_alias("shadow", "shop@1")
    until(lambda: any(e["event"] == "refused" for e in model_events(log)), "a shadow to be refused")
    assert worker.stop()["recommended"] == 240
    swaps = [e for e in model_events(log) if e["event"] == "swap"]
    whose: Counter[str | None] = Counter()
    for batch in read_all(log, RECOMMENDATIONS, lambda got: sum(map(len, got)) == 240):
        for i, value in enumerate(batch.values):
            partition, offset = map(int, dict(batch.headers(i))["source"].rsplit(b"/", 2)[1:])
            before = [e for e in swaps if e["partition"] == partition and e["offset"] <= offset]
            listed = orjson.loads(value or b"")
            assert listed["model"] == (before[-1]["model"] if before else None)
            whose[listed["model"]] += 1
    assert whose == {None: 80, "shop@1": 80, "shop@2": 80}


def test_withdrawn_items_stay_so_for_every_worker(capsys: pytest.CaptureFixture[str]) -> None:
    settings, log = shop()
    records, n = walk(300), 0

    def served(count: int) -> list[dict[str, Any]]:
        nonlocal n
        send(log, records[n : n + count])
        n += count
        return lists(log, n)[n - count :]

    def marked() -> set[bytes]:
        total = sum(end_offsets(log, ITEMS, 2).values())
        found = read_all(log, ITEMS, lambda got: sum(map(len, got)) >= total)
        return {key[1:] for batch in found for key in batch.keys if key and key.startswith(MARK)}

    worker = Running(settings).wait_ready()
    served(100)
    until(lambda: worker.pipeline.serving.known == 12, "the items to be known")
    assert main(["items", "withdraw", "3", "--bootstrap", settings.bootstrap, "--json"]) == 0
    assert orjson.loads(capsys.readouterr().out) == {"withdrawn": 1}
    producer = log.producer()
    producer.send(OutBatch(ITEMS, [None], [b"4"]))
    assert producer.flush(20) == 0
    until(lambda: marked() == {b"3", b"4"}, "a mark for what was withdrawn by a null")
    assert worker.pipeline.serving.known == 10
    second = served(100)
    worker.stop()
    other = Running(settings).wait_ready()
    third = served(100)
    other.stop()
    assert not any(item["item_id"] in (3, 4) for listed in second + third for item in listed["items"])
    assert {listed["rung"] for listed in third} == {"candidates"}
    with pytest.raises(SystemExit):
        main(["items", "withdraw"])
    assert main(["items", "restore", "", "--bootstrap", settings.bootstrap]) == 2


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
