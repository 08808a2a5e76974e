"""How fast labels arrive: the share of transactions that have their label, by age.

A life table: at the time of asking, most transactions are younger than the oldest age, so the share at an age is put
together from those that have reached each of the ages before it. (Kaplan and Meier, 1958, in the actuarial form for
fixed intervals: who leaves within an interval counts for half of it.)
"""

from __future__ import annotations

import numpy as np

from features.block import IntArray

__all__ = ["AGES_MS", "Maturity"]

_MINUTE, _HOUR, _DAY = 60_000, 3_600_000, 86_400_000
#: upper ends of the intervals of age; the last one is open
AGES_MS: IntArray = np.array(
    [_MINUTE, 10 * _MINUTE]
    + [hours * _HOUR for hours in (1, 3, 6, 12)]
    + [days * _DAY for days in (1, 2, 3, 4, 5, 6, 7, 8, 10, 12, 14, 17, 21, 25, 30, 45, 60, 90, 120, 180)],
    np.int64,
)

_ARRIVED, _LEFT, _SURVIVED = 0, 1, 2


class Maturity:
    """Counts by interval of age.

    ``table`` (3, intervals) int64: labels that arrived at that age; transactions that were given up at that age; those
    that reached the horizon without a label, in the interval of the horizon.
    """

    def __init__(self, horizon_ms: int) -> None:
        self.horizon_ms = horizon_ms
        self.table: IntArray = np.zeros((3, len(AGES_MS) + 1), np.int64)

    def arrived(self, ages_ms: IntArray) -> None:
        """Labels came at these ages (n,); below 0 counts as 0."""
        self.table[_ARRIVED] += _by_interval(ages_ms)

    def left(self, ages_ms: IntArray) -> None:
        """Transactions were given up without a label at these ages (n,)."""
        self.table[_LEFT] += _by_interval(ages_ms)

    def survived(self, n: int) -> None:
        """So many have reached the horizon without a label."""
        self.table[_SURVIVED, np.searchsorted(AGES_MS, self.horizon_ms)] += n

    def curve(self, open_ages_ms: IntArray) -> list[dict[str, float]]:
        """For each interval up to the horizon: ``age_ms`` its upper end, ``labels`` that arrived in it, ``labelled``
        the share of transactions that have their label by then, ``share`` the same of those that ever get one; NaN
        from where nothing is known on. ``open_ages_ms`` (w,): of those that wait now, how old they are."""
        arrived = self.table[_ARRIVED]
        gone = self.table[_LEFT] + _by_interval(open_ages_ms)
        here = int(arrived.sum() + gone.sum() + self.table[_SURVIVED].sum())
        last = int(np.searchsorted(AGES_MS, self.horizon_ms))
        without, shares = 1.0, []
        for arrived_now, gone_now in zip(arrived.tolist(), gone.tolist(), strict=True):
            exposed = here - gone_now / 2
            # who was given up within the interval may have been so before a label of it could come
            without = without * (1 - min(1.0, arrived_now / exposed)) if exposed > 0 else float("nan")
            shares.append(1 - without)
            here -= arrived_now + gone_now
        shares = shares[: last + 1]
        reached = [share for share in shares if share == share]
        most = reached[-1] if reached and reached[-1] > 0 else float("nan")
        ages = [*AGES_MS[:last].tolist(), self.horizon_ms]
        return [
            {"age_ms": age, "labels": count, "labelled": share, "share": share / most}
            for age, count, share in zip(ages, arrived.tolist(), shares, strict=False)
        ]


def _by_interval(ages_ms: IntArray) -> IntArray:
    """(intervals,) how many of the ages are in each; the upper end belongs to its interval."""
    counts: IntArray = np.bincount(np.searchsorted(AGES_MS, ages_ms), minlength=len(AGES_MS) + 1)
    return counts
