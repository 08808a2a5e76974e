"""What the control loop reads: rows as columns, windows that restarts do not show in, rounds of fixed size."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import orjson
import pytest
from control_world import (
    AFTER,
    BEFORE,
    FEATURES,
    PARTITIONS,
    SMALL,
    STEP_MS,
    T0,
    actions,
    alert_of,
    controller,
    names_of,
    new_log,
    new_registry,
    rows_of,
    run,
    send_alert,
    send_rows,
)

from streams.control_rows import Rows, Window, read_rows
from streams.log import OutBatch
from streams.memory import Partition
from streams.topics import LABELLED

RECORD = {"event_time": 1000, "label_time": 2000, "card_id": "c", "label": 1, "features": {"b": 2, "a": None, "c": 1}}


def read(*values: Any, features: tuple[str, ...] = ("a", "b"), timestamp: int = 10**9) -> Rows:
    raw = [value if isinstance(value, bytes | None) else orjson.dumps(value) for value in values]
    return read_rows(range(10, 10 + len(raw)), [timestamp] * len(raw), [None] * len(raw), raw, features)


def test_a_record_becomes_a_row_of_the_features_that_are_asked_for() -> None:
    rows = read(RECORD, RECORD | {"card_id": 7, "label": 0})
    assert rows.offsets.tolist() == [10, 11] and rows.y.tolist() == [1, 0]
    assert math.isnan(rows.x[0, 0]) and rows.x[:, 1].tolist() == [2.0, 2.0]
    assert rows.event_time_ms.tolist() == [1000, 1000] and rows.known_ms.tolist() == [2000, 2000]
    assert read(RECORD | {"card_id": 7}).group == read(RECORD | {"card_id": "7"}).group


@pytest.mark.parametrize(
    "bad",
    [
        *(None, b"", b"{", b"[]", b"null"),
        {name: value for name, value in RECORD.items() if name != "label_time"},
        *(RECORD | {"label": label} for label in (None, 2, "x")),
        *(RECORD | {"features": features} for features in (None, {"a": 1}, {"a": "x", "b": 1})),
    ],
)
def test_what_is_no_labelled_row_is_left_out(bad: Any) -> None:
    assert read(RECORD, bad, RECORD).offsets.tolist() == [10, 12]
    assert len(read(bad)) == 0 and read(bad).x.shape == (0, 2)


def test_a_label_from_the_future_does_not_move_the_clock() -> None:
    assert read(RECORD | {"label_time": 10**15}, timestamp=5_000).known_ms.tolist() == [5_000 + 3_600_000]


def rows_at(offsets: range, time_ms: int = 0) -> Rows:
    n = len(offsets)
    numbers = np.array(offsets, np.int64)
    return Rows(
        numbers, numbers, numbers + time_ms, numbers, numbers, numbers % 2, np.arange(n, dtype=np.float64)[:, None]
    )


def test_the_window_keeps_the_newest_of_each_partition_and_restarts_do_not_show() -> None:
    whole = Window(("a",), 200, 2)
    ends = [0, 0]
    for begin in range(0, 3000, 30):
        for p in range(2):
            ends[p] = begin + 30
            whole.add(p, rows_at(range(begin, begin + 30)), ends[p])
    restarted = Window(("a",), 200, 2)
    assert whole.start_of(ends) == [2900, 2900]
    for p in (1, 0):
        restarted.add(p, rows_at(range(2900, 3000)), ends[p])
    found = [window.take(window.since(0, 10**9)) for window in (whole, restarted)]
    assert [len(rows) for rows in found] == [200, 200]
    for name in ("y", "event_time_ms", "group"):
        assert (getattr(found[0], name) == getattr(found[1], name)).all()
    assert found[0].event_time_ms.tolist() == sorted([*range(2900, 3000)] * 2)


def test_rows_are_chosen_by_time_and_by_offset() -> None:
    window = Window(("a",), 100, 2)
    window.add(0, rows_at(range(10)), 10)
    window.add(1, rows_at(range(10), 5), 10)
    assert (
        window.since(5, 7).sum() == 6 and window.since(5, 7, [6, 0]).sum() == 5 and window.since(0, 99, [9]).sum() == 11
    )
    assert window.frauds(window.since(0, 9)) == 7


def test_a_partition_that_stands_still_does_not_hold_the_others(tmp_path: Path) -> None:
    log, registry = new_log(), new_registry(tmp_path)
    x, y = rows_of(2000, BEFORE, 1)
    send_rows(log, x[:100], y[:100])
    values = []
    for i in range(100, 2000):
        record = {"event_time": T0 + i * STEP_MS, "label_time": T0 + i * STEP_MS, "card_id": i, "label": int(y[i])}
        values.append(orjson.dumps(record | {"features": dict(zip(FEATURES, x[i].tolist(), strict=True))}))
    log.producer().send(OutBatch(LABELLED, values, None, 0))
    assert PARTITIONS == 2
    loop = run(log, registry)
    # rounds go on while eight of both partitions wait
    assert loop.state.labelled[1] == 50 and 1950 - loop.state.labelled[0] < 8 * 2 * SMALL["round_rows"]
    assert run(log, registry).state == loop.state


def test_a_loop_goes_on_where_labelled_has_a_partition_more(tmp_path: Path) -> None:
    log, registry = new_log(), new_registry(tmp_path)
    send_rows(log, *rows_of(1000, BEFORE, 1))
    run(log, registry)
    with log.changed:
        log._topics[LABELLED].partitions.append(Partition())
    assert run(log, registry).state.labelled == [500, 500], "and again before there is anything in it"
    record = orjson.dumps({**RECORD, "features": dict.fromkeys(FEATURES, 1)})
    log.producer().send(OutBatch(LABELLED, [record] * 1500, None, 2))
    loop = run(log, registry)
    assert loop.state.labelled[:2] == [500, 500] and loop.state.labelled[2] > 0
    assert run(log, registry).state == loop.state


def test_the_first_loop_begins_with_the_newest_labels_and_leaves_old_alerts(tmp_path: Path) -> None:
    log, registry = new_log(), new_registry(tmp_path)
    send_rows(log, *rows_of(3000, AFTER, 1))
    send_alert(log, alert_of(100, name="old"))
    send_alert(log, alert_of(2000, name="new"))
    loop = run(log, registry, rows_max=2000, alert_age_ms_max=500_000, frauds_min=10**6)
    assert loop.counts["rows"] == 2000
    assert actions(log) == ["none: it is too old", "retrain: begun"] and names_of(log) == ["declined", "opened"]
    with controller(log, registry, rows_max=2000) as again:
        assert again.state == loop.state
