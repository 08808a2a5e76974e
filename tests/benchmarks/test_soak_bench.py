"""`headrace bench soak` in seconds, and that it sees what it is there to see."""

from __future__ import annotations

from functools import partial

import numpy as np
import pytest

from benchmarks import soak
from benchmarks.soak import slope
from benchmarks.soak_rows import Expected, Tally
from benchmarks.workload import train
from features.block import IntArray
from streams.cli import bench
from streams.simulator import World
from streams.simulator_stream import stream


def test_a_missing_a_differing_and_an_unexpected_row_are_seen() -> None:
    tally, rows = Tally(), np.arange(300_000, dtype=np.int64)
    vectors = np.stack([np.sin(rows), np.where(rows % 7 == 0, np.nan, rows)], axis=1)
    tally.plan(rows.tolist(), 1.0)
    tally.expect(rows, vectors)
    came = vectors.copy()
    came[5, 0] = np.nextafter(came[5, 0], 9)
    came[[10, 11]] = came[[10, 11], ::-1]
    tally.come(rows[:-3], came[:-3], 1.5)
    assert tally.result() == {"rows": 300_000, "missing": 3, "unexpected": 0, "differing": 3, "repeated": 0}
    tally.come(np.array([7, 8, 8, 400_000]), vectors[[7, 8, 9, 9]], 2.0)
    assert tally.result() == {"rows": 300_000, "missing": 3, "unexpected": 1, "differing": 4, "repeated": 3}
    digest = tally.next_slice()
    assert digest.count == 299_997 and digest.percentile(99) == pytest.approx(500, rel=0.02)
    assert tally.next_slice().count == 0


def test_what_is_expected_does_not_depend_on_the_chunks() -> None:
    found: list[dict[int, bytes]] = []
    for chunk_s in (0.05, 3.0):
        rows: dict[int, bytes] = {}

        def keep(ids: IntArray, matrix: np.ndarray, rows: dict[int, bytes] = rows) -> None:  # type: ignore[type-arg]
            rows.update(zip(ids.tolist(), map(np.ndarray.tobytes, matrix), strict=True))

        expected = Expected(keep)
        for chunk in stream(World(1, start_ms=soak._START_MS, cards=50, terminals=100), 0, rate=100, chunk_s=chunk_s):
            expected.take(chunk.batches())
            if chunk.due_s >= 12:
                break
        expected.finish()
        found.append(rows)
    assert len(found[0]) > 1_000
    common = found[0].keys() & found[1].keys()
    assert len(common) > 1_000 and all(found[0][i] == found[1][i] for i in common)


def test_a_slope_and_its_error() -> None:
    minutes = np.linspace(0, 10, 600)
    noise = np.random.default_rng(1).normal(0, 1, 600)
    by, error = slope(minutes, 100 + 0.5 * minutes + noise)
    assert abs(by - 0.5) < 3 * error and 0.005 < error < 0.05


@pytest.mark.kafka
@pytest.mark.timeout(300)
def test_soak(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(soak, "train", partial(train, rows=20_000, trees=20))
    figures = soak.run(0.1, rate=300, rebalance_s=1.0, partitions=2)
    assert figures["ok"], figures
    assert figures["rows"] > 1_000 and figures["joins"] >= 2 and figures["kills"] >= 1
    assert figures["memory_mb"] > 0 and sum(part["count"] for part in figures["latency"]) > 0
    assert "0 missing, 0 differing" in "\n".join(bench._soak_table(figures))
