"""What `monitoring.labels` does row by row: entries of ids in arrays, found by a hash table."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from features.block import IntArray, KeyArray
from features.kernel import kernel, signed
from features.state import Table, table_find, table_remove

#: what is counted, since the beginning of the log
COUNTS = (
    "vectors",
    "labels",
    "joined_by_label",
    "joined_by_horizon",
    "unlabelled",
    "released",
    "forgotten",
    "vectors_repeated",
    "labels_repeated",
    "labels_contradicting",
    "labels_after_horizon",
    "labels_unknown",
    "labels_dropped",
)
VECTORS, LABELS, BY_LABEL, BY_HORIZON, UNLABELLED, RELEASED, FORGOTTEN = range(7)
VECTORS_REPEATED, LABELS_REPEATED, CONTRADICTING, AFTER_HORIZON, UNKNOWN, DROPPED = range(7, 13)

# columns of an entry: its event time (of a label alone: its label time), what it is, the vector's place, the label with
# its time and when it was sent, and its number in the order of arrival
TIME, KIND, PLACE, LABEL, LABEL_TIME, LABEL_SENT, ARRIVAL = range(7)
WIDTH = 7
# kinds: no entry, a vector that waits, one that was joined, a label without its vector
FREE, WAITING, JOINED, LABEL_ONLY = range(4)
NO_LABEL = -1

# what kernels keep count of: slots ever used, slots free again, next number of arrival, vectors (waiting or joined),
# labels without
USED, FREED, NEXT, N_VECTORS, N_LABELS = range(5)


class Store(NamedTuple):
    """What kernels see of the join: the table from keys to 1 + slot; ``keys`` (capacity, 2), ``entries`` (capacity,
    `WIDTH`) and ``free`` slots (capacity,); ``meta`` (5,); ``counts`` in the order of `COUNTS`."""

    table: Table
    keys: KeyArray
    entries: IntArray
    free: IntArray
    meta: IntArray
    counts: IntArray


@kernel
def _find_or_add(store: Store, hi: np.uint64, lo: np.uint64) -> int:
    """Slot of the key; a new one is of kind `FREE`, to be filled. There is room for it."""
    table = store.table
    entries = store.entries
    meta = store.meta
    place = table_find(table, hi, lo)
    if place >= 0:
        return signed(table[place, 2]) - 1
    if meta[FREED] > 0:
        meta[FREED] -= 1
        slot: int = store.free[meta[FREED]]
    else:
        slot = meta[USED]
        meta[USED] += 1
    place = -1 - place
    table[place, 0] = hi
    table[place, 1] = lo
    table[place, 2] = np.uint64(slot + 1)
    table[place, 3] = np.uint64(0)
    store.keys[slot, 0] = hi
    store.keys[slot, 1] = lo
    entries[slot, KIND] = FREE
    entries[slot, ARRIVAL] = meta[NEXT]
    meta[NEXT] += 1
    return slot


@kernel
def take_vectors(
    store: Store,
    horizon_ms: int,
    at_once: bool,
    ids: KeyArray,
    times: IntArray,
    places: IntArray,
    joined: IntArray,
    freed: IntArray,
) -> tuple[int, int]:
    """The rows in order; slots that are joined go to ``joined``, places of repeated ones to ``freed``: how many."""
    entries = store.entries
    meta = store.meta
    counts = store.counts
    n_joined = n_freed = 0
    for row in range(ids.shape[0]):
        counts[VECTORS] += 1
        slot = _find_or_add(store, ids[row, 0], ids[row, 1])
        kind = entries[slot, KIND]
        if kind in (WAITING, JOINED):
            counts[VECTORS_REPEATED] += 1
            freed[n_freed] = places[row]
            n_freed += 1
            continue
        meta[N_VECTORS] += 1
        if kind == LABEL_ONLY:
            meta[N_LABELS] -= 1
            if entries[slot, LABEL_TIME] > times[row] + horizon_ms:
                counts[AFTER_HORIZON] += 1
                entries[slot, LABEL] = NO_LABEL
        else:
            entries[slot, LABEL] = NO_LABEL
        entries[slot, KIND] = WAITING
        entries[slot, TIME] = times[row]
        entries[slot, PLACE] = places[row]
        if at_once and entries[slot, LABEL] != NO_LABEL:
            entries[slot, KIND] = JOINED
            joined[n_joined] = slot
            n_joined += 1
    return n_joined, n_freed


@kernel
def take_labels(
    store: Store,
    horizon_ms: int,
    at_once: bool,
    ids: KeyArray,
    times: IntArray,
    labels: IntArray,
    sent: IntArray,
    joined: IntArray,
) -> int:
    """The labels in order; slots that are joined go to ``joined``: how many."""
    entries = store.entries
    counts = store.counts
    n_joined = 0
    for row in range(ids.shape[0]):
        counts[LABELS] += 1
        slot = _find_or_add(store, ids[row, 0], ids[row, 1])
        kind = entries[slot, KIND]
        if kind in (WAITING, JOINED) and times[row] > entries[slot, TIME] + horizon_ms:
            counts[AFTER_HORIZON] += 1
            continue
        if kind == FREE:
            entries[slot, KIND] = LABEL_ONLY
            entries[slot, PLACE] = -1
            store.meta[N_LABELS] += 1
        elif kind != WAITING or entries[slot, LABEL] != NO_LABEL:
            counts[LABELS_REPEATED if labels[row] == entries[slot, LABEL] else CONTRADICTING] += 1
            if kind == JOINED or at_once or times[row] < entries[slot, LABEL_TIME]:
                continue
        entries[slot, LABEL] = labels[row]
        entries[slot, LABEL_TIME] = times[row]
        entries[slot, LABEL_SENT] = sent[row]
        if entries[slot, KIND] == LABEL_ONLY:
            entries[slot, TIME] = times[row]
        elif at_once:
            entries[slot, KIND] = JOINED
            joined[n_joined] = slot
            n_joined += 1
    return n_joined


@kernel
def remove(store: Store, slots: IntArray) -> None:
    """Takes out the entries of these slots."""
    table, keys, meta = store.table, store.keys, store.meta
    for i in range(slots.shape[0]):
        slot = slots[i]
        table_remove(table, table_find(table, keys[slot, 0], keys[slot, 1]))
        meta[N_LABELS if store.entries[slot, KIND] == LABEL_ONLY else N_VECTORS] -= 1
        store.entries[slot, KIND] = FREE
        store.free[meta[FREED]] = slot
        meta[FREED] += 1
