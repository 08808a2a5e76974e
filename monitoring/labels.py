"""The bounded join of what was scored with labels that come later: pure, in the order of one log.

A *vector* (what was scored, known here by its key, event time and a place where its owner keeps the rest) waits for its
label until its *horizon*: event time + ``horizon_ms``. The rules, each counted:

- **First wins** (``conflicts="first"``): the first label joins at once; later ones of the id are ``labels_repeated``
  or, where they say otherwise, ``labels_contradicting``, and change nothing. **Last wins** (``"last"``): the label of
  the newest label time (of the same time, the later in the log) joins when the horizon is passed.
- A label later than the horizon counts for nothing (``labels_after_horizon``), whether it comes before its vector or
  after it.
- A label without its vector waits for it, until its own label time + ``horizon_ms``: then it is ``labels_unknown``.
- A vector without a label at its horizon is ``unlabelled``; with ``negatives="horizon"``, for feeds that name frauds
  only, it is legitimate (``joined_by_horizon``), with the horizon as label time.
- An id is remembered until its horizon; a second vector of it is ``vectors_repeated`` and not joined.
- At most ``rows_max`` ids with a vector are kept, and as many labels without. Beyond it the oldest by time go, down to
  15/16 of the bound: ``released`` vectors that were still without a label (one that was decided by ``"last"`` joins),
  ``forgotten`` ids that were joined already, ``labels_dropped``.

Everything is joined at most once. What is due is looked for when the time has moved on by 1/720 of the horizon (an hour
of thirty days), in the order of time and arrival.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple, Self

import numpy as np
import numpy.typing as npt

from features.arrays import Arrays, check_like
from features.block import BoolArray, IntArray, KeyArray
from features.kernel import own
from features.memory import GrowingArray, larger
from features.state import NO_TIME, Table, table_capacity, table_rebuild
from monitoring.label_kernels import (
    ARRIVAL,
    BY_HORIZON,
    BY_LABEL,
    COUNTS,
    DROPPED,
    FORGOTTEN,
    FREE,
    FREED,
    JOINED,
    KIND,
    LABEL,
    LABEL_ONLY,
    LABEL_SENT,
    LABEL_TIME,
    N_LABELS,
    N_VECTORS,
    NO_LABEL,
    PLACE,
    RELEASED,
    TIME,
    UNKNOWN,
    UNLABELLED,
    USED,
    WAITING,
    WIDTH,
    Store,
    remove,
    take_labels,
    take_vectors,
)
from monitoring.maturity import Maturity

__all__ = ["COUNTS", "JoinSettings", "Joined", "LabelJoin"]

_CAPACITY_MIN = 64
#: how often in a horizon it is looked for what is due
_LOOKS = 720
#: at the bound this part of it is given up at once, so that to look for the oldest is rare
_CLEARED = 16


@dataclass(frozen=True, slots=True)
class JoinSettings:
    """What the outcome depends on besides the log."""

    horizon_ms: int = 30 * 86_400_000
    rows_max: int = 1_000_000
    negatives: Literal["labels", "horizon"] = "labels"
    conflicts: Literal["first", "last"] = "first"

    def __post_init__(self) -> None:
        for name in ("horizon_ms", "rows_max"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} is {getattr(self, name)}; give 1 or more")
        for name, known in (("negatives", ("labels", "horizon")), ("conflicts", ("first", "last"))):
            if getattr(self, name) not in known:
                raise ValueError(f"{name} is {getattr(self, name)!r}; give one of {', '.join(known)}")

    @property
    def look_ms(self) -> int:
        """The time between two looks for what is due."""
        return max(1, self.horizon_ms // _LOOKS)

    @property
    def at_horizon(self) -> bool:
        """Whether some vectors get their label at their horizon only."""
        return self.negatives == "horizon" or self.conflicts == "last"


class Joined(NamedTuple):
    """m vectors that have their label, in order: place, label (0 or 1), its time, when it was sent (`NO_TIME` where it
    is by the horizon), each (m,) int64; and the places (f,) of vectors that are given up."""

    places: IntArray
    labels: IntArray
    label_times: IntArray
    label_sent: IntArray
    freed: IntArray


class LabelJoin:
    """The state of the join on one partition. ``keys`` are (n, 2) uint64, see `features.block.Ids.keys`."""

    def __init__(self, settings: JoinSettings) -> None:
        self.settings = settings
        self.maturity = Maturity(settings.horizon_ms)
        #: how far the log is, as `advance` was told
        self.time_ms = NO_TIME
        self._counts = np.zeros(len(COUNTS), np.int64)
        self._meta = np.zeros(5, np.int64)
        self._table: Table = np.zeros((_CAPACITY_MIN, 4), np.uint64)
        self._keys = GrowingArray((_CAPACITY_MIN, 2), np.uint64)
        self._entries = GrowingArray((_CAPACITY_MIN, WIDTH), np.int64)
        self._free = GrowingArray((_CAPACITY_MIN,), np.int64)

    @property
    def counts(self) -> dict[str, int]:
        """Each of `COUNTS`, and how many are kept: ``waiting`` vectors, ``remembered`` joined ids, ``labels_waiting``.

        ``vectors`` = joined + unlabelled + released + repeated + waiting.
        """
        waiting = int(np.count_nonzero(self._live()[:, KIND] == WAITING))
        n_vectors, n_labels = self._meta[[N_VECTORS, N_LABELS]].tolist()
        kept = {"waiting": waiting, "remembered": n_vectors - waiting, "labels_waiting": n_labels}
        return dict(zip(COUNTS, self._counts.tolist(), strict=True)) | kept

    @property
    def nbytes(self) -> int:
        arrays = (self._table, self._keys.array, self._entries.array, self._free.array)
        return sum(array.nbytes for array in arrays)

    def vectors(self, keys: KeyArray, times: IntArray, places: IntArray) -> Joined:
        """Vectors of one message in order: ids, event times (n,) int64 ms, and places (n,) int64 that mean nothing
        here."""
        n = len(times)
        joined, freed = np.empty(n, np.int64), np.empty(n, np.int64)
        n_joined, n_freed = take_vectors(
            self._store(n),
            *self._policy,
            own(keys, np.uint64),
            own(times, np.int64),
            own(places, np.int64),
            joined,
            freed,
        )
        return self._with_cleared(self._joined(joined[:n_joined], freed[:n_freed]))

    def labels(self, keys: KeyArray, times: IntArray, labels: IntArray, sent: IntArray) -> Joined:
        """Labels of one message in order: ids of transactions, label times (n,) ms, labels (n,) 0 or 1, and when they
        were sent (n,) ms."""
        n = len(times)
        joined = np.empty(n, np.int64)
        ids, times = own(keys, np.uint64), own(times, np.int64)
        labels, sent = own(labels, np.int64), own(sent, np.int64)
        n_joined = take_labels(self._store(n), *self._policy, ids, times, labels, sent, joined)
        return self._with_cleared(self._joined(joined[:n_joined], _NONE))

    def advance(self, time_ms: int) -> Joined | None:
        """All that has a time below ``time_ms`` was in the log, as far as its senders know: what is due by that. None:
        nothing was looked for. The time never goes back."""
        step = self.settings.look_ms
        before, self.time_ms = self.time_ms, max(self.time_ms, time_ms)
        if before // step == self.time_ms // step:
            return None
        live = self._live()
        due = np.flatnonzero((live[:, KIND] != FREE) & (live[:, TIME] <= self.time_ms - self.settings.horizon_ms))
        return self._end(due, at_horizon=True)

    def to_arrays(self) -> Arrays:
        """Equal for equal logs, however they were cut: in order of arrival ``keys`` (m, 2), ``entries`` (m, 7) without
        the places, and ``counts``, ``time`` (1,), ``maturity`` see `Maturity.table`.

        Whoever keeps what lies at the places writes it in the order of `places`, and gives `from_arrays` new ones.
        """
        slots = self._in_order()
        entries = self._entries.array[slots]
        entries[:, [PLACE, ARRIVAL]] = 0
        known = entries[:, LABEL] != NO_LABEL
        entries[~known, LABEL_TIME] = entries[~known, LABEL_SENT] = 0
        return {
            "keys": self._keys.array[slots],
            "entries": entries,
            "counts": self._counts.copy(),
            "time": np.array([self.time_ms], np.int64),
            "maturity": self.maturity.table.copy(),
        }

    @property
    def places(self) -> IntArray:
        """(w,) places of the vectors that wait, in order of arrival."""
        slots = self._in_order()
        entries = self._entries.array[slots]
        waiting: IntArray = entries[entries[:, KIND] == WAITING, PLACE]
        return waiting

    @classmethod
    def from_arrays(cls, settings: JoinSettings, arrays: Mapping[str, npt.NDArray[Any]], places: IntArray) -> Self:
        """The reverse of `to_arrays`; ``places`` (w,) of the vectors that wait. StateError: of another kind."""
        join = cls(settings)
        check_like(arrays, join.to_arrays(), "the label join")
        entries = arrays["entries"].copy()
        n = len(entries)
        entries[entries[:, KIND] == WAITING, PLACE] = places
        entries[:, ARRIVAL] = np.arange(n)
        store = join._store(n)
        store.keys[:n] = arrays["keys"]
        store.entries[:n] = entries
        slots = np.arange(1, n + 1).astype(np.uint64)
        loaded = np.column_stack([arrays["keys"], slots, np.zeros(n, np.uint64)])
        table_rebuild(own(loaded, np.uint64), store.table)
        labels = int(np.count_nonzero(entries[:, KIND] == LABEL_ONLY))
        join._meta[:] = (n, 0, n, n - labels, labels)
        join._counts[:] = arrays["counts"]
        join.maturity.table[:] = arrays["maturity"]
        join.time_ms = int(arrays["time"][0])
        return join

    def curve(self) -> list[dict[str, float]]:
        """See `Maturity.curve`, with the vectors that wait."""
        return self.curve_of([self])

    @classmethod
    def curve_of(cls, joins: Sequence[LabelJoin]) -> list[dict[str, float]]:
        """The curve of several partitions, at least one, together."""
        whole = Maturity(joins[0].settings.horizon_ms)
        ages = []
        for join in joins:
            whole.table += join.maturity.table
            live = join._live()
            waiting = live[(live[:, KIND] == WAITING) & (live[:, LABEL] == NO_LABEL)]
            ages.append(join.time_ms - waiting[:, TIME])
        return whole.curve(np.concatenate(ages))

    def _store(self, more: int = 0) -> Store:
        """What the kernels work on, with room for so many more entries."""
        used, freed = self._meta[[USED, FREED]].tolist()
        rows = used + max(0, more - freed)
        if rows > len(self._entries.array):
            rows = max(rows, larger(len(self._entries.array), 8 * WIDTH))
            for growing in (self._keys, self._entries, self._free):
                growing.grow(rows)
        capacity = table_capacity(used - freed + more + 1)
        if capacity > len(self._table):
            grown = np.zeros((capacity, 4), np.uint64)
            table_rebuild(self._table, grown)
            self._table = grown
        return Store(self._table, self._keys.array, self._entries.array, self._free.array, self._meta, self._counts)

    @property
    def _policy(self) -> tuple[int, bool]:
        """The horizon, and whether the first label decides."""
        return self.settings.horizon_ms, self.settings.conflicts == "first"

    def _live(self) -> IntArray:
        """The entries of all slots that were ever used."""
        live: IntArray = self._entries.array[: self._meta[USED]]
        return live

    def _in_order(self) -> IntArray:
        """Slots in use, in order of arrival."""
        live = self._live()
        slots = np.flatnonzero(live[:, KIND] != FREE)
        return slots[np.argsort(live[slots, ARRIVAL])]

    def _joined(self, slots: IntArray, freed: IntArray) -> Joined:
        """These have their label; by now they are remembered only."""
        entries = self._entries.array[slots]
        self._counts[BY_LABEL] += len(slots)
        self.maturity.arrived(entries[:, LABEL_TIME] - entries[:, TIME])
        return _of_entries(entries, freed)

    def _with_cleared(self, outcome: Joined) -> Joined:
        """With what goes because of the bound."""
        for count, is_label in ((N_VECTORS, False), (N_LABELS, True)):
            excess = int(self._meta[count]) - self.settings.rows_max
            if excess > 0:
                live = self._live()
                kind = live[:, KIND]
                slots = np.flatnonzero(kind == LABEL_ONLY if is_label else (kind == WAITING) | (kind == JOINED))
                order = np.lexsort((live[slots, ARRIVAL], live[slots, TIME]))
                oldest = slots[order[: excess + self.settings.rows_max // _CLEARED]]
                outcome = _both(outcome, self._end(oldest, at_horizon=False))
        return outcome

    def _end(self, slots: IntArray, *, at_horizon: bool) -> Joined:
        """Takes these out: what they are by now, in order of time and arrival."""
        entries = self._entries.array[slots]
        order = np.lexsort((entries[:, ARRIVAL], entries[:, TIME]))
        slots, entries = slots[order], entries[order]
        kind, labelled = entries[:, KIND], entries[:, LABEL] != NO_LABEL
        decided: BoolArray = (kind == WAITING) & labelled
        open_: BoolArray = (kind == WAITING) & ~labelled
        n_open, n_labels = int(np.count_nonzero(open_)), int(np.count_nonzero(kind == LABEL_ONLY))
        self._counts[BY_LABEL] += np.count_nonzero(decided)
        self.maturity.arrived((entries[:, LABEL_TIME] - entries[:, TIME])[decided])
        self._counts[UNKNOWN if at_horizon else DROPPED] += n_labels
        by_horizon = at_horizon and self.settings.negatives == "horizon"
        if by_horizon:
            entries[open_, LABEL] = 0
            entries[open_, LABEL_TIME] = entries[open_, TIME] + self.settings.horizon_ms
            entries[open_, LABEL_SENT] = NO_TIME
        self._counts[BY_HORIZON if by_horizon else UNLABELLED if at_horizon else RELEASED] += n_open
        if at_horizon:
            self.maturity.survived(n_open)
        else:
            self._counts[FORGOTTEN] += np.count_nonzero(kind == JOINED)
            self.maturity.left(self.time_ms - entries[open_, TIME])
        remove(self._store(), slots)
        if by_horizon:
            return _of_entries(entries[decided | open_], _NONE)
        return _of_entries(entries[decided], entries[open_, PLACE])


_NONE: IntArray = np.empty(0, np.int64)


def _of_entries(entries: IntArray, freed: IntArray) -> Joined:
    return Joined(entries[:, PLACE], entries[:, LABEL], entries[:, LABEL_TIME], entries[:, LABEL_SENT], freed.copy())


def _both(a: Joined, b: Joined) -> Joined:
    return Joined(*(np.concatenate(pair) for pair in zip(a, b, strict=True)))
