"""The schedule that the records about a partition make, and batches cut where it changes."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import orjson
import pytest
from fraud_logs import Logs, batch, cut, make_pipeline, processed, transaction
from hypothesis import given, settings
from hypothesis import strategies as st
from swaps import add_model

from features.block import Block, FloatArray
from features.fraud import DEFAULT
from models.conformal import Conformal
from models.errors import ModelError
from models.explain_policy import ReasonsPolicy
from models.lineup import CanaryGuard, Lineup
from models.registry import Registry
from models.serving import Serving, prepared
from models.slot import ModelSlot
from streams.encode import ScoreEncoder
from streams.log import TP, OutBatch
from streams.model_events import LineupRef, ModelRef, Schedule, partition_key, read_event, swap_event
from streams.model_shelf import ModelShelf, News
from streams.pipelines import fraud_lineup
from streams.pipelines.fraud import FraudPipeline
from streams.pipelines.fraud_tasks import Vectors
from streams.topics import BY_TERMINAL, FRAUD_SCORES, SHADOW_SCORES, TRANSACTIONS

PLACE = TP(BY_TERMINAL, 1)


def lineup(version: int) -> LineupRef:
    return LineupRef(ModelRef(f"m@{version}", str(version)))


def told(schedule: Schedule, event: str, holder: str, offset: int) -> bool:
    return schedule.apply({"event": event, "holder": holder, "offset": offset})


def swapped(schedule: Schedule, holder: str, offset: int, version: int) -> bool:
    return schedule.apply(swap_event("g", PLACE, holder, offset, lineup(version)))


def test_swaps_by_offset() -> None:
    schedule = Schedule()
    assert schedule.at(5) is None
    told(schedule, "assigned", "a", 0)
    for offset, version in ((10, 1), (20, 2), (30, 3)):
        assert swapped(schedule, "a", offset, version)
    assert [schedule.at(o) for o in (0, 10, 19, 20, 29, 30, 99)] == [lineup(v) for v in (1, 1, 1, 2, 2, 3, 3)]
    assert schedule.since(25) == [(20, lineup(2)), (30, lineup(3))] and schedule.since(0) == schedule.swaps
    swapped(schedule, "a", 20, 4)
    assert schedule.swaps == [(10, lineup(1)), (20, lineup(4))], "the later takes the place of those above"


def test_only_the_holder_swaps() -> None:
    schedule = Schedule()
    assert not swapped(schedule, "a", 10, 1)
    told(schedule, "assigned", "a", 0)
    swapped(schedule, "a", 10, 1)
    told(schedule, "assigned", "b", 5)
    assert not swapped(schedule, "a", 20, 2), "it holds the partition no more"
    assert not told(schedule, "left", "a", 20)
    assert swapped(schedule, "b", 20, 3)
    told(schedule, "left", "b", 25)
    assert not swapped(schedule, "b", 30, 4), "it has left"
    assert not schedule.apply({"event": "else", "holder": "b", "offset": 1})
    assert schedule.swaps == [(10, lineup(1)), (20, lineup(3))]


def test_only_what_counts_has_to_be_readable() -> None:
    schedule, bad = Schedule(), {"holder": "a", "offset": "x"}
    assert schedule.apply({"event": "assigned", "holder": "a", "offset": None, "new": 1})
    swapped(schedule, "a", 10, 1)
    for kind, holder in (("swap", "z"), ("left", "z"), ("else", "a")):
        assert not schedule.apply({**bad, "event": kind, "holder": holder})
    good = swap_event("g", PLACE, "a", 20, lineup(2))
    canary = {"model": "m@2", "sha256": "2", "share": 0.1}
    for field, value in (
        ("offset", "20"),
        ("model", 3),
        ("sha256", None),
        ("shadow", 3),
        ("shadow", {"model": "m@2"}),
        ("canary", {**canary, "share": "0.1"}),
        ("canary", {**canary, "share": 2}),
        ("canary", {**canary, "model": 3}),
    ):
        with pytest.raises((KeyError, TypeError, ValueError)):
            schedule.apply({**good, field: value})
    assert schedule.swaps == [(10, lineup(1))] and schedule.apply({**good, "canary": canary})


def test_the_floor() -> None:
    schedule = Schedule()
    told(schedule, "assigned", "a", 0)
    assert schedule.floor(7, 100) == 7, "nobody was there before"
    told(schedule, "assigned", "b", 7)
    assert schedule.floor(7, 100) == 100, "a crashed: it may have sent what is not committed"
    told(schedule, "left", "b", 50)
    told(schedule, "assigned", "c", 30)
    assert schedule.floor(30, 100) == 50 and schedule.floor(60, 100) == 60
    told(schedule, "assigned", "d", 30)
    assert schedule.floor(30, 100) == 100


def test_events_come_back() -> None:
    refs = LineupRef(ModelRef("m@1", "aa"), ModelRef("m@2", "bb"), ModelRef("m@3", "cc"), 0.05)
    for one in (refs, LineupRef(None), lineup(3)):
        event = read_event(orjson.dumps(swap_event("g", PLACE, "a", 9, one)))
        assert event is not None and LineupRef.from_json(event) == one
    event = swap_event("g", PLACE, "a", 9, refs)
    assert (event["event"], event["partition"], event["offset"]) == ("swap", 1, 9)
    assert (event["model"], event["sha256"]) == ("m@1", "aa")
    assert partition_key("g", PLACE) == b"g/fraud.by-terminal/1"
    for value in (None, b"", b"[]", b"{}", b'{"event": 1}'):
        assert read_event(value) is None


@pytest.fixture(scope="module")
def shelf(tmp_path_factory: pytest.TempPathFactory) -> ModelShelf:
    folder = tmp_path_factory.mktemp("models")
    for version in (1, 2, 3):
        add_model(folder, version, "champion" if version == 1 else None)
    return ModelShelf(Registry(folder), DEFAULT.names, DEFAULT.schema_hash, ReasonsPolicy("all", most=2))


@pytest.fixture(scope="module")
def servings(shelf: ModelShelf) -> list[Serving]:
    """m@1, m@2, m@3."""
    return [prepared(shelf.registry.get(f"m@{v}", DEFAULT.names), shelf.policy) for v in (1, 2, 3)]


def records_of(slot: ModelSlot, cuts: list[int], *, replayed: int = 0) -> tuple[list[bytes], list[bytes]]:
    """(scores, shadow scores) of 40 messages of the terminal stage, in blocks cut at these places."""
    pipeline, logs = make_pipeline(slot=slot), Logs()
    card = pipeline.task(TP(TRANSACTIONS, 0))
    for i in range(40):
        logs.take(processed(card, batch(TRANSACTIONS, [transaction(i, card=i % 7, terminal=i % 5)], i)), 1)
    shuffled, out = logs.records[BY_TERMINAL, 0], Logs()
    terminal = pipeline.task(TP(BY_TERMINAL, 0))
    for first, piece in cut(shuffled, [*cuts, replayed]):
        out.take(processed(terminal, batch(BY_TERMINAL, piece, first, replay=first < replayed)), 1)
    return tuple([r.value or b"" for r in out.of(topic)] for topic in (FRAUD_SCORES, SHADOW_SCORES))  # type: ignore[return-value]


@settings(max_examples=15, deadline=None, derandomize=True)
@given(st.lists(st.integers(0, 40), max_size=6), st.integers(0, 40), st.integers(0, 40))
def test_a_block_that_holds_a_swap_is_cut_there(
    servings: list[Serving], cuts: list[int], first_swap: int, second_swap: int
) -> None:
    one, two, three = servings
    swaps = sorted((first_swap, second_swap))
    slot = ModelSlot()
    lineups = [Lineup(one), Lineup(two, shadow=one), Lineup(three, None, one, 0.3)]
    slot.schedule(0, list(zip([0, *swaps], lineups, strict=True)))
    whole = records_of(slot, [])
    assert records_of(slot, cuts) == whole
    labels = [orjson.loads(value)["model"] for value in whole[0]]
    a, b = swaps
    assert labels[:a] == ["m@1"] * a and labels[a:b] == ["m@2"] * (b - a) and set(labels[b:]) <= {"m@1", "m@3"}
    assert [orjson.loads(v)["transaction_id"] for v in whole[1]] == list(range(a, b))
    assert {orjson.loads(v)["model"] for v in whole[1]} <= {"m@1"}
    sent = records_of(slot, cuts, replayed=7)
    assert sent[0] == whole[0][7:], "a replay sends what comes behind it as it was"


def test_the_canary_s_rows_have_its_reasons(servings: list[Serving]) -> None:
    one, two, _ = servings
    slots = [ModelSlot() for _ in range(3)]
    for slot, one_lineup in zip(slots, (Lineup(one), Lineup(two), Lineup(one, None, two, 0.4)), strict=True):
        slot.install(one_lineup)
    by_one, by_two, mixed = (records_of(slot, [])[0] for slot in slots)
    labels = [orjson.loads(value)["model"] for value in mixed]
    assert set(labels) == {"m@1", "m@2"}
    assert mixed == [a if label == "m@1" else b for a, b, label in zip(by_one, by_two, labels, strict=True)]
    cards = {orjson.loads(v)["card_id"] for v, label in zip(mixed, labels, strict=True) if label == "m@2"}
    assert not cards & {orjson.loads(v)["card_id"] for v, label in zip(mixed, labels, strict=True) if label == "m@1"}
    assert all(len(orjson.loads(value)["reasons"]) == 2 for value in mixed)
    assert np.unique(labels, return_counts=True)[1].min() >= 5


class Silent:
    """A serving that cannot say why, for some rows."""

    def __init__(self, serving: Serving) -> None:
        self._serving, self.label, self.score, self.sets = serving, serving.label, serving.score, serving.sets

    def reasons(self, x: FloatArray, *more: Any) -> Any:
        if (x[:, 3] % 3 == 2).any():
            raise RuntimeError("no")
        return self._serving.reasons(x, *more)


def test_a_canary_that_cannot_say_why_has_failed(servings: list[Serving]) -> None:
    one, two, _ = servings
    whole = []
    for canary in (two, Silent(two)):
        slot, guard = ModelSlot(), CanaryGuard()
        slot.install(Lineup(one, None, canary, 0.4, guard))  # type: ignore[arg-type]
        whole.append([orjson.loads(value) for value in records_of(slot, [])[0]])
        assert len(whole[-1]) == 40
        cut_s = [orjson.loads(value) for value in records_of(slot, [3, 20])[0]]
        assert cut_s == whole[-1]
    silent = [i for i, (a, b) in enumerate(zip(*whole, strict=True)) if a != b]
    assert silent and guard.failed == 2 * len(silent), "in both runs"
    assert [{**whole[0][i], "reasons": []} for i in silent] == [whole[1][i] for i in silent]


def test_a_set_is_by_the_model_that_scored_and_null_where_it_says_nothing(servings: list[Serving]) -> None:
    one, two, _ = servings
    assert one.model is not None
    middle = float(np.median([orjson.loads(value)["raw"] for value in records_of(ModelSlot(one.model), [])[0]]))
    sure = replace(one, model=replace(one.model, conformal=Conformal(0.1, fraud_from=middle, legitimate_to=middle)))
    slot = ModelSlot()
    slot.install(Lineup(sure, sure, two, 0.4))
    scores, shadows = ([orjson.loads(value) for value in values] for values in records_of(slot, [3, 20])[:2])
    expected = {-1: ["legitimate"], 0: ["legitimate", "fraud"], 1: ["fraud"]}
    assert len(shadows) == len(scores) == 40
    for record in (*scores, *shadows):
        by_canary = record["model"] == two.label
        assert record["set"] == (None if by_canary else expected[int(np.sign(record["raw"] - middle))])
    assert len({str(record["set"]) for record in scores}) >= 2


def test_a_shadow_that_cannot_be_written_goes_without(servings: list[Serving], monkeypatch: pytest.MonkeyPatch) -> None:
    slot = ModelSlot()
    slot.install(Lineup(servings[0], servings[1]))
    expected = records_of(slot, [])
    encode = ScoreEncoder.encode

    def picky(self: ScoreEncoder, block: Block, **more: Any) -> list[bytes]:
        if self.feature_names is None and (block.ids["transaction_id"].ints == 7).any():  # type: ignore[union-attr]
            raise RuntimeError("no")
        return encode(self, block, **more)

    monkeypatch.setattr(ScoreEncoder, "encode", picky)
    scores, shadows = records_of(slot, [])
    assert scores == expected[0] and shadows == expected[1][:7] + expected[1][8:]


def test_rows_that_are_done_again_count_once(servings: list[Serving], monkeypatch: pytest.MonkeyPatch) -> None:
    def send(pipeline: FraudPipeline, vectors: Vectors, *more: Any) -> list[OutBatch]:
        if (vectors.rows.ids["transaction_id"].ints == 7).any():  # type: ignore[union-attr]
            raise RuntimeError("no")
        return []

    monkeypatch.setattr(fraud_lineup, "send_vectors", send)
    slot = ModelSlot()
    slot.install(Lineup(servings[0]))
    pipeline, logs = make_pipeline(slot=slot), Logs()
    events = [transaction(i, card=i % 7, terminal=i % 5) for i in range(40)]
    logs.take(processed(pipeline.task(TP(TRANSACTIONS, 0)), batch(TRANSACTIONS, events)), 1)
    pipeline.monitor = True
    shuffled = logs.records[BY_TERMINAL, 0]
    logs.take(processed(pipeline.task(TP(BY_TERMINAL, 0)), batch(BY_TERMINAL, shuffled)), 1)
    counts = pipeline.meters.counts
    assert (counts["scored"], counts["dead_letters"], len(logs.of(FRAUD_SCORES))) == (39, 1, 39)


def test_a_package_that_is_broken_replaces_nothing(tmp_path: Path) -> None:
    for version in (1, 2, 3):
        add_model(tmp_path, version, "champion" if version == 1 else None)
    registry = Registry(tmp_path)
    shelf = ModelShelf(registry, DEFAULT.names, DEFAULT.schema_hash, ReasonsPolicy("none"))
    refs, first = shelf.first()
    assert refs.champion is not None and refs.champion.model == "m@1" == first.champion.label
    assert shelf.news(refs).lineup is None
    with (tmp_path / "m" / "2" / "model.txt").open("a") as file:
        file.write(" ")
    registry.set_alias("champion", "m@2")
    registry.set_alias("shadow", "m@3")
    news = shelf.news(refs)
    assert news.refs.champion == refs.champion and news.refs.shadow is not None
    [(model, reason)] = news.refused
    assert model == "m@2" and "sha256" in reason
    assert shelf.news(news.refs) == News(news.refs), "said once"
    shutil.rmtree(tmp_path / "m" / "3")
    registry.set_canary("m@1", 0.5)
    after = shelf.news(news.refs)
    assert (
        after.refs.shadow is None and after.refs.canary == refs.champion and [m for m, _ in after.refused][-1] == "m@3"
    )
    (tmp_path / "aliases.json").write_text("{")
    damaged = shelf.news(after.refs)
    assert damaged.lineup is None and "aliases.json" in damaged.refused[0][1]
    assert not shelf.news(after.refs).refused


def test_what_cannot_be_read_is_tried_again(tmp_path: Path) -> None:
    for version in (1, 2):
        add_model(tmp_path, version, "champion" if version == 1 else None)
    registry = Registry(tmp_path)
    shelf = ModelShelf(registry, DEFAULT.names, DEFAULT.schema_hash, ReasonsPolicy("none"))
    refs, _ = shelf.first()
    away, there = tmp_path / "m" / ".2", tmp_path / "m" / "2"
    registry.set_alias("champion", "m@2")
    for broken in (there, there / "model.txt"):
        broken.rename(away)
        [(model, _)] = shelf.news(refs).refused
        assert model == "m@2" and not shelf.news(refs).refused, "said once"
        away.rename(broken)
    news = shelf.news(refs)
    assert news.lineup is not None and news.lineup.champion.label == "m@2"
    registry.set_canary("m@1", 0.1)
    (tmp_path / "aliases.json").write_text(orjson.dumps({"champion": "m@2", "canary": "m@1"}).decode())
    with pytest.raises(ModelError, match="canary_share"):
        _ = registry.canary
    [(model, reason)] = shelf.news(news.refs).refused
    assert model == "registry" and "canary_share" in reason


def test_each_canary_has_its_own_cards(tmp_path: Path) -> None:
    for version in (1, 2, 3):
        add_model(tmp_path, version, "champion" if version == 1 else None)
    registry = Registry(tmp_path)
    shelf = ModelShelf(registry, DEFAULT.names, DEFAULT.schema_hash, ReasonsPolicy("none"))
    refs, _ = shelf.first()
    seeds = []
    for version in (2, 3, 2):
        registry.set_canary(f"m@{version}", 0.1)
        news = shelf.news(refs)
        refs = news.refs
        assert news.lineup is not None and refs.canary is not None
        seeds.append(news.lineup.seed)
        assert f"{seeds[-1]:016x}" == refs.canary.sha256[:16]
    assert seeds[0] == seeds[2] != seeds[1]


def test_a_package_that_was_changed_is_not_what_the_schedule_says(tmp_path: Path) -> None:
    for version in (1, 2):
        add_model(tmp_path, version, "champion" if version == 1 else None)
    shelf = ModelShelf(Registry(tmp_path), DEFAULT.names, DEFAULT.schema_hash, ReasonsPolicy("none"))
    with pytest.raises(ModelError, match=r"m@2 in .* has a manifest of sha256 [0-9a-f]{64}, not abc"):
        shelf.load(ModelRef("m@2", "abc"))
    with pytest.raises(ModelError, match="m@9"):
        shelf.load(ModelRef("m@9", "abc"))
    ref = ModelRef("m@2", shelf.registry.fingerprint("m@2"))
    serving = shelf.load(ref)
    assert shelf.load(ref) is serving
    shelf.keep([])
    assert shelf.load(ref) is not serving
