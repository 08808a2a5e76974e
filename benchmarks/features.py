"""Cost per event of the window engine, by number of keys and how evenly events spread over them; and its peers.

Events are spaced evenly over 60 days, ids are integers, blocks have 4,000 rows; the first half fills the state, the
second is timed: median over blocks. Labels come seven days after each transaction, one in a hundred positive; their
cost is part of the terminal set's. A *hot* spread gives one key 30% of the events; *jittered*, rows come up to 60 s
behind their time, at 2,000 events/s and without labels. Bias: one process, rows already columns, ids drawn
independently, so no key comes in bursts. *Flatness* holds states of few and of many keys in memory at once and gives
each a block in turn, so that whatever else the machine does meets all of them; where there are many keys, each has had
but two events.
"""

from __future__ import annotations

import hashlib
import time
from collections.abc import Iterator, Sequence
from itertools import pairwise
from typing import Any

import numpy as np
import numpy.typing as npt

from benchmarks.feature_peers import compare, table
from features.block import Block, BoolArray, Ids, IntArray
from features.engine import Dedupe, EntityWindows, LabelledWindows, interleave, warm
from features.fraud import DEFAULT

__all__ = ["flatness", "run"]

_DAY_MS = 86_400_000
_START_MS = 1_600_000_000_000
_SPAN_MS = 60 * _DAY_MS
_BLOCK_ROWS = 4_000
_ZIPF_EXPONENT = 1.1
_HOT_SHARE = 0.3
_HOT_KEYS = 50_000
_JITTER_MS = 60_000
_JITTER_RATE = 2_000
#: blocks of each number of keys that are timed side by side
_FLAT_BLOCKS = 150


def run(
    keys: Sequence[int] = (1_000, 50_000, 1_000_000, 5_000_000),
    events: int = 1_000_000,
    peer_events: int = 300_000,
) -> dict[str, Any]:
    """Microseconds of CPU per event of each engine: ``results`` has one entry per number of keys and spread.

    ``us_card``, ``us_terminal`` (labels included), ``us_dedupe`` per event, ``ms_longest_block`` the most CPU that one
    block took, growth of the state included, ``bytes_card`` and ``bytes_terminal`` of state at the end, ``sha256`` of
    all features, so that a fast wrong answer shows. ``hot`` the same for one key with 30% of the events, beside the
    uniform case, ``flatness`` as `flatness`, ``peers`` as `feature_peers.compare`.
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
    flat = flatness(keys, events)
    return {"block_rows": _BLOCK_ROWS, "results": results, "hot": hot, "flatness": flat, "peers": peers}


def flatness(keys: Sequence[int], events: int, blocks: int = _FLAT_BLOCKS) -> list[dict[str, Any]]:
    """Microseconds of CPU per event by number of keys, side by side; ``ratio`` to the first, of card and terminal."""
    filled = []
    for n_keys in keys:
        first = -(-max(events, 2 * n_keys) // _BLOCK_ROWS)
        feed, engines = _blocks(n_keys, "uniform", (first + blocks) * _BLOCK_ROWS), _Engines()
        for _ in range(first):
            engines.process(*next(feed))
        filled.append((n_keys, feed, engines))
    spent: dict[int, list[list[float]]] = {n_keys: [] for n_keys in keys}
    for _ in range(blocks):
        for n_keys, feed, engines in filled:
            spent[n_keys].append(engines.process(*next(feed)))
    medians = {n_keys: np.median(costs, axis=0) for n_keys, costs in spent.items()}
    base = medians[keys[0]]
    return [
        {
            "keys": n_keys,
            **{name: round(float(us), 4) for name, us in zip(_PARTS, medians[n_keys], strict=True)},
            "ratio": round(float(medians[n_keys][:2].sum() / base[:2].sum()), 2),
        }
        for n_keys in keys
    ]


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


#: what `_Engines.process` times
_PARTS = ("us_card", "us_terminal", "us_dedupe")


class _Engines:
    """The states of the default set, and a digest of all features they gave."""

    def __init__(self) -> None:
        self.cards = EntityWindows(DEFAULT.for_entity("card_id"))
        self.terminals = LabelledWindows(DEFAULT.for_entity("terminal_id"))
        self.dedupe = Dedupe()
        self.digest = hashlib.sha256()

    def process(self, block: Block, labels: Block, kinds: BoolArray) -> list[float]:
        """Microseconds of CPU per event of each part."""
        marks = [time.thread_time()]
        by_card, _ = self.cards.process(block)
        marks.append(time.thread_time())
        by_terminal, _ = self.terminals.process(block, labels, kinds)
        marks.append(time.thread_time())
        self.dedupe.process(block.ids["transaction_id"].keys(), block.event_time_ms)
        marks.append(time.thread_time())
        self.digest.update(by_card.tobytes())
        self.digest.update(by_terminal.tobytes())
        return [(end - begin) / len(block) * 1e6 for begin, end in pairwise(marks)]


def _measure(blocks: Iterator[tuple[Block, Block, BoolArray]]) -> dict[str, Any]:
    engines = _Engines()
    spent: list[list[float]] = []
    longest = 0.0
    for block, labels, kinds in blocks:
        spent.append(engines.process(block, labels, kinds))
        longest = max(longest, sum(spent[-1]) * len(block))
    medians = np.median(spent[len(spent) // 2 :], axis=0)
    return {name: round(float(us), 4) for name, us in zip(_PARTS, medians, strict=True)} | {
        "ms_longest_block": round(longest / 1e3, 1),
        "bytes_card": engines.cards.nbytes,
        "bytes_terminal": engines.terminals.nbytes,
        "keys_card": len(engines.cards),
        "sha256": engines.digest.hexdigest()[:16],
    }
