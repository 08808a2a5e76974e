"""Kernels of windows that count visible positive labels: transactions and their labels, interleaved in log order.

Per slot two rings stand beside the ring of events: *labels*, rows ``label_time, event_time`` of the positive ones
sorted by label time, and *frauds*, the event times of those labels that are due, for counting by search. A label is
due once the entity saw a row at or after its label time; a row at an earlier time takes the newer ones off again by
walking back over *labels*. So a label counts for a row at t exactly if it came earlier in the log and label_time <= t,
for rows in any order. *frauds* and "due" only save work: they follow from *labels* and are not part of the state.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from features.block import BoolArray, FloatArray, IntArray, KeyArray
from features.fifo import FORCED, KEYS, Queue, fifo_expire, fifo_pop, fifo_push, fifo_ready
from features.kernel import helper, kernel, prefetch, signed
from features.memory import zeros
from features.rings import (
    BLOCK,
    HEAD,
    NO_BLOCK,
    OWN,
    TAIL,
    Ring,
    Words,
    open_gap,
    ring_double,
    ring_room,
    row_at,
    seek_from_tail,
)
from features.spill import Spill
from features.state import Table, table_capacity, table_find, table_full, table_prefetch, table_remove
from features.windows import Plan, Rows, emit, find_boundaries, find_spilled, look_ahead, place_of, put_in, room_for

__all__ = ["Labels", "Store", "labelled_ops", "pack_transactions", "unpack"]

#: what `labelled_ops` needs more room for
DONE, EVENTS, FRAUDS, LABELS, TRANSACTIONS, WAITING = 0, 1, 2, 3, 4, 5
LABEL_WIDTH = 2
FRAUD_WIDTH = 1

# own columns of the labels ring's heads: first index that is not due, newest row time seen by the entity
DUE, SEEN = OWN, OWN + 1

# a transaction's payload: 1 + slot, and above it what labels said of it
_STATE_SHIFT = np.uint64(60)
_SLOT_MASK = np.uint64((1 << 60) - 1)
_UNLABELLED, _NEGATIVE, _POSITIVE = 0, 1, 2

# columns of the cursor: op, row, label, stream time
OP, ROW, LABEL, STREAM = 0, 1, 2, 3
# rows and labels ahead that are prefetched
_AHEAD = 12
# columns of the counters
KNOWN, REPEATED, CONTRADICTED, UNKNOWN = 0, 1, 2, 3


class Store(NamedTuple):
    """The state: rings of events (with their spill), of due frauds and of labels by slot, transactions by id, waiting
    labels, counters (4,).
    """

    events: Ring
    spill: Spill
    frauds: Ring
    labels: Ring
    transactions: Table
    waiting: Queue
    counters: IntArray


class Labels(NamedTuple):
    """The labels to process: transaction keys (m, 2), label times (m,), positive (m,)."""

    keys: KeyArray
    times: IntArray
    positive: BoolArray


@kernel
def _label_room(ring: Ring, slot: int, horizon: int) -> bool:
    """Room for one more label, dropping those of expired events; False: pool full."""
    block = ring.heads[slot, BLOCK]
    if block == NO_BLOCK:
        return ring_double(ring, slot)
    capacity = 1 << (block & 63)
    head, tail = ring.heads[slot, HEAD], ring.heads[slot, TAIL]
    if tail - head < capacity:
        return True
    kept = due = head
    for index in range(head, tail):
        source = row_at(ring, slot, index)
        if signed(ring.pool[source + 1]) > horizon:
            target = row_at(ring, slot, kept)
            ring.pool[target], ring.pool[target + 1] = ring.pool[source], ring.pool[source + 1]
            kept += 1
            due += index < ring.heads[slot, DUE]
    ring.heads[slot, TAIL], ring.heads[slot, DUE] = kept, due
    # a ring that stays nearly full is doubled, or the next labels would each walk it again
    return (kept - head) * 4 <= capacity * 3 or ring_double(ring, slot)


@kernel
def _add_fraud(frauds: Ring, slot: int, event_time: int) -> None:
    index = seek_from_tail(frauds, slot, event_time)
    frauds.pool[open_gap(frauds, slot, index)] = np.uint64(event_time)


@kernel
def _add_label(store: Store, slot: int, label_time: int, event_time: int) -> None:
    """A positive label of the slot's event; both rings have room."""
    labels = store.labels
    at = open_gap(labels, slot, seek_from_tail(labels, slot, label_time))
    labels.pool[at], labels.pool[at + 1] = np.uint64(label_time), np.uint64(event_time)
    if label_time <= labels.heads[slot, SEEN]:
        labels.heads[slot, DUE] += 1
        _add_fraud(store.frauds, slot, event_time)


@helper
def _make_due(store: Store, slot: int, t: int, horizon: int) -> bool:
    """Labels with label time up to ``t`` become due; False: the pool of frauds is full."""
    labels = store.labels
    while labels.heads[slot, DUE] < labels.heads[slot, TAIL]:
        at = row_at(labels, slot, labels.heads[slot, DUE])
        if signed(labels.pool[at]) > t:
            break
        if not ring_room(store.frauds, slot, horizon):
            return False
        _add_fraud(store.frauds, slot, signed(labels.pool[at + 1]))
        labels.heads[slot, DUE] += 1
    labels.heads[slot, SEEN] = max(labels.heads[slot, SEEN], t)
    return True


@helper
def _visible_frauds(
    store: Store, slot: int, offsets: IntArray, t: int, late: bool, horizon: int, out: IntArray
) -> None:
    """``out[b]`` = number of frauds visible at ``t`` below boundary ``b``, up to a constant."""
    labels = store.labels
    find_boundaries(store.frauds, slot, offsets, t, late, horizon, False, out)
    index = labels.heads[slot, DUE] - 1
    while index >= labels.heads[slot, HEAD]:
        at = row_at(labels, slot, index)
        if signed(labels.pool[at]) <= t:
            break
        event_time = signed(labels.pool[at + 1])
        if event_time > horizon:
            for b in range(len(offsets)):
                out[b] -= event_time <= t - offsets[b]
        index -= 1


@helper
def _row_room(store: Store, slot: int, t: int, horizon: int, waiting: bool) -> int:
    """DONE where a row, and its waiting label if it has one, can be put in without growing anything."""
    if not room_for(store.events, store.spill, slot, t, horizon):
        return EVENTS
    if table_full(store.transactions, store.counters[KNOWN]):
        return TRANSACTIONS
    if waiting:
        if not _label_room(store.labels, slot, horizon):
            return LABELS
        if not ring_room(store.frauds, slot, horizon):
            return FRAUDS
    return DONE


@helper
def _remember(
    transactions: Table, counters: IntArray, hi: np.uint64, lo: np.uint64, slot: int, state: int, t: int
) -> None:
    """Puts a transaction into the table, in place of an older one of the same id."""
    place = table_find(transactions, hi, lo)
    if place < 0:
        place = -1 - place
        counters[KNOWN] += 1
        transactions[place, 0] = hi
        transactions[place, 1] = lo
    transactions[place, 2] = np.uint64(slot + 1) | (np.uint64(state) << _STATE_SHIFT)
    transactions[place, 3] = np.uint64(t)


@kernel
def _put_all(table: Table, counters: IntArray, keys: KeyArray, rows: IntArray) -> None:
    for i in range(keys.shape[0]):
        _remember(table, counters, keys[i, 0], keys[i, 1], rows[i, 0], rows[i, 1], rows[i, 2])


def unpack(payloads: Words) -> tuple[IntArray, IntArray]:
    """Slots and label states (0 nothing said, 1 negative, 2 positive) of transactions' payloads."""
    return (payloads & _SLOT_MASK).astype(np.int64) - 1, (payloads >> _STATE_SHIFT).astype(np.int64)


def pack_transactions(keys: KeyArray, rows: IntArray) -> Table:
    """A table of transactions from keys (t, 2) and rows (t, 3): slot, label state, event time."""
    table: Table = zeros((max(64, table_capacity(len(keys))), 4), np.uint64)
    counters = np.zeros(4, np.int64)
    _put_all(table, counters, np.require(keys, np.uint64, ["C", "W"]), np.require(rows, np.int64, ["C", "W"]))
    return table


@kernel
def _wait(store: Store, hi: np.uint64, lo: np.uint64, label_time: int, horizon: int, waiting_max: int) -> int:
    """Keeps a positive label until its transaction comes; DONE or WAITING."""
    queue = store.waiting
    fifo_expire(queue, horizon, False)
    while queue.meta[KEYS] >= waiting_max:
        queue.meta[FORCED] += fifo_pop(queue)
    if not fifo_ready(queue):
        return WAITING
    fifo_push(queue, hi, lo, label_time)
    return DONE


@helper
def _label_op(store: Store, given: Labels, label: int, horizon: int, waiting_max: int) -> int:
    """Applies one label, or keeps it if it is positive and its transaction has not come; DONE or what needs room."""
    hi, lo = given.keys[label, 0], given.keys[label, 1]
    positive, counters, table = given.positive[label], store.counters, store.transactions
    place = table_find(table, hi, lo)
    if place < 0 or signed(table[place, 3]) <= horizon:
        if table_find(store.waiting.table, hi, lo) >= 0:
            counters[REPEATED if positive else CONTRADICTED] += 1
            return DONE
        # a negative label changes nothing, so it need not wait for its transaction
        if positive and _wait(store, hi, lo, given.times[label], horizon, waiting_max) != DONE:
            return WAITING
        counters[UNKNOWN] += 1
        return DONE
    slot = signed(table[place, 2] & _SLOT_MASK) - 1
    state = signed(table[place, 2] >> _STATE_SHIFT)
    said = _POSITIVE if positive else _NEGATIVE
    if state == said:
        counters[REPEATED] += 1
        return DONE
    if state == _POSITIVE:
        counters[CONTRADICTED] += 1
        return DONE
    if positive:
        if not _label_room(store.labels, slot, horizon):
            return LABELS
        if not ring_room(store.frauds, slot, horizon):
            return FRAUDS
        _add_label(store, slot, given.times[label], signed(table[place, 3]))
    counters[CONTRADICTED] += state == _NEGATIVE
    table[place, 2] = (table[place, 2] & _SLOT_MASK) | (np.uint64(said) << _STATE_SHIFT)
    return DONE


@helper
def _insert_row(store: Store, number: int, rows: Rows, keys: KeyArray, row: int, place: int, wait: int) -> None:
    """Puts a row in and remembers its transaction; a label that waits for it (at ``wait`` in the table) is applied."""
    slot, t = rows.slots[row], rows.times[row]
    put_in(store.events, store.spill, number, rows, row, place)
    state = _UNLABELLED
    if wait >= 0:
        queue = store.waiting
        at = (signed(queue.table[wait, 2]) - 1) & (queue.rows.shape[0] - 1)
        _add_label(store, slot, signed(queue.rows[at, 2]), t)
        table_remove(queue.table, wait)
        queue.meta[KEYS] -= 1
        state = _POSITIVE
    _remember(store.transactions, store.counters, keys[row, 0], keys[row, 1], slot, state, t)


@helper
def _row_op(store: Store, plan: Plan, rows: Rows, keys: KeyArray, row: int, horizon: int, out: FloatArray) -> int:
    """One row: its features, then insertion unless late; DONE or what needs room."""
    t, slot, late = rows.times[row], rows.slots[row], rows.late[row]
    plan.frauds[:] = 0
    if slot < 0:
        plan.below[:] = 0
        emit(store.events, store.spill, -1, plan, rows, row, 0, out)
        return DONE
    if not _make_due(store, slot, t, horizon):
        return FRAUDS
    wait = -1
    if not late:
        if store.waiting.meta[KEYS] > 0:
            wait = table_find(store.waiting.table, keys[row, 0], keys[row, 1])
        need = _row_room(store, slot, t, horizon, wait >= 0)
        if need != DONE:
            return need
    place = place_of(store.events, slot, t, late, horizon)
    ordered = place == store.events.heads[slot, TAIL]
    find_boundaries(store.events, slot, plan.offsets, t, late, horizon, ordered, plan.below)
    number = find_spilled(store.events, store.spill, plan, slot, t, late, horizon)
    if store.labels.heads[slot, HEAD] < store.labels.heads[slot, TAIL]:
        _visible_frauds(store, slot, plan.offsets, t, late, horizon, plan.frauds)
    emit(store.events, store.spill, number, plan, rows, row, place, out)
    if not late:
        _insert_row(store, number, rows, keys, row, place, wait)
    return DONE


@helper
def _look_ahead(store: Store, plan: Plan, rows: Rows, keys: KeyArray, row: int) -> None:
    look_ahead(store.events, plan.offsets, rows.slots, row)
    table_prefetch(store.transactions, keys, row + _AHEAD)
    if row + _AHEAD < len(rows.slots):
        slot = rows.slots[row + _AHEAD]
        at = slot * store.labels.heads.shape[1]
        prefetch(store.labels.heads, at)
        prefetch(store.labels.heads, at + store.labels.heads.shape[1] - 1)


@kernel
def labelled_ops(
    store: Store,
    plan: Plan,
    kinds: BoolArray,
    rows: Rows,
    keys: KeyArray,
    given: Labels,
    waiting_max: int,
    cursor: IntArray,
    out: FloatArray,
) -> int:
    """Ops from the cursor on: a row (``kinds`` False, transaction ``keys``) or a label of ``given`` (True).

    DONE, or what is to be grown before calling again.
    """
    for op in range(cursor[OP], len(kinds)):
        if kinds[op]:
            label = cursor[LABEL]
            table_prefetch(store.transactions, given.keys, label + _AHEAD)
            need = _label_op(store, given, label, cursor[STREAM] - plan.span_ms, waiting_max)
            if need != DONE:
                return need
            cursor[LABEL] = label + 1
        else:
            row = cursor[ROW]
            _look_ahead(store, plan, rows, keys, row)
            stream = max(cursor[STREAM], rows.times[row])
            need = _row_op(store, plan, rows, keys, row, stream - plan.span_ms, out)
            if need != DONE:
                return need
            cursor[ROW], cursor[STREAM] = row + 1, stream
        cursor[OP] = op + 1
    return DONE
