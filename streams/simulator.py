"""The seeded card-fraud world of the demo and the tests: cards, terminals, three kinds of fraud, late labels.

Every day of the world is a pure function of (seed, day), so history, stream and any cut of either agree
to the bit. Nothing here reads a clock: the world's first midnight is passed in. After the simulator of
the card-fraud handbook (Le Borgne et al., https://fraud-detection-handbook.github.io), with per-card
thresholds, a day/night rhythm, bursts on stolen cards and labels that come when they come.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from enum import IntEnum
from typing import Any

import numpy as np
import numpy.typing as npt

from features.block import FloatArray, IntArray
from streams.errors import ConfigError

__all__ = ["DAY_MS", "Columns", "DayRows", "FraudKind", "World", "midnight"]

DAY_MS = 86_400_000
HOUR_MS = 3_600_000

#: column name -> (n,) array
Columns = dict[str, npt.NDArray[Any]]

# One random stream per (purpose, day): adding draws to one purpose never moves another.
_WORLD, _COUNT, _ROWS, _LABELS, _CARD_THEFTS, _TERMINAL_BREAKS = range(6)
#: keeps the days before day 0, whose campaigns still run on day 0, non-negative for the seed
_DAY_OFFSET = 1 << 20

_ACTIVITY_PER_DAY = (0.2, 3.8)
_ACTIVITY_MEAN = sum(_ACTIVITY_PER_DAY) / 2
#: Monday first; mean 1
_WEEK = np.array([0.95, 0.95, 0.95, 1.0, 1.1, 1.15, 0.9])
#: relative activity by UTC hour
_HOURS = np.array([3, 2, 1, 1, 1, 2, 4, 7, 9, 10, 10, 11, 13, 12, 10, 10, 11, 13, 14, 12, 9, 7, 6, 4], dtype=np.float64)
_TERMINALS_PER_CELL = 12

_LARGE_SHARE = 0.0012
_TERMINAL_BREAKS_PER_DAY = 0.0002  # per terminal
_TERMINAL_BREAK_DAYS = 28
_CARD_THEFTS_PER_DAY = 0.0006  # per card
_CARD_THEFT_DAYS = 14
_THEFT_SHARE, _THEFT_FACTOR = 1 / 3, 5
_BURST_ROWS = (4, 9)
_BURST_MS = 40 * 60_000
#: no label comes later than this many times the usual delay
LABEL_DELAY_MAX_FACTOR = 3


class FraudKind(IntEnum):
    """Why a transaction is fraudulent."""

    NONE = 0
    LARGE_AMOUNT = 1
    TERMINAL = 2
    CARD = 3


@dataclass(frozen=True, slots=True)
class DayRows:
    """One day's transactions in event order; every column is (n,) int64, times in ms UTC, ``kind`` a `FraudKind`."""

    transaction_id: IntArray
    event_time: IntArray
    card_id: IntArray
    terminal_id: IntArray
    cents: IntArray
    kind: IntArray

    def __len__(self) -> int:
        return len(self.transaction_id)


def midnight(now_ms: int, days_before: int = 0) -> int:
    """The UTC midnight at or before ``now_ms``, less whole days: a start for `World`.

    A worker dead-letters an event_time more than an hour after the time of sending, so a world that is
    streamed faster than life starts early enough for its last day to lie in the past.
    """
    return now_ms - now_ms % DAY_MS - days_before * DAY_MS


class World:
    """A population of cards and terminals and everything that happens to it, from ``start_ms`` on.

    ``start_ms`` is a UTC midnight, ms since the epoch. ``label_delay_ms`` is the usual delay of a label:
    of all labels about 80 % come just after it, 10 % earlier and 10 % up to three times as late. Transactions are
    numbered from ``first_transaction_id`` on. Raises `ConfigError` for values no world can have.
    """

    def __init__(
        self,
        seed: int,
        *,
        start_ms: int,
        cards: int = 5_000,
        terminals: int = 10_000,
        label_delay_ms: int = 7 * DAY_MS,
        first_transaction_id: int = 0,
    ) -> None:
        for name, value, least in (
            ("seed", seed, 0),
            ("start_ms", start_ms, 0),
            ("cards", cards, 1),
            ("terminals", terminals, 1),
            ("label_delay_ms", label_delay_ms, 1),
            ("first_transaction_id", first_transaction_id, 0),
        ):
            if value < least:
                raise ConfigError(f"{name}={value}: must be at least {least}; give a larger value")
        if start_ms % DAY_MS:
            raise ConfigError(f"start_ms={start_ms}: not a UTC midnight; use simulator.midnight({start_ms})")
        self.seed, self.start_ms, self.cards, self.terminals = seed, start_ms, cards, terminals
        self.label_delay_ms = label_delay_ms
        self._first_ids = [first_transaction_id]
        self._cases: dict[tuple[int, int], IntArray] = {}
        self._make_population()

    @classmethod
    def for_pace(
        cls,
        seed: int,
        *,
        start_ms: int,
        rate: float,
        speed_up: float,
        label_delay_ms: int = 7 * DAY_MS,
        first_transaction_id: int = 0,
    ) -> World:
        """A world with as many cards as give ``rate`` transactions/s of wall time when its event time runs
        ``speed_up`` times faster than the clock; two terminals a card."""
        cards = round(rate * 86_400 / (speed_up * _ACTIVITY_MEAN))
        return cls(
            seed,
            start_ms=start_ms,
            cards=cards,
            terminals=2 * cards,
            label_delay_ms=label_delay_ms,
            first_transaction_id=first_transaction_id,
        )

    @property
    def rows_per_day(self) -> float:
        """Expected transactions per day, bursts left out."""
        return float(self._activity.sum())

    def time_of(self, day: int) -> int:
        """Midnight at which ``day`` begins, ms."""
        return self.start_ms + day * DAY_MS

    def day(self, day: int) -> DayRows:
        """All transactions of ``day`` (0 is the first), sorted by event_time; ids go on from the day before."""
        first_id = self.first_id(day)
        card, in_day, terminal, cents, kind = self._ordinary(day)
        theft_cards, burst = self._burst(day)
        broken = self._active(_TERMINAL_BREAKS, day)
        kind[broken[terminal] & (kind == FraudKind.NONE)] = FraudKind.TERMINAL
        card = np.concatenate([card, theft_cards])
        in_day = np.concatenate([in_day, burst[0]])
        order = np.argsort(in_day, kind="stable")
        if len(self._first_ids) == day + 1:
            self._first_ids.append(first_id + len(order))
        return DayRows(
            transaction_id=np.arange(first_id, first_id + len(order), dtype=np.int64),
            event_time=self.time_of(day) + in_day[order],
            card_id=card[order],
            terminal_id=np.concatenate([terminal, burst[1]])[order],
            cents=np.concatenate([cents, burst[2]])[order],
            kind=np.concatenate([kind, np.full(len(theft_cards), FraudKind.CARD, np.int64)])[order],
        )

    def label_times(self, day: int, rows: DayRows, label_delay_ms: int | None = None) -> IntArray:
        """(n,) int64 ms: when each label of ``day`` comes; a shorter delay keeps the shape of the distribution."""
        rng = self.rng(_LABELS, day)
        which, within = rng.random(len(rows)), rng.random(len(rows))
        factor = np.where(
            which < 0.8,
            1.0 + 0.05 * within,
            np.where(which < 0.9, 0.1 + 0.9 * within, 1.0 + (LABEL_DELAY_MAX_FACTOR - 1) * within * within),
        )
        delay = (factor * (label_delay_ms or self.label_delay_ms)).astype(np.int64)
        return rows.event_time + np.maximum(delay, 1)

    def history(self, days: int) -> tuple[Columns, Columns]:
        """The first ``days`` days: (transactions, labels) with the contract's columns.

        Transactions are sorted by event_time, with transaction_id 0, 1, 2 ... in order and ``amount`` float64 in whole
        cents. Labels, one per transaction, are sorted by (label_time, transaction_id). Those with
        label_time >= ``time_of(days)`` are not known at the end of the history: `streams.simulator_stream.stream`
        sends them when they are due.
        """
        if days < 1:
            raise ConfigError(f"days={days}: a history has at least one day; give days=1 or more")
        parts = [self.day(d) for d in range(days)]
        label_time = np.concatenate([self.label_times(d, rows) for d, rows in enumerate(parts)])
        kind = np.concatenate([p.kind for p in parts])
        transactions: Columns = {
            name: np.concatenate([getattr(p, name) for p in parts])
            for name in ("transaction_id", "event_time", "card_id", "terminal_id")
        }
        transactions["amount"] = np.concatenate([p.cents for p in parts]) / 100.0
        order = np.argsort(label_time, kind="stable")
        labels: Columns = {
            "transaction_id": transactions["transaction_id"][order],
            "label_time": label_time[order],
            "is_fraud": (kind[order] != FraudKind.NONE).astype(np.int64),
        }
        return transactions, labels

    def first_id(self, day: int) -> int:
        """The transaction_id of the first transaction of ``day``."""
        while len(self._first_ids) <= day:
            previous = len(self._first_ids) - 1
            rows = int(self._counts(previous).sum()) + len(self._burst(previous)[0])
            self._first_ids.append(self._first_ids[-1] + rows)
        return self._first_ids[day]

    def rng(self, purpose: int, day: int = 0) -> np.random.Generator:
        """The random stream of one purpose and day, independent of all others."""
        return np.random.Generator(np.random.PCG64(np.random.SeedSequence([self.seed, purpose, day + _DAY_OFFSET])))

    def _make_population(self) -> None:
        """Homes and positions on the unit square; terminals in a grid of cells, so that the terminals around a home
        are three runs of the cell order, one a grid row, and a visit costs no search."""
        rng = self.rng(_WORLD)
        side = max(1, int(math.sqrt(self.terminals / _TERMINALS_PER_CELL)))
        home, position = rng.random((self.cards, 2)), rng.random((self.terminals, 2))
        cell = (position[:, 1] * side).astype(np.int64) * side + (position[:, 0] * side).astype(np.int64)
        self._by_cell = np.argsort(cell, kind="stable")
        begin = np.searchsorted(cell[self._by_cell], np.arange(side * side + 1))
        x, y = ((home * side).astype(np.int64)).T
        left, right = np.maximum(x - 1, 0), np.minimum(x + 1, side - 1)
        grid_rows = y[:, None] + np.array([-1, 0, 1])
        inside = (grid_rows >= 0) & (grid_rows < side)
        base = np.where(inside, grid_rows, 0) * side
        self._run_begin = begin[base + left[:, None]]
        lengths = np.where(inside, begin[base + right[:, None] + 1] - self._run_begin, 0)
        # A home with no terminal around (tiny worlds) goes to any terminal.
        lonely = lengths.sum(axis=1) == 0
        self._run_begin[lonely, 0], lengths[lonely, 0] = 0, self.terminals
        self._run_end = np.cumsum(lengths, axis=1)

        self._activity = rng.uniform(*_ACTIVITY_PER_DAY, self.cards)
        self._shift_ms = rng.normal(0.0, 1.5 * HOUR_MS, self.cards)
        mean_cents = rng.uniform(500.0, 10_000.0, self.cards)
        spread = rng.uniform(0.3, 0.7, self.cards)  # std / mean
        self._shape = 1.0 / (spread * spread)
        self._scale_cents = mean_cents / self._shape
        self._threshold_cents = mean_cents * (1.0 + 5.0 * spread)
        self._rhythm = np.concatenate([[0.0], np.cumsum(_HOURS) / _HOURS.sum()])

    def _counts(self, day: int) -> IntArray:
        """(cards,) int64: how many ordinary transactions each card makes on ``day``."""
        weekday = (self.time_of(day) // DAY_MS + 3) % 7  # the epoch was a Thursday
        counts: IntArray = self.rng(_COUNT, day).poisson(self._activity * _WEEK[weekday])
        return counts

    def _ordinary(self, day: int) -> tuple[IntArray, IntArray, IntArray, IntArray, IntArray]:
        """Ordinary transactions of ``day`` by card, large amounts and stolen cards' share included: (card, ms in day,
        terminal, cents, kind)."""
        rng = self.rng(_ROWS, day)
        card = np.repeat(np.arange(self.cards), self._counts(day))
        n = len(card)
        hour_ms = np.interp(rng.random(n), self._rhythm, np.arange(25) * float(HOUR_MS))
        in_day = (hour_ms + self._shift_ms[card]).astype(np.int64) % DAY_MS
        terminal = self._visit(card, rng.random(n))
        threshold = self._threshold_cents[card]
        amount = np.minimum(rng.standard_gamma(self._shape[card]) * self._scale_cents[card], threshold)
        kind = np.zeros(n, np.int64)

        large = np.flatnonzero(rng.random(n) < _LARGE_SHARE)
        amount[large] = threshold[large] * rng.uniform(1.05, 3.0, len(large))
        kind[large] = FraudKind.LARGE_AMOUNT
        stolen = np.flatnonzero(self._active(_CARD_THEFTS, day)[card])
        stolen = stolen[rng.random(len(stolen)) < _THEFT_SHARE]
        stolen = stolen[kind[stolen] == FraudKind.NONE]
        amount[stolen] *= _THEFT_FACTOR
        kind[stolen] = FraudKind.CARD
        return card, in_day, terminal, _whole_cents(amount), kind

    def _burst(self, day: int) -> tuple[IntArray, tuple[IntArray, IntArray, IntArray]]:
        """The thief's first spree, anywhere on the map, for cards stolen on ``day``: card, (ms in day, terminal,
        cents)."""
        rng = self.rng(_CARD_THEFTS, day)
        cards = self._new_cases(rng, _CARD_THEFTS)
        rows = rng.integers(_BURST_ROWS[0], _BURST_ROWS[1] + 1, len(cards))
        begin = np.repeat(rng.integers(0, DAY_MS - _BURST_MS, len(cards)), rows)
        card = np.repeat(cards, rows)
        n = len(card)
        in_day = begin + rng.integers(0, _BURST_MS, n)
        amount = rng.standard_gamma(self._shape[card]) * self._scale_cents[card] * rng.uniform(1.0, _THEFT_FACTOR, n)
        return card, (in_day, rng.integers(0, self.terminals, n), _whole_cents(amount))

    def _visit(self, card: IntArray, choice: FloatArray) -> IntArray:
        """The terminal near each card's home that ``choice`` in [0, 1) picks."""
        end = self._run_end[card]
        pick = (choice * end[:, 2]).astype(np.int64)
        run = (pick >= end[:, 0]).astype(np.int64) + (pick >= end[:, 1])
        before = np.where(run == 0, 0, self._run_end[card, np.maximum(run - 1, 0)])
        terminal: IntArray = self._by_cell[self._run_begin[card, run] + pick - before]
        return terminal

    def _new_cases(self, rng: np.random.Generator, purpose: int) -> IntArray:
        """Ids compromised on a day: the first draws of that day's stream of ``purpose``."""
        size, rate = (
            (self.cards, _CARD_THEFTS_PER_DAY)
            if purpose == _CARD_THEFTS
            else (self.terminals, _TERMINAL_BREAKS_PER_DAY)
        )
        return rng.integers(0, size, rng.poisson(size * rate))

    def _active(self, purpose: int, day: int) -> npt.NDArray[np.bool_]:
        """Mask over cards or terminals: compromised on ``day``, campaigns that began before day 0 included."""
        size, length = (
            (self.cards, _CARD_THEFT_DAYS) if purpose == _CARD_THEFTS else (self.terminals, _TERMINAL_BREAK_DAYS)
        )
        mask = np.zeros(size, np.bool_)
        for began in range(day - length + 1, day + 1):
            if (purpose, began) not in self._cases:
                self._cases[purpose, began] = self._new_cases(self.rng(purpose, began), purpose)
            mask[self._cases[purpose, began]] = True
        return mask


def _whole_cents(amount: FloatArray) -> IntArray:
    return np.maximum(np.rint(amount), 1.0).astype(np.int64)
