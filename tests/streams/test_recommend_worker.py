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
from recommend_logs import MINUTE, NOW, interaction, walk
from swaps import model_events
from workers import end_offsets, read_all, until

from features.fraud import DEFAULT
from features.shopping import FEATURES, SCHEMA_HASH, SOURCES
from models.explain_policy import NO_REASONS
from models.package import Draft
from models.registry import Registry
from streams.cli.main import main
from streams.config import Settings, load_settings
from streams.errors import ConfigError
from streams.log import TP, Log, OutBatch
from streams.memory import MemoryLog
from streams.model_shelf import ModelShelf
from streams.pipelines.recommend_withdrawn import NOTE
from streams.recommend_worker import make_pipeline, make_worker
from streams.topics import BY_ITEM, DEAD_LETTERS, INTERACTIONS, ITEMS, RECOMMENDATIONS, SOURCE_WEIGHTS

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


def served_by(log: Log, settings: Settings, workers: int, *parts: Sequence[Record]) -> None:
    """So many workers take these events, one part after the other, with all that follows of each."""
    running = [Running(settings) for _ in range(workers)]
    for worker in running:
        worker.wait_ready()
    taken = [TP(topic, p) for topic in (INTERACTIONS, BY_ITEM) for p in range(2)]

    def all_taken() -> bool:
        consumer = log.consumer(settings.group)
        try:
            return consumer.committed(taken) == {tp: consumer.offset_range(tp)[1] for tp in taken}
        finally:
            consumer.close()

    for records in parts:
        send(log, records)
        until(all_taken, "the events and their rows by item to be taken")
    for worker in running:
        worker.stop()


def test_candidates_and_weights_are_the_same_with_one_worker_and_with_two() -> None:
    """Up to what is published: events long after the others, on items of both partitions, publish all."""
    records = walk(400, users=20, items=150, end=NOW - 30 * MINUTE)
    late = [interaction(f"t{i}", NOW - (20 - 10 * (i // 8)) * MINUTE, "ticker", 1_000 + i % 8) for i in range(16)]
    asked = [interaction(f"ask{i}", NOW + i, f"u{i}", 7 * i, category=i % 3) for i in range(20)]
    said = {"model": None, "weights": {"own": 0.5, "a source of the future": 1.0}}
    found = []
    for workers in (1, 2):
        settings, log = shop(list_length=200, list_candidates=200)
        producer = log.producer()
        producer.send(OutBatch(SOURCE_WEIGHTS, [orjson.dumps(said)], [b"null"], 1))
        assert producer.flush(20) == 0
        producer.close()
        served_by(log, settings, workers, records, late)
        served_by(log, settings, workers, asked)
        served = lists(log, 436)
        assert all(listed["weights"] == {**dict.fromkeys(SOURCES, 0.0), "own": 0.5} for listed in served)
        named = {
            listed["event_id"]: {item["item_id"] for item in listed["items"] if item["source"] != "popular"}
            for listed in served
        }
        found.append({event: items for event, items in named.items() if str(event).startswith("ask")})
    assert len(found[0]) == 20 and found[0] == found[1]
    assert max(map(len, found[0].values())) < 100 and sum(map(len, found[0].values())) > 400, "the sets say nothing"


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


def test_packages_of_the_other_pipeline_in_one_registry_are_passed_over(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    add_ranker(tmp_path, 1)
    registry = Registry(tmp_path)
    x = np.random.default_rng(1).random((300, len(DEFAULT.names)))
    data = lgb.Dataset(x, x[:, 0], feature_name=list(DEFAULT.names))
    booster = lgb.train({"verbosity": -1, "num_leaves": 4, "num_threads": 1}, data, 2)
    text, made = booster.model_to_string(), "2026-01-01T00:00:00+00:00"
    registry.add(Draft("card", text, DEFAULT.names, DEFAULT.schema_hash, made), "champion")
    registry.set_alias("shadow", "card@1")
    settings = load_settings(None, {}, {"models": str(tmp_path)})
    with caplog.at_level("INFO"):
        assert make_pipeline(settings, MemoryLog("other")).slot.model is None
    assert {record.levelname for record in caplog.records} == {"INFO", "WARNING"}
    assert "champion card@1 is of another pipeline: it is passed over here" in caplog.text
    registry.set_alias("shadow", "shop@1")
    shelf = ModelShelf(registry, DEFAULT.names, DEFAULT.schema_hash, NO_REASONS, others=(SCHEMA_HASH,))
    refs, _ = shelf.first()
    registry.set_alias("champion", "shop@1")
    news = shelf.news(refs)
    assert refs.champion is not None and refs.shadow is None
    assert news.refs == refs and news.lineup is None and not news.refused


def test_withdrawn_items_stay_so_for_every_worker(capsys: pytest.CaptureFixture[str]) -> None:
    settings, log = shop()
    records, n = walk(300), 0

    def served(count: int) -> list[dict[str, Any]]:
        nonlocal n
        send(log, records[n : n + count])
        n += count
        return lists(log, n)[n - count :]

    def noted() -> set[bytes]:
        total = sum(end_offsets(log, ITEMS, 2).values())
        found = read_all(log, ITEMS, lambda got: sum(map(len, got)) >= total)
        return {key[1:] for batch in found for key in batch.keys if key and key.startswith(NOTE)}

    worker = Running(settings).wait_ready()
    served(100)
    until(lambda: worker.pipeline.serving.known == 12, "the items to be known")
    assert main(["items", "withdraw", "3", "--bootstrap", settings.bootstrap, "--json"]) == 0
    assert orjson.loads(capsys.readouterr().out) == {"withdrawn": 1}
    producer = log.producer()
    producer.send(OutBatch(ITEMS, [None], [b"4"]))
    assert producer.flush(20) == 0
    until(lambda: noted() == {b"4"}, "a note of what was withdrawn by a null")
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
