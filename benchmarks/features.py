"""Cost per event of the window engine, by number of keys and how evenly events spread over them; and its peers.

Events are spaced evenly over 60 days, ids are integers, blocks have 4,000 rows; the first half fills the state, the
second is timed: median over blocks. Labels come seven days after each transaction, one in a hundred positive; their
cost is part of the terminal set's. A *hot* spread gives one key 30% of the events; *jittered*, rows come up to 60 s
behind their time, at 2,000 events/s and without labels. Bias: one process, rows already columns, ids drawn
independently, so no key comes in bursts.
"""

from __future__ import annotations

import hashlib
import time
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from benchmarks.feature_peers import compare, table
from features.block import Block, BoolArray, Ids, IntArray
from features.engine import Dedupe, EntityWindows, LabelledWindows, interleave, warm
from features.fraud import DEFAULT

__all__ = ["run"]

_DAY_MS = 86_400_000
_START_MS = 1_600_000_000_000
_SPAN_MS = 60 * _DAY_MS
_BLOCK_ROWS = 4_000
_ZIPF_EXPONENT = 1.1
_HOT_SHARE = 0.3
_HOT_KEYS = 50_000
_JITTER_MS = 60_000
_JITTER_RATE = 2_000


def run(
    keys: Sequence[int] = (1_000, 50_000, 1_000_000, 5_000_000),
    events: int = 1_000_000,
    peer_events: int = 300_000,
) -> dict[str, Any]:
    """Microseconds of CPU per event of each engine: ``results`` has one entry per number of keys and spread.

    ``us_card``, ``us_terminal`` (labels included), ``us_dedupe`` per event, ``ms_longest_block`` the longest that one
    block took, growth of the state included, ``bytes_card`` and ``bytes_terminal`` of state at the end, ``sha256`` of
    all features, so that a fast wrong answer shows. ``hot`` the same for one key with 30% of the events, beside the
    uniform case, ``peers`` as `feature_peers.compare`.
    """
    warm()
    results = [
        {"keys": n_keys, "spread": spread, "events": n, **_measure(_blocks(n_keys, spread, n))}
        for n_keys in keys
        for n in [max(events, 2 * n_keys)]  # so that every key is there before it is timed
        for spread in ("uniform", "zipf")
    ]
    hot = [
        {
            "keys": _HOT_KEYS,
            "spread": spread,
            "jitter_ms": jitter,
            **_measure(_blocks(_HOT_KEYS, spread, events, jitter)),
        }
        for jitter in (0, _JITTER_MS)
        for spread in ("uniform", "hot")
    ]
    peers = compare(table(peer_events, _HOT_KEYS))
    return {"block_rows": _BLOCK_ROWS, "results": results, "hot": hot, "peers": peers}


def _ids(rng: np.random.Generator, n_keys: int, spread: str, events: int) -> IntArray:
    if spread == "uniform":
        drawn: IntArray = rng.integers(0, n_keys, events)
        return drawn
    if spread == "hot":
        mostly: IntArray = np.where(rng.random(events) < _HOT_SHARE, 0, rng.integers(0, n_keys, events))
        return mostly
    weights = np.cumsum(np.arange(1, n_keys + 1, dtype=np.float64) ** -_ZIPF_EXPONENT)
    rank = np.searchsorted(weights, rng.random(events) * weights[-1])
    names: IntArray = rng.permutation(n_keys)
    zipf: IntArray = names[np.minimum(rank, n_keys - 1)]
    return zipf


def _blocks(n_keys: int, spread: str, events: int, jitter_ms: int = 0) -> Iterator[tuple[Block, Block, BoolArray]]:
    """Rows, the labels that fall between them, and the order of both, per block."""
    rng = np.random.default_rng(7)
    span_ms = _SPAN_MS if jitter_ms == 0 else events * 1_000 // _JITTER_RATE
    times = _START_MS + np.arange(events, dtype=np.int64) * span_ms // events - rng.integers(0, jitter_ms + 1, events)
    entity = _ids(rng, n_keys, spread, events)
    amounts = np.round(rng.gamma(2.0, 30.0, events), 2)
    positive = rng.random(events) < 0.01
    label_times = times + 7 * _DAY_MS
    labelled, newest = 0, np.maximum.accumulate(times)
    for begin in range(0, events, _BLOCK_ROWS):
        rows = slice(begin, min(begin + _BLOCK_ROWS, events))
        due = int(np.searchsorted(label_times, newest[rows.stop - 1], side="right")) if jitter_ms == 0 else 0
        ripe = slice(labelled, due)
        labelled = due
        ids = {name: Ids(ints=entity[rows]) for name in ("card_id", "terminal_id")}
        ids["transaction_id"] = Ids(ints=np.arange(rows.start, rows.stop))
        columns: dict[str, npt.NDArray[Any]] = {"event_time": times[rows], "amount": amounts[rows]}
        block = Block("bench", 0, rows.stop, np.arange(rows.start, rows.stop), times[rows], ids, columns)
        known = {"transaction_id": Ids(ints=np.arange(ripe.start, ripe.stop))}
        said: dict[str, npt.NDArray[Any]] = {
            "label_time": label_times[ripe],
            "is_fraud": positive[ripe].astype(np.int64),
        }
        labels = Block("bench", 0, ripe.stop, np.arange(ripe.start, ripe.stop), label_times[ripe], known, said)
        yield block, labels, interleave(newest[rows], label_times[ripe])


def _measure(blocks: Iterator[tuple[Block, Block, BoolArray]]) -> dict[str, Any]:
    cards = EntityWindows(DEFAULT.for_entity("card_id"))
    terminals = LabelledWindows(DEFAULT.for_entity("terminal_id"))
    dedupe = Dedupe()
    spent: dict[str, list[float]] = {"us_card": [], "us_terminal": [], "us_dedupe": []}
    digest = hashlib.sha256()
    longest = 0.0
    for block, labels, kinds in blocks:
        began, marks = time.perf_counter(), [time.thread_time()]
        by_card, _ = cards.process(block)
        marks.append(time.thread_time())
        by_terminal, _ = terminals.process(block, labels, kinds)
        marks.append(time.thread_time())
        dedupe.process(block.ids["transaction_id"].keys(), block.event_time_ms)
        marks.append(time.thread_time())
        longest = max(longest, time.perf_counter() - began)
        digest.update(by_card.tobytes())
        digest.update(by_terminal.tobytes())
        for name, begin, end in zip(spent, marks, marks[1:], strict=False):
            spent[name].append((end - begin) / len(block) * 1e6)
    figures: dict[str, Any] = {
        name: round(float(np.median(costs[len(costs) // 2 :])), 4) for name, costs in spent.items()
    }
    return figures | {
        "ms_longest_block": round(longest * 1e3, 1),
        "bytes_card": cards.nbytes,
        "bytes_terminal": terminals.nbytes,
        "keys_card": len(cards),
        "sha256": digest.hexdigest()[:16],
    }
