"""`headrace bench swap`: which rows count as sent during a swap, and what is told of them."""

from __future__ import annotations

import numpy as np
import pytest

from benchmarks.machine import BenchError
from benchmarks.swap import run, swap_figures
from streams.cli import bench


def test_rows_after_a_change_are_during() -> None:
    planned = 100.0 + np.arange(30 * 128) / 128
    changes = np.array([110.0, 120.0])
    took_ms = np.full(len(planned), 10.0)
    took_ms[planned < 105.0] = 5_000.0  # not warm yet: counts nowhere
    took_ms[(planned >= 110.0) & (planned < 112.0)] = 30.0
    figures = swap_figures(planned, took_ms, changes)
    assert figures["swaps"] == 2
    assert figures["during"]["count"] == 4 * 128 and figures["between"]["count"] == 21 * 128
    assert figures["ratio_p99"] == pytest.approx(3.0, rel=0.03)
    assert figures["between"]["latency_ms_max"] == 10.0
    assert f"during 2 swaps: {figures['ratio_p99']} times" in bench._swap_table(figures)[-1]


@pytest.mark.parametrize(("rate", "seconds"), [(0, 40.0), (1_000, 5.0), (1_000, float("nan"))])
def test_too_short_to_swap_is_refused(rate: int, seconds: float) -> None:
    with pytest.raises(BenchError, match="10 s or more"):
        run(rate, seconds)
