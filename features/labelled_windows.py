"""Windows of one entity in one partition, with labels: counts, sums, means and risks."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from features import labelled
from features.arrays import Arrays, prefixed, under
from features.block import Block, BoolArray, FloatArray, IntArray, KeyArray
from features.declare import WindowFeature
from features.entity_windows import EntityWindows
from features.fifo import Fifo
from features.kernel import own
from features.memory import zeros
from features.plan import LATENESS_MS, StateError, key_name
from features.rings import HEAD, RingPool
from features.state import NO_TIME, Table, live_places, table_rebuild, table_sweep
from features.windows import Rows

__all__ = ["LabelledWindows"]

#: before the names of the arrays of the labels that wait for their transaction
_WAITING = "waiting_"
#: places of the transactions' table that are swept per row, each of which adds one
_STEPS_PER_ROW = 4


class LabelledWindows(EntityWindows):
    """Windows with risks: rows and the labels of earlier rows, interleaved in log order.

    A positive label counts for a row at t if it came earlier in the log and its label_time <= t; it finds its row by
    transaction id. The first positive label of a transaction counts. A positive label that comes before its
    transaction waits for it, until stream time passes it by the state's horizon or ``waiting_max`` are waiting (then
    the oldest is dropped, counted in `waiting_forced`).
    """

    def __init__(
        self,
        features: Sequence[WindowFeature],
        *,
        allowed_lateness_ms: int = LATENESS_MS,
        waiting_max: int = 1_000_000,
        bytes_max: int | None = None,
    ) -> None:
        super().__init__(features, allowed_lateness_ms=allowed_lateness_ms)
        if waiting_max < 1:
            raise ValueError(f"waiting_max is {waiting_max}; at least one label must be able to wait: give 1 or more")
        self.waiting_max = waiting_max
        self._frauds = RingPool(labelled.FRAUD_WIDTH, self._plan.hints)
        self._labels = RingPool(labelled.LABEL_WIDTH, 2)
        self._transactions: Table = zeros((64, 4), np.uint64)
        self._hand = 0
        self._counters = np.zeros(4, np.int64)
        self._waiting = Fifo(history=False)
        self.bytes_max = bytes_max

    def _check(self) -> None:
        """Every aggregate is possible here."""

    def _pools(self) -> tuple[RingPool, ...]:
        return (self._events, self._frauds, self._labels)

    @property
    def nbytes(self) -> int:
        return super().nbytes + self._transactions.nbytes + self._waiting.nbytes

    @property
    def labels_repeated(self) -> int:
        """Labels that said again what was known."""
        return int(self._counters[labelled.REPEATED])

    @property
    def labels_contradicting(self) -> int:
        """Labels that said the opposite of an earlier one."""
        return int(self._counters[labelled.CONTRADICTED])

    @property
    def labels_unknown(self) -> int:
        """Labels that came when their transaction was not known: the positive ones wait for it."""
        return int(self._counters[labelled.UNKNOWN])

    @property
    def waiting_forced(self) -> int:
        """Waiting labels dropped because of ``waiting_max``."""
        return self._waiting.forced

    def process(
        self, block: Block, labels: Block | None = None, kinds: BoolArray | None = None, *, wanted: bool = True
    ) -> tuple[FloatArray, BoolArray]:
        """Features (n, k) and late mask (n,) of the block's n rows; labels become part of the state. Where they are not
        ``wanted`` no features are computed, (n, 0): the state is the same.

        ``labels`` has ids ``transaction_id`` and columns ``label_time``, ``is_fraud``. ``kinds`` (rows + labels,) bool
        is the order of both in the log, True = the next label (see `interleave`); without it labels come first.
        """
        keys, times, values = self._columns(block)
        transactions = block.ids["transaction_id"].keys()
        if labels is None:
            return self.process_ops(keys, times, values, transactions, wanted=wanted)
        return self.process_ops(
            keys,
            times,
            values,
            transactions,
            labels.ids["transaction_id"].keys(),
            labels.columns["label_time"].astype(np.int64, copy=False),
            labels.columns["is_fraud"] != 0,
            kinds,
            wanted=wanted,
        )

    def process_ops(
        self,
        keys: KeyArray,
        times: IntArray,
        values: FloatArray,
        transactions: KeyArray,
        label_keys: KeyArray | None = None,
        label_times: IntArray | None = None,
        positive: BoolArray | None = None,
        kinds: BoolArray | None = None,
        *,
        wanted: bool = True,
    ) -> tuple[FloatArray, BoolArray]:
        """`process` for bare columns: n rows (shapes (n, 2), (n,), (fields, n), (n, 2)) and m labels."""
        n = len(times)
        if label_keys is None or label_times is None or positive is None:
            label_keys, label_times = np.empty((0, 2), np.uint64), np.empty(0, np.int64)
            positive = np.empty(0, np.bool_)
        m = len(label_times)
        if kinds is None:
            kinds = np.arange(n + m) < m
        if len(kinds) != n + m or np.count_nonzero(kinds) != m:
            raise StateError(
                f"kinds has {np.count_nonzero(kinds)} labels of {len(kinds)} ops, but {m} labels and {n} rows were "
                "given; make it with interleave(..)"
            )
        keys, times, values = own(keys, np.uint64), own(times, np.int64), own(values, np.float64)
        transactions, label_keys = own(transactions, np.uint64), own(label_keys, np.uint64)
        label_times, positive, kinds = own(label_times, np.int64), own(positive, np.bool_), own(kinds, np.bool_)
        plan, out = self._asked(n, wanted)
        cursor = np.array([0, 0, 0, self._slots.stream_time_ms], np.int64)
        rows = Rows(np.full(n, -1), np.empty(n, np.bool_), times, values)  # -1: not assigned yet, not to be looked at
        given = labelled.Labels(label_keys, label_times, positive)
        assigned, ready = 0, kinds[:0]
        while len(ready) < n + m:
            assigned = self._assign(keys, rows, assigned)
            ready = kinds if assigned == n else kinds[: np.flatnonzero(~kinds)[assigned]]
            while need := labelled.labelled_ops(
                self._store(), plan, ready, rows, transactions, given, self.waiting_max, cursor, out
            ):
                if not self._grow(need):
                    self._need_room_for_op(kinds, keys, label_keys, rows, assigned, cursor)
            if assigned < n:
                self._need_room_for_op(kinds, keys, label_keys, rows, assigned, cursor)
        self._sweep(n)
        return out, rows.late

    def _store(self) -> labelled.Store:
        return labelled.Store(
            self._events.view,
            self._spill,
            self._frauds.view,
            self._labels.view,
            self._transactions,
            self._waiting.view,
            self._counters,
        )

    def _grow(self, need: int) -> bool:
        """Makes room for what `labelled_ops` needs; False where the bound does not allow it."""
        room = self._room()
        if need == labelled.TRANSACTIONS:
            if room < 2 * self._transactions.nbytes:  # for a moment the old table stands beside the new one
                return False
            grown = zeros((2 * len(self._transactions), 4), np.uint64)
            table_rebuild(self._transactions, grown)
            self._transactions, self._hand = grown, 0
            return True
        if need == labelled.WAITING:
            if room < 2 * self._waiting.nbytes:
                return False
            self._waiting.grow()
            return True
        rings = {labelled.EVENTS: self._events, labelled.FRAUDS: self._frauds, labelled.LABELS: self._labels}
        return rings[need].grow(room)

    def _need_room_for_op(
        self,
        kinds: BoolArray,
        keys: KeyArray,
        label_keys: KeyArray,
        rows: Rows,
        assigned: int,
        cursor: IntArray,
    ) -> None:
        """Drops idle keys and transactions; BoundError where there are none. The cursor is at the next op."""
        op, row, label, stream = (int(number) for number in cursor)
        if self._sweep_all(stream - self._plan.span_ms) or self._lifted():
            return
        if kinds[op]:
            what = f"label {label} of the block, of transaction {key_name(label_keys[label])},"
        else:
            what = f"row {row} of the block, of {self.entity} {key_name(keys[row])},"
            self._forget_due(int(rows.slots[row]) if row < assigned else -1)
        self._take_back(rows, assigned, row, stream)
        raise self._bound_error(what, row, label)

    def _forget_due(self, slot: int) -> None:
        """Of a row that was given up, some labels may have become due: the key's next row finds out anew."""
        if slot >= 0:
            self._labels.heads[slot, labelled.DUE] = self._labels.heads[slot, HEAD]
            self._labels.heads[slot, labelled.SEEN] = NO_TIME
            self._frauds.heads[slot, HEAD:] = 0

    def _sweep_some(self, rows: int) -> None:
        super()._sweep_some(rows)
        self._forget(_STEPS_PER_ROW * rows, self._horizon)

    def _sweep_all(self, horizon: int) -> int:
        total = super()._sweep_all(horizon)
        while forgotten := self._forget(len(self._transactions), horizon):
            total += forgotten
        return total

    def _forget(self, steps: int, horizon: int) -> int:
        """Frees what is expired among the next so many places of the transactions; returns how many."""
        steps = min(steps, len(self._transactions))
        places = np.empty(steps, np.int64)
        self._hand, count = table_sweep(self._transactions, self._hand, steps, horizon, places)
        self._counters[labelled.KNOWN] -= count
        return count

    def to_arrays(self) -> Arrays:
        """As `EntityWindows.to_arrays`, and:

        ``label_counts`` (m,) and ``label_rows`` (sum, 2) uint64: label and event time of positive labels per key;
        ``transaction_keys`` (t, 2) in order, ``transaction_rows`` (t, 3) int64: number of the key, what labels said
        (0 nothing, 1 negative, 2 positive), event time; ``label_counters`` (3,); ``waiting_*`` as `Fifo.to_arrays`.
        """
        arrays = super().to_arrays()
        _, slots, _ = self._slots.live(self._horizon)
        counts, rows = self._labels.export(slots, NO_TIME)
        owner = np.repeat(np.arange(len(slots)), counts)
        alive = rows[:, 1].view(np.int64) > self._horizon if len(rows) else np.empty(0, np.bool_)
        arrays["label_counts"] = np.bincount(owner[alive], minlength=len(slots)).astype(np.int64)
        arrays["label_rows"] = rows[alive]
        table = self._transactions
        places = live_places(table, self._horizon)
        number = np.empty(self._slots.capacity, np.int64)
        number[slots] = np.arange(len(slots))
        arrays["transaction_keys"] = table[places, :2]
        # column by column: there are far more transactions than anything else, and memory may be short
        said = arrays["transaction_rows"] = np.empty((len(places), 3), np.int64)
        slot, said[:, 1] = labelled.unpack(table[places, 2])
        said[:, 0], said[:, 2] = number[slot], table[places, 3].view(np.int64)
        arrays["label_counters"] = self._counters[1:].copy()
        return arrays | prefixed(_WAITING, self._waiting.to_arrays())

    def _load(self, arrays: Mapping[str, npt.NDArray[Any]]) -> None:
        super()._load(arrays)
        slots = np.arange(len(arrays["keys"]), dtype=np.int64)
        self._labels.load(slots, arrays["label_counts"].astype(np.int64), np.array(arrays["label_rows"], np.uint64))
        self._transactions = labelled.pack_transactions(arrays["transaction_keys"], arrays["transaction_rows"])
        self._counters[labelled.KNOWN] = len(arrays["transaction_keys"])
        self._counters[1:] = arrays["label_counters"]
        self._waiting = Fifo.from_arrays(under(_WAITING, arrays), history=False)
        # no label is due in a loaded state: the next row of each key makes its labels due again
        self._labels.heads[:, labelled.DUE] = 0
        self._labels.heads[:, labelled.SEEN] = NO_TIME
