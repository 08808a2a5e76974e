"""The state of a task as plain arrays: a task that goes on from them does, bit for bit, what any other would."""

from __future__ import annotations

import io
import os
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from fraud_history import history, partitioned, shuffled_log
from fraud_logs import NOW, SETTINGS, Record, batch, make_pipeline, processed
from numba.core.dispatcher import Dispatcher
from state_walk import differences

from features.block import Block
from features.declare import FeatureSet, weekday
from features.fraud import DEFAULT, SETS
from features.plan import StateError
from features.spill import ACTIVE
from features.stage_windows import StageWindows
from streams.log import TP, OutBatch
from streams.pipelines.fraud import FraudPipeline
from streams.pipelines.fraud_stages import CardStage, StageSettings, TerminalStage
from streams.topics import BY_TERMINAL, LABELS, TRANSACTIONS
from tests.features.streams_of_rows import same_arrays

ROOT = Path(__file__).resolve().parents[2]
N = 660
PARTITIONS = 2
BATCH = 15
CASES = [
    *[(TRANSACTIONS, name, "arrival", kind) for name in SETS for kind in ("integers", "texts", "mixed")],
    *[(LABELS, "default", "event_time", kind) for kind in ("integers", "texts")],
    *[(BY_TERMINAL, name, order, kind) for name in SETS for order in ("arrival", "event_time")
      for kind in ("integers", "texts")],
]  # fmt: skip


def pipeline_of(name: str, order: str) -> FraudPipeline:
    return make_pipeline(order, PARTITIONS, replace(SETTINGS, features=SETS[name]))


@cache
def log_of(topic: str, name: str, order: str, kind: str) -> list[Record]:
    """Partition 0 of the topic."""
    stream = history(7, N, kind)
    if topic == BY_TERMINAL:
        return shuffled_log(3, pipeline_of(name, order), stream)
    return partitioned(stream, PARTITIONS)[TP(topic, 0)]


def fresh(topic: str, name: str, order: str) -> Any:
    task = pipeline_of(name, order).task(TP(topic, 0))
    if topic == BY_TERMINAL and order == "event_time":
        task.order.rows_max = 25  # so that some are forced
    return task


def batches(records: Sequence[Record], size: int) -> list[tuple[int, Sequence[Record]]]:
    return [(first, records[first : first + size]) for first in range(0, len(records), size)]


def plain(outputs: list[OutBatch]) -> list[Any]:
    return [
        (o.topic, o.partition, list(o.values), None if o.keys is None else list(o.keys),
         [o.headers_of(i) for i in range(len(o))])
        for o in outputs
    ]  # fmt: skip


def stored(arrays: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """The arrays as a file gives them back: nothing that needs pickle, nothing that can be written to."""
    file = io.BytesIO()
    np.savez(file, allow_pickle=False, **arrays)
    file.seek(0)
    loaded = dict(np.load(file, allow_pickle=False))
    for array in loaded.values():
        assert array.dtype.kind in "iufbS"
        array.flags.writeable = False
    return loaded


def run(task: Any, parts: Sequence[tuple[int, Sequence[Record]]]) -> Iterator[list[Any]]:
    for first, piece in parts:
        yield plain(processed(task, batch(task.tp.topic, piece, first)))


def spills(task: Any) -> int:
    """How many keys have rows in a spill; tiles have none."""
    windows = task.stage._windows
    sums = windows._sums if isinstance(windows, StageWindows) else windows
    return 0 if sums is None else int(sums._spill.meta[ACTIVE])


@pytest.mark.parametrize(("topic", "name", "order", "kind"), CASES)
def test_a_task_goes_on_where_its_arrays_end(topic: str, name: str, order: str, kind: str) -> None:
    """Saved and restored between any two batches: same outputs, same arrays, and nothing else is different either."""
    parts = batches(log_of(topic, name, order, kind), BATCH)
    whole, cut = fresh(topic, name, order), fresh(topic, name, order)
    waited = spilled = 0
    for expected, (first, piece) in zip(run(whole, parts), parts, strict=True):
        assert plain(processed(cut, batch(topic, piece, first))) == expected
        saved = stored(cut.state())
        restored = fresh(topic, name, order)
        restored.restore(saved)
        assert same_arrays(restored.state(), saved) and same_arrays(whole.state(), saved)
        assert differences(restored, cut) == differences(whole, cut) == []
        spilled += topic != LABELS and spills(whole) > 0
        waited += topic == BY_TERMINAL and cut.order.waiting > 0
        cut = restored
    in_time_order = topic == LABELS or (topic == BY_TERMINAL and order == "event_time")
    assert spilled > 5 or in_time_order or (topic == TRANSACTIONS and name == "tiled")
    assert cut.pipeline.meters.counts["dead_letters"] < 0.1 * N
    if topic == BY_TERMINAL:
        assert cut.positions.dropped > 0
        assert all(cut.stage.label_counts.values())
        assert order == "arrival" or (waited > 5 and cut.order.forced > 0 and cut.order.late > 0)


@pytest.mark.parametrize(("topic", "name", "order", "kind"), CASES[::3])
def test_one_break_changes_nothing_to_the_end(topic: str, name: str, order: str, kind: str) -> None:
    parts = batches(log_of(topic, name, order, kind), 20)
    whole = fresh(topic, name, order)
    expected = list(run(whole, parts))
    for at in range(1, len(parts), 4):
        begun, ended = fresh(topic, name, order), fresh(topic, name, order)
        assert list(run(begun, parts[:at])) == expected[:at]
        ended.restore(stored(begun.state()))
        assert list(run(ended, parts[at:])) == expected[at:]
        assert same_arrays(ended.state(), whole.state())


@pytest.mark.parametrize(("topic", "name", "order", "kind"), CASES[::2])
def test_arrays_do_not_tell_how_the_log_was_cut(topic: str, name: str, order: str, kind: str) -> None:
    records = log_of(topic, name, order, kind)
    states = []
    for size in (1, 13, len(records)):
        task = fresh(topic, name, order)
        if order == "event_time" and topic == BY_TERMINAL:
            task.order.rows_max = 2_000_000
        list(run(task, batches(records, size)))
        states.append(task.state())
    assert all(same_arrays(state, states[0]) for state in states[1:])


@pytest.mark.parametrize("topic", [TRANSACTIONS, LABELS, BY_TERMINAL])
def test_a_restored_task_replays_as_any_other(topic: str) -> None:
    """From a checkpoint before the committed offset, with records below the state's own offset once more."""
    records = log_of(topic, "default", "event_time", "integers")
    whole, begun, ended = (fresh(topic, "default", "event_time") for _ in range(3))
    at, committed = len(records) // 3, len(records) // 2
    list(run(whole, [(0, records[:committed])]))
    list(run(begun, [(0, records[:at])]))
    ended.restore(stored(begun.state()))
    assert ended.next_offset == at
    assert processed(ended, batch(topic, records[at - 5 : committed], at - 5, replay=True)) == []
    last = [(committed, records[committed:])]
    assert list(run(ended, last)) == list(run(whole, last))
    assert same_arrays(ended.state(), whole.state())


def test_the_walk_notices_what_is_forgotten() -> None:
    """A canary for the tests above: each field that a restore might forget."""
    records = log_of(BY_TERMINAL, "rich", "event_time", "texts")
    saved: dict[str, np.ndarray] = {}

    def restored() -> Any:
        task = fresh(BY_TERMINAL, "rich", "event_time")
        task.restore(saved)
        return task

    begun = fresh(BY_TERMINAL, "rich", "event_time")
    for _ in run(begun, batches(records, 10)):
        if begun.order.waiting and begun.order.forced and begun.order.late:
            break
    saved |= begun.state()
    assert differences(restored(), begun) == []
    empty = fresh(BY_TERMINAL, "rich", "event_time")
    forgotten = {
        "next_offset": lambda t: setattr(t, "next_offset", 0),
        "positions": lambda t: setattr(t, "positions", empty.positions),
        "dropped": lambda t: setattr(t.positions, "dropped", 0),
        "_highest": lambda t: t.positions._highest.popitem(),
        "_released_ms": lambda t: setattr(t.order, "_released_ms", empty.order._released_ms),
        "late": lambda t: setattr(t.order, "late", 0),
        "_waiting": lambda t: t.order._waiting.pop(),
        "_count": lambda t: setattr(t.order, "_count", 0),
        "watermark_ms": lambda t: setattr(t.order._sources[TRANSACTIONS, 0], "watermark_ms", None),
        "idle": lambda t: setattr(s := t.order._sources[LABELS, 0], "idle", not s.idle),
        "_counters": lambda t: t.stage._windows._counters.fill(0),
        "_meta": lambda t: setattr(t.stage._windows._slots, "stream_time_ms", 0),
    }
    for name, forget in forgotten.items():
        task = restored()
        forget(task)
        found = differences(task, begun)
        assert any(name in place for place in found), (name, found)


def saving_in_a_warm_process() -> None:
    """Prints which kernels the saving of states compiled, and which modules it imported."""

    def compiled() -> Counter[str]:
        members = {id(v): v for m in list(sys.modules.values()) for v in vars(m).values() if isinstance(v, Dispatcher)}
        return Counter({f"{v.__module__}.{v.__name__}": len(v.signatures) for v in members.values()})

    for name, order in (("default", "arrival"), ("rich", "event_time"), ("tiled", "event_time")):
        pipeline_of(name, order).warm()
        tasks = [fresh(topic, name, order) for topic in (TRANSACTIONS, LABELS, BY_TERMINAL)]
        for task in tasks:
            list(run(task, batches(log_of(task.tp.topic, name, order, "mixed"), 50)))
        kernels, modules = compiled(), set(sys.modules)
        for task in tasks:
            task.state()
        print(sum(kernels.values()) > 20, dict(compiled() - kernels), sorted(set(sys.modules) - modules))


def test_saving_compiles_and_imports_nothing_in_a_warm_process() -> None:
    """A forked child does it, in which locks may be held by threads that are not there (`streams.snapshot`)."""
    script = "import test_task_state; test_task_state.saving_in_a_warm_process()"
    paths = os.pathsep.join([str(ROOT), str(ROOT / "tests" / "streams")])
    done = subprocess.run(
        [sys.executable, "-c", script],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": paths},
        capture_output=True,
        text=True,
    )
    assert done.stdout.splitlines() == ["True {} []"] * 3, done.stdout + done.stderr


# --- stages ---


def blocks_of(kind: str) -> tuple[list[Block], list[Block]]:
    """Transactions and labels, a block for each batch."""
    pipeline = pipeline_of("default", "arrival")
    stream = history(11, N, kind)
    sides = []
    for topic, decoder in ((TRANSACTIONS, pipeline.transactions), (LABELS, pipeline.labels)):
        records = [record for of, record in stream if of == topic]
        parts = batches(records, -(-len(records) // 12))
        sides.append([decoder.decode(batch(topic, piece, first))[0] for first, piece in parts])
    return sides[0], sides[1]


@pytest.mark.parametrize("kind", ["integers", "mixed"])
@pytest.mark.parametrize("name", SETS)
def test_stages_go_on_where_their_arrays_end(name: str, kind: str) -> None:
    settings = StageSettings(SETS[name], dedupe_entries=40)
    transactions, labels = blocks_of(kind)
    cards, terminals = CardStage(settings), TerminalStage(settings)
    cards_cut, terminals_cut = CardStage(settings), TerminalStage(settings)
    duplicates = late_rows = 0
    for block, said in zip(transactions, labels, strict=True):
        rows, rows_cut = cards.process(block), cards_cut.process(block)
        assert (rows.duplicates, rows.lateness_ms.tobytes()) == (rows_cut.duplicates, rows_cut.lateness_ms.tobytes())
        for column, values in rows.block.columns.items():
            assert values.tobytes() == rows_cut.block.columns[column].tobytes()
        matrix, late = terminals.process(rows.block, said, None)
        matrix_cut, late_cut = terminals_cut.process(rows.block, said, None)
        assert (matrix.tobytes(), late.tobytes()) == (matrix_cut.tobytes(), late_cut.tobytes())
        cards_cut = CardStage.from_arrays(settings, stored(cards_cut.to_arrays()))
        terminals_cut = TerminalStage.from_arrays(settings, stored(terminals_cut.to_arrays()))
        assert same_arrays(cards_cut.to_arrays(), cards.to_arrays())
        assert same_arrays(terminals_cut.to_arrays(), terminals.to_arrays())
        assert differences(cards_cut, cards) == differences(terminals_cut, terminals) == []
        duplicates, late_rows = duplicates + rows.duplicates, late_rows + int(late.sum())
    assert duplicates and late_rows and all(terminals.label_counts.values())


def test_a_state_of_other_settings_is_refused() -> None:
    with pytest.raises(StateError, match="rebuild it by replaying"):
        CardStage.from_arrays(StageSettings(DEFAULT, allowed_lateness_ms=1), CardStage(SETTINGS).to_arrays())
    with pytest.raises(StateError, match="rebuild it by replaying"):
        TerminalStage.from_arrays(StageSettings(SETS["rich"]), TerminalStage(SETTINGS).to_arrays())


# --- what is refused ---


def test_a_state_of_another_task_is_refused() -> None:
    arrays = make_pipeline(partitions=2).task(TP(TRANSACTIONS, 0)).state()
    with pytest.raises(StateError, match=r"transaction-labels/0: missing nothing, unknown stage/.*; rebuild it by"):
        make_pipeline(partitions=2).task(TP(LABELS, 0)).restore(arrays)
    for wrong in (np.zeros(1), np.zeros((1, 1), np.int64), np.zeros((), np.int64)):
        with pytest.raises(StateError, match="transactions/0: next_offset is"):
            make_pipeline().task(TP(TRANSACTIONS, 0)).restore(arrays | {"next_offset": wrong})
    by_terminal = make_pipeline("event_time", 2).task(TP(BY_TERMINAL, 0)).state()
    with pytest.raises(StateError, match="unknown order/"):
        make_pipeline("arrival", 2).task(TP(BY_TERMINAL, 0)).restore(by_terminal)
    with pytest.raises(StateError, match="transaction-labels/2, transactions/2: partitions were added"):
        make_pipeline("event_time", 3).task(TP(BY_TERMINAL, 0)).restore(by_terminal)


# --- the fingerprint ---


def fingerprints(order: str = "event_time", partitions: int = 2, delay_ms: int = 0, **changed: Any) -> list[str]:
    pipeline = make_pipeline(order, partitions, replace(SETTINGS, **changed))
    pipeline.watermark_delay_ms = delay_ms
    return [pipeline.fingerprint(topic) for topic in (TRANSACTIONS, LABELS, BY_TERMINAL)]


ROWS_ONLY = FeatureSet("other", [*DEFAULT.features, weekday()])


@pytest.mark.parametrize(
    ("change", "stages"),
    [
        ({}, [0, 0, 0]),
        ({"features": SETS["rich"]}, [1, 0, 1]),
        ({"features": SETS["tiled"]}, [1, 0, 0]),
        ({"features": ROWS_ONLY}, [0, 0, 0]),
        ({"allowed_lateness_ms": 1}, [1, 0, 1]),
        ({"dedupe_ms": 1}, [1, 0, 0]),
        ({"dedupe_entries": 1}, [1, 0, 0]),
        ({"state_bytes_max": 1 << 30}, [0, 0, 0]),
        ({"delay_ms": 5}, [0, 0, 0]),
        ({"order": "arrival"}, [0, 0, 1]),
        ({"partitions": 3}, [1, 1, 1]),
    ],
)
def test_the_fingerprint_changes_with_what_the_state_means(change: dict[str, Any], stages: list[int]) -> None:
    before, after = fingerprints(), fingerprints(**change)
    assert [int(a != b) for a, b in zip(before, after, strict=True)] == stages
    assert len(set(after)) == 3 and all(len(f) == 64 for f in after)


def test_another_delay_of_watermarks_goes_on_from_the_same_state() -> None:
    """Why it is not in the fingerprint: the state has the newest time, not what was said of it."""
    records = log_of(TRANSACTIONS, "default", "arrival", "integers")
    begun = fresh(TRANSACTIONS, "default", "arrival")
    list(run(begun, [(0, records)]))
    pipeline = pipeline_of("default", "event_time")
    pipeline.watermark_delay_ms = 1_000
    replayed, restored = pipeline.task(begun.tp), pipeline.task(begun.tp)
    assert processed(replayed, batch(TRANSACTIONS, records, replay=True)) == []
    restored.restore(begun.state())
    assert restored.watermark_ms == replayed.watermark_ms == begun.watermark_ms - 1_000
    assert restored.watermark_ms < NOW
