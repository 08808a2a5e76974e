"""verify of the recommend pipeline: what ran live is replayed to the bit, and every kind of difference is found."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import orjson
import pytest
from fraud_logs import Record
from live_recommend import Running, lists, send, shop
from recommend_logs import Ranker, walk
from workers import until

from features.shopping import FEATURES
from streams.cli.main import main
from streams.config import Settings
from streams.errors import ConfigError
from streams.log import TP, Log, OutBatch, RecordBatch
from streams.memory import MemoryConsumer
from streams.recommend_worker import make_pipeline
from streams.replay import read_up_to
from streams.topics import BY_ITEM, INTERACTIONS, ITEMS, RECOMMENDATIONS
from streams.verify_recommend import _check_item, verify_recommend
from streams.verify_rows import StageResult

pytestmark = pytest.mark.timeout(120)
EVENTS = 240


def live() -> tuple[Settings, Log]:
    """A log that two workers worked on, one after the other; of the events one is repeated, and one unreadable."""
    settings, log = shop(commit_interval_ms=20)
    records, half = walk(EVENTS), EVENTS // 2
    for count, part in ((half, records[:half]), (EVENTS, [*records[half:], records[0], Record(b"?", b"u1")])):
        worker = Running(settings)
        worker.pipeline.slot.replace(Ranker(FEATURES.index("covisit")))  # type: ignore[arg-type]
        worker.wait_ready()
        send(log, part)
        lists(log, count)
        figures, wanted = worker.pipeline.figures, len(part)
        until(lambda figures=figures, wanted=wanted: figures()["received"] >= wanted, "all to be received")  # type: ignore[misc]
        worker.stop()
    return settings, log


def results(settings: Settings, log: Log) -> dict[str, StageResult]:
    pipeline = make_pipeline(settings, log)
    pipeline.slot.replace(Ranker(FEATURES.index("covisit")))  # type: ignore[arg-type]
    return {result.stage: result for result in verify_recommend(log, settings.group, pipeline)}


def batches(log: Log, topic: str) -> Iterator[RecordBatch]:
    consumer = log.consumer("look")
    ends = {TP(topic, p): consumer.offset_range(TP(topic, p))[1] for p in range(2)}
    consumer.close()
    return read_up_to(log, ends)


def put(log: Log, topic: str, value: bytes, key: bytes | None, source: bytes = b"", partition: int = 0) -> None:
    producer = log.producer()
    headers = [[("source", source)]] if source else None
    out = OutBatch(topic, [value], [key], partition if topic == BY_ITEM else None, headers)
    assert producer.send(out) == 1 and producer.flush(20) == 0
    producer.close()


def test_live_equals_replay_and_every_kind_of_difference_is_found(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    settings, log = live()
    found = results(settings, log)
    assert {stage: of.mismatching_rows for stage, of in found.items()} == {"user": 0, "item": 0, "lists": 0}, found
    assert found["lists"].rows == EVENTS < found["user"].rows and found["item"].rows >= 12

    config = tmp_path / "headrace.toml"
    config.write_text(f"publish_ms = {settings.publish_ms}\n")
    words = ["verify", "--pipeline", "recommend", "--group", "shop", "--bootstrap", settings.bootstrap, "--json"]
    assert main([*words, "--config", str(config)]) == 0
    figures = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert figures["mismatching_rows"] == 0 and figures["first_differences"] == []
    assert figures["rows"] == sum(of.rows for of in found.values()) and list(figures["stages"]) == list(found)
    assert main(words) == 1, "with other settings items are published at other times"
    assert json.loads(capsys.readouterr().out.splitlines()[-1])["stages"]["item"]["mismatching_rows"] > 0

    # a list that is not what its event says, scores that the model does not give, one that nobody has asked for yet
    batch = next(iter(batches(log, RECOMMENDATIONS)))
    [(_, source)] = batch.headers(0)
    listed = orjson.loads(batch.values[0] or b"")
    put(log, RECOMMENDATIONS, orjson.dumps(listed | {"action": "look"}), batch.keys[0], source)
    later = next(one for one in batches(log, RECOMMENDATIONS) if b'"score":0.' in (one.values[-1] or b""))
    wrong = orjson.loads(later.values[-1] or b"")
    wrong["items"][0]["score"] += 0.25
    put(log, RECOMMENDATIONS, orjson.dumps(wrong), later.keys[-1], later.headers(len(later) - 1)[0][1])
    put(log, RECOMMENDATIONS, b"{}", b"u1", b"interactions/0/100000")
    item = next(iter(batches(log, ITEMS)))
    damaged = bytearray(item.values[0] or b"")
    damaged[8] ^= 1
    put(log, ITEMS, bytes(damaged), item.keys[0])
    found = results(settings, log)
    assert {stage: of.mismatching_rows for stage, of in found.items()} == {"user": 0, "item": 1, "lists": 2}
    assert found["lists"].repeated == 2
    said, scored = (difference.columns for difference in found["lists"].differences)
    assert said == {"action": ("look", listed["action"])}
    [(name, (served, again))] = scored.items()
    assert name == f"score of item {wrong['items'][0]['item_id']}" and served == pytest.approx(again + 0.25)
    [difference] = found["item"].differences
    assert difference.source == f"items/{(item.keys[0] or b'').decode()}" and "heads" in difference.columns


def test_rows_that_were_not_sent_are_found() -> None:
    settings, log = live()
    rows = next(iter(batches(log, BY_ITEM)))
    other = next(one for one in batches(log, BY_ITEM) if one.tp != rows.tp)
    # what was sent to one partition of the items is in the other one, too
    put(log, BY_ITEM, rows.values[0] or b"", None, partition=other.tp.partition)
    found = results(settings, log)
    assert found["user"].mismatching_rows > 0 and found["lists"].mismatching_rows == 0
    assert found["user"].differences[0].columns == {"row": ("present", "absent")}
    assert found["user"].differences[0].source.startswith(f"{INTERACTIONS}/")


@pytest.mark.parametrize(
    ("logged", "open_end", "differing"),
    [
        ("ab", False, 0),
        ("b", False, 0),
        ("a", True, 1),
        ("a", False, 1),
        ("abc", True, 0),
        ("abc", False, 1),
        ("c", True, 0),
        ("c", False, 2),
        ("ac", True, 0),
        ("cb", True, 1),
        ("", True, 1),
    ],
)
def test_a_newer_value_may_have_taken_the_place_of_the_last_one(logged: str, open_end: bool, differing: int) -> None:
    result = StageResult("item")
    _check_item(result, b"1", [word.encode() for word in logged], [b"a", b"b"], open_end)
    assert result.mismatching_rows == differing


def test_the_ends_of_items_are_taken_before_those_of_what_they_are_made_of(monkeypatch: pytest.MonkeyPatch) -> None:
    settings, log = shop()
    asked: list[str] = []

    def ranged(consumer: MemoryConsumer, tp: TP) -> tuple[int, int]:
        asked.append(tp.topic)
        return 0, 0

    monkeypatch.setattr(MemoryConsumer, "offset_range", ranged)
    with pytest.raises(ConfigError):
        verify_recommend(log, "shop", make_pipeline(settings, log))
    assert asked.index(ITEMS) < asked.index(BY_ITEM) and asked.count(ITEMS) == 2


def test_without_a_group_or_topics_it_says_what_to_do(capsys: pytest.CaptureFixture[str]) -> None:
    settings, log = shop()
    with pytest.raises(ConfigError, match="group shop has committed nothing: name the group"):
        verify_recommend(log, "shop", make_pipeline(settings, log))
    words = ["verify", "--pipeline", "recommend", "--bootstrap", settings.bootstrap]
    assert main([*words, "--order", "arrival"]) == 2
    assert "--order arrival: is of the fraud pipeline; leave it out" in capsys.readouterr().err
