"""Cost per event of the window engine, by number of keys and how evenly events spread over them.

Events are spaced evenly over 60 days, ids are integers, blocks have 4,000 rows; the first half fills the state, the
second is timed: median over blocks. Labels come seven days after each transaction, one in a hundred positive; their
cost is part of the terminal set's. Bias: one process, rows already columns, ids drawn independently, so no key
comes in bursts.
"""

from __future__ import annotations

import hashlib
import time
from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from features.block import Block, BoolArray, Ids, IntArray
from features.engine import Dedupe, EntityWindows, LabelledWindows, interleave, warm
from features.fraud import DEFAULT

__all__ = ["run"]

_DAY_MS = 86_400_000
_START_MS = 1_600_000_000_000
_SPAN_MS = 60 * _DAY_MS
_BLOCK_ROWS = 4_000
_ZIPF_EXPONENT = 1.1


def run(keys: Sequence[int] = (1_000, 50_000, 1_000_000), events: int = 1_000_000) -> dict[str, Any]:
    """Microseconds per event of each engine: ``results`` has one entry per number of keys and spread.

    ``us_card``, ``us_terminal`` (labels included), ``us_dedupe`` per event, ``bytes_card`` and ``bytes_terminal`` of
    state at the end, ``sha256`` of all features, so that a fast wrong answer shows.
    """
    warm()
    results = [
        {"keys": n_keys, "spread": spread, "events": events, **_measure(n_keys, spread, events)}
        for n_keys in keys
        for spread in ("uniform", "zipf")
    ]
    return {"block_rows": _BLOCK_ROWS, "results": results}


def _ids(rng: np.random.Generator, n_keys: int, spread: str, events: int) -> IntArray:
    if spread == "uniform":
        drawn: IntArray = rng.integers(0, n_keys, events)
        return drawn
    weights = np.cumsum(np.arange(1, n_keys + 1, dtype=np.float64) ** -_ZIPF_EXPONENT)
    rank = np.searchsorted(weights, rng.random(events) * weights[-1])
    names: IntArray = rng.permutation(n_keys)
    zipf: IntArray = names[np.minimum(rank, n_keys - 1)]
    return zipf


def _blocks(n_keys: int, spread: str, events: int) -> list[tuple[Block, Block, BoolArray]]:
    """Rows, the labels that fall between them, and the order of both, per block."""
    rng = np.random.default_rng(7)
    times = _START_MS + np.arange(events, dtype=np.int64) * _SPAN_MS // events
    entity = _ids(rng, n_keys, spread, events)
    amounts = np.round(rng.gamma(2.0, 30.0, events), 2)
    positive = rng.random(events) < 0.01
    label_times = times + 7 * _DAY_MS
    blocks, labelled = [], 0
    for begin in range(0, events, _BLOCK_ROWS):
        rows = slice(begin, min(begin + _BLOCK_ROWS, events))
        due = int(np.searchsorted(label_times, times[rows.stop - 1], side="right"))
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
        blocks.append((block, labels, interleave(times[rows], label_times[ripe])))
    return blocks


def _measure(n_keys: int, spread: str, events: int) -> dict[str, Any]:
    cards = EntityWindows(DEFAULT.for_entity("card_id"))
    terminals = LabelledWindows(DEFAULT.for_entity("terminal_id"))
    dedupe = Dedupe()
    spent: dict[str, list[float]] = {"us_card": [], "us_terminal": [], "us_dedupe": []}
    digest = hashlib.sha256()
    blocks = _blocks(n_keys, spread, events)
    timed = len(blocks) // 2
    for number, (block, labels, kinds) in enumerate(blocks):
        marks = [time.perf_counter()]
        by_card, _ = cards.process(block)
        marks.append(time.perf_counter())
        by_terminal, _ = terminals.process(block, labels, kinds)
        marks.append(time.perf_counter())
        dedupe.process(block.ids["transaction_id"].keys(), block.event_time_ms)
        marks.append(time.perf_counter())
        digest.update(by_card.tobytes())
        digest.update(by_terminal.tobytes())
        if number >= timed:
            for name, begin, end in zip(spent, marks, marks[1:], strict=False):
                spent[name].append((end - begin) / len(block) * 1e6)
    figures: dict[str, Any] = {name: round(float(np.median(costs)), 4) for name, costs in spent.items()}
    return figures | {"bytes_card": cards.nbytes, "bytes_terminal": terminals.nbytes, "sha256": digest.hexdigest()[:16]}
