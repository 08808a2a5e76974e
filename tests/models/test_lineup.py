"""Champion, shadow and canary: who scores which row, and what a bad one may not do."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from features.block import FloatArray, Ids
from models.lineup import CanaryBounds, CanaryGuard, Lineup, halved, in_canary
from models.slot import ModelSlot


class Fake:
    """Scores by a function; stands for a `Serving`."""

    def __init__(self, label: str, function: Any) -> None:
        self.label, self._function = label, function
        self.rows = 0

    def score(self, x: FloatArray) -> tuple[FloatArray, FloatArray]:
        self.rows += len(x)
        raw = np.asarray(self._function(x), np.float64)
        return raw, raw / 10


def same(x: FloatArray) -> FloatArray:
    return x[:, 0].copy()


def broken(x: FloatArray) -> FloatArray:
    raise RuntimeError("no")


KEYS = Ids.of(list(range(20_000))).keys()
X = np.arange(20_000, dtype=np.float64)[:, None]


def test_the_share_of_keys() -> None:
    for share in (0.01, 0.05, 0.5):
        chosen = in_canary(KEYS, share)
        assert chosen.mean() == pytest.approx(share, rel=0.15)
        assert not (in_canary(KEYS, share / 2) & ~chosen).any(), "a smaller share is part of a larger one"
    assert not in_canary(KEYS, 0.0).any() and in_canary(KEYS, 1.0).all()
    texts = Ids.of([f"card-{i}" for i in range(20_000)]).keys()
    assert in_canary(texts, 0.05).mean() == pytest.approx(0.05, rel=0.15)
    both = in_canary(KEYS, 0.1, 2**63 + 12345) & in_canary(KEYS, 0.1, 7)
    assert both.mean() == pytest.approx(0.01, rel=0.3), "another canary has other keys"
    part = in_canary(KEYS, 0.3)
    assert np.array_equal(np.concatenate([in_canary(KEYS[:7], 0.3), in_canary(KEYS[7:], 0.3)]), part)


def test_canary_and_shadow() -> None:
    champion, canary, shadow = Fake("a@1", same), Fake("a@2", lambda x: x[:, 0] + 0.5), Fake("a@3", lambda x: -x[:, 0])
    lineup = Lineup(champion, shadow, canary, 0.1)  # type: ignore[arg-type]
    scored = lineup.score(X, KEYS)
    assert np.array_equal(scored.canary, np.flatnonzero(in_canary(KEYS, 0.1)))
    expected = X[:, 0].copy()
    expected[scored.canary] += 0.5
    assert np.array_equal(scored.raw, expected) and np.array_equal(scored.score, expected / 10)
    assert scored.shadow is not None and np.array_equal(scored.shadow.raw, -X[:, 0])
    assert np.array_equal(scored.shadow.rows, np.arange(len(X)))


def test_raw_scores_and_scores_that_are_one_array() -> None:
    class Identity(Fake):
        """As with a calibration that changes nothing."""

        def score(self, x: FloatArray) -> tuple[FloatArray, FloatArray]:
            raw = same(x)
            return raw, raw

    lineup = Lineup(Identity("a@1", same), None, Fake("a@2", same), 0.5)  # type: ignore[arg-type]
    scored = lineup.score(X, KEYS)
    assert np.array_equal(scored.raw, X[:, 0])
    assert np.array_equal(scored.score[scored.canary], X[scored.canary, 0] / 10)


@pytest.mark.parametrize("bad", [broken, lambda x: np.full(len(x), np.nan)])
def test_a_canary_or_shadow_that_fails_takes_nothing_from_the_champion(bad: Any) -> None:
    guard = CanaryGuard(CanaryBounds(rows_min=100))
    champion = Fake("a@1", same)
    lineup = Lineup(champion, Fake("a@3", broken), Fake("a@2", bad), 0.5, guard)  # type: ignore[arg-type]
    scored = lineup.score(X, KEYS)
    assert np.array_equal(scored.raw, X[:, 0]) and len(scored.canary) == 0
    assert scored.shadow is not None and len(scored.shadow.rows) == len(scored.shadow.raw) == 0
    verdict = guard.verdict()
    assert verdict is not None and "rows failed" in verdict


def test_what_fails_at_some_rows_fails_at_no_others() -> None:
    def picky(x: FloatArray) -> FloatArray:
        if (x[:, 0] % 97 == 3).any():
            raise RuntimeError("no")
        return -x[:, 0]

    x, keys = X[:1000], KEYS[:1000]
    guard = CanaryGuard()
    lineup = Lineup(Fake("a@1", same), Fake("a@3", picky), Fake("a@2", picky), 0.5, guard, 5)  # type: ignore[arg-type]
    scored = lineup.score(x, keys)
    chosen, good = np.flatnonzero(in_canary(keys, 0.5, 5)), np.flatnonzero(x[:, 0] % 97 != 3)
    assert np.array_equal(scored.canary, np.intersect1d(chosen, good)) and 0 < guard.failed == len(
        np.setdiff1d(chosen, good)
    )
    assert scored.shadow is not None and np.array_equal(scored.shadow.rows, good)
    assert np.array_equal(scored.shadow.raw, -x[good, 0])
    for cut in (1, 3, 4, 500):
        parts = lineup.score(x[:cut], keys[:cut]), lineup.score(x[cut:], keys[cut:])
        assert np.array_equal(np.concatenate([part.raw for part in parts]), scored.raw)
        assert np.array_equal(np.concatenate([parts[0].canary, cut + parts[1].canary]), scored.canary)


def test_no_memory_is_no_fault_of_a_row() -> None:
    def work(start: int, stop: int) -> None:
        raise MemoryError

    with pytest.raises(MemoryError):
        halved(work, 9, "a test")


def test_a_canary_within_its_bounds_stays() -> None:
    guard = CanaryGuard(CanaryBounds(error_rate_max=0.01, latency_ratio_max=3.0, rows_min=200, controls_min=2))
    assert guard.count(199, 199) is False and guard.verdict() is None, "too few rows to say anything"
    guard = CanaryGuard(guard.bounds)
    wanted = [guard.count(100, 0) for _ in range(16)]
    assert wanted == [False] * 7 + [True] + [False] * 7 + [True]
    guard.count(10, 10)
    assert guard.verdict() is None
    guard.compare(0.030, 0.001)
    assert guard.verdict() is None, "one comparison says nothing"
    guard.compare(0.001, 0.0094)
    assert guard.verdict() is None
    guard.compare(0.001, 0.0)
    verdict = guard.verdict()
    assert verdict is not None and "times as long" in verdict


def test_the_champion_scores_for_comparison_now_and_then() -> None:
    guard, champion = CanaryGuard(), Fake("a@1", same)
    lineup = Lineup(champion, None, Fake("a@2", same), 0.5, guard)  # type: ignore[arg-type]
    for _ in range(16):
        lineup.score(X[:100], KEYS[:100])
    assert guard.controls == 2 and champion.rows == 1600 + 2 * int(in_canary(KEYS[:100], 0.5).sum())


def test_what_is_in_force_at_which_offset() -> None:
    slot = ModelSlot()
    a, b, c = (Lineup(Fake(name, same)) for name in "abc")  # type: ignore[arg-type]
    assert slot.cuts(0, 50) == [(50, slot.lineup)]
    slot.schedule(0, [(10, a), (20, b), (30, c)])
    assert slot.cuts(0, 15) == [(15, a)] and slot.cuts(0, 20) == [(20, a)] and slot.cuts(1, 20) == [(20, slot.lineup)]
    assert slot.cuts(0, 21) == [(20, a), (21, b)]
    assert slot.cuts(0, 99) == [(20, a), (30, b), (99, c)]
    slot.forget(0)
    assert slot.cuts(0, 99) == [(99, slot.lineup)]
