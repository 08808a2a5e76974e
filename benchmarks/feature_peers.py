"""The same offline job by others: windows over a table of transactions, in plain Python, polars and DuckDB.

The job: count and mean of the amount over 1, 7 and 30 days by card, and the delayed count and risk over 1, 7 and 30
days by terminal, of every row; labels come exactly seven days after their transactions, so that risk is a delayed mean.
Rows are in time order and in memory, as the form each peer likes best; what is timed is from there to the columns.

What the peers compute is not quite the same: polars and DuckDB let a row see all rows of its own time, those after it
in the log too. So equality is checked on the rows whose time no other row of the same card has (and for plain Python on
all rows), and the share of the other rows is reported. Sums of polars and DuckDB are running sums: means are equal
within 1e-9, not to the bit.
"""

from __future__ import annotations

import importlib
import importlib.util
import time
from collections import defaultdict, deque
from collections.abc import Callable, Sequence
from importlib.metadata import version
from typing import Any, NamedTuple

import numpy as np

from features.block import Block, BoolArray, FloatArray, Ids, IntArray
from features.engine import EntityWindows, LabelledWindows, interleave
from features.fraud import DEFAULT

__all__ = ["Table", "compare", "table"]

_DAY_MS = 86_400_000
_DELAY_MS = 7 * _DAY_MS
_DAYS = (1, 7, 30)
_BLOCK_ROWS = 4_000
_START_MS = 1_600_000_000_000
_MEANS_TOLERANCE = 1e-9


class Table(NamedTuple):
    """Transactions in time order: columns (n,)."""

    times: IntArray
    cards: IntArray
    terminals: IntArray
    amounts: FloatArray
    frauds: IntArray


def table(events: int, keys: int, days: int = 60) -> Table:
    """``events`` transactions of ``keys`` cards at as many terminals, whole seconds, in time order."""
    rng = np.random.default_rng(11)
    times = _START_MS + np.sort(rng.integers(0, days * _DAY_MS // 1_000, events)) * 1_000
    cards, terminals = rng.integers(0, keys, (2, events))
    amounts = np.round(rng.gamma(2.0, 30.0, events), 2)
    return Table(times, cards, terminals, amounts, (rng.random(events) < 0.01).astype(np.int64))


def _headrace(rows: Table) -> FloatArray:
    """Blocks of 4,000 rows through the two states, labels in between."""
    cards = EntityWindows(DEFAULT.for_entity("card_id"))
    terminals = LabelledWindows(DEFAULT.for_entity("terminal_id"))
    n = len(rows.times)
    out = np.empty((n, 12), np.float64)
    label_times = rows.times + _DELAY_MS
    labelled = 0
    for begin in range(0, n, _BLOCK_ROWS):
        part = slice(begin, min(begin + _BLOCK_ROWS, n))
        due = int(np.searchsorted(label_times, rows.times[part.stop - 1], side="right"))
        ripe, labelled = slice(labelled, due), due
        times, numbers = rows.times[part], np.arange(part.start, part.stop)
        ids = {
            "card_id": Ids(ints=rows.cards[part]),
            "terminal_id": Ids(ints=rows.terminals[part]),
            "transaction_id": Ids(ints=numbers),
        }
        block = Block("peers", 0, 0, numbers, times, ids, {"event_time": times, "amount": rows.amounts[part]})
        known = np.arange(ripe.start, ripe.stop)
        said = {"label_time": label_times[ripe], "is_fraud": rows.frauds[ripe]}
        labels = Block("peers", 0, 0, known, label_times[ripe], {"transaction_id": Ids(ints=known)}, said)
        out[part, :6] = cards.process(block)[0]
        out[part, 6:] = terminals.process(block, labels, interleave(times, label_times[ripe]))[0]
    return out


class _Window:
    """A sliding window over one key's events: a deque and running totals."""

    __slots__ = ("count", "events", "total")

    def __init__(self) -> None:
        self.events: deque[tuple[int, float]] = deque()
        self.count, self.total = 0, 0.0

    def add(self, time_ms: int, value: float) -> None:
        self.events.append((time_ms, value))
        self.count += 1
        self.total += value

    def drop(self, until_ms: int) -> None:
        events = self.events
        while events and events[0][0] <= until_ms:
            self.total -= events.popleft()[1]
            self.count -= 1


def _python(rows: Table) -> FloatArray:
    """What one writes by hand: per key and window a deque with running totals, a queue for what is not yet due."""
    by_card: defaultdict[int, list[_Window]] = defaultdict(lambda: [_Window() for _ in _DAYS])
    by_terminal: defaultdict[int, list[_Window]] = defaultdict(lambda: [_Window() for _ in _DAYS])
    not_due: defaultdict[int, deque[tuple[int, float]]] = defaultdict(deque)
    out = []
    columns = [column.tolist() for column in rows]
    for now, card, terminal, amount, fraud in zip(*columns, strict=True):
        features = []
        for window, days in zip(by_card[card], _DAYS, strict=True):
            window.add(now, amount)
            window.drop(now - days * _DAY_MS)
            features += [window.count, window.total / window.count]
        waiting, windows = not_due[terminal], by_terminal[terminal]
        while waiting and waiting[0][0] <= now - _DELAY_MS:
            due = waiting.popleft()
            for window in windows:
                window.add(*due)
        for window, days in zip(windows, _DAYS, strict=True):
            window.drop(now - _DELAY_MS - days * _DAY_MS)
            features += [window.count, window.total / window.count if window.count else 0.0]
        waiting.append((now, fraud))
        out.append(features)
    return np.array(out, np.float64)


def _polars(rows: Table) -> FloatArray:
    """Rolling expressions over groups; what lies in the delay is the difference of two windows."""
    pl: Any = importlib.import_module("polars")
    frame = pl.DataFrame(rows._asdict()).with_columns(
        pl.col("times").cast(pl.Datetime("ms")), one=pl.lit(1.0), frauds=pl.col("frauds").cast(pl.Float64)
    )

    def rolling(column: str, days: int, by: str) -> Any:
        return pl.col(column).rolling_sum_by("times", window_size=f"{days}d", closed="right").over(by)

    names, sums = [], []
    for days in _DAYS:
        names += [f"c{days}", f"m{days}"]
        sums += [rolling("one", days, "cards").alias(f"c{days}"), rolling("amounts", days, "cards").alias(f"s{days}")]
    for days in (0, *_DAYS):
        sums.append(rolling("one", 7 + days, "terminals").alias(f"n{days}"))
        sums.append(rolling("frauds", 7 + days, "terminals").alias(f"f{days}"))
    frame = frame.with_columns(*sums)
    means = [(pl.col(f"s{days}") / pl.col(f"c{days}")).alias(f"m{days}") for days in _DAYS]
    for days in _DAYS:
        count, frauds = pl.col(f"n{days}") - pl.col("n0"), pl.col(f"f{days}") - pl.col("f0")
        means += [count.alias(f"k{days}"), pl.when(count > 0).then(frauds / count).otherwise(0.0).alias(f"r{days}")]
        names += [f"k{days}", f"r{days}"]
    matrix: FloatArray = frame.select(*means, *[f"c{days}" for days in _DAYS]).select(names).to_numpy()
    return matrix


def _duckdb(rows: Table) -> FloatArray:
    """One query with a window per feature: RANGE over milliseconds, both ends inclusive."""
    duckdb: Any = importlib.import_module("duckdb")
    selected, windows = [], []
    by_card, by_terminal = (f"PARTITION BY {entity} ORDER BY times RANGE" for entity in ("cards", "terminals"))
    for days in _DAYS:
        begin = days * _DAY_MS - 1
        windows.append(f"c{days} AS ({by_card} BETWEEN {begin} PRECEDING AND CURRENT ROW)")
        selected += [f"count(*) OVER c{days}", f"avg(amounts) OVER c{days}"]
    for days in _DAYS:
        begin = _DELAY_MS + days * _DAY_MS - 1
        windows.append(f"t{days} AS ({by_terminal} BETWEEN {begin} PRECEDING AND {_DELAY_MS} PRECEDING)")
        selected += [f"count(*) OVER t{days}", f"coalesce(avg(frauds) OVER t{days}, 0)"]
    named = ", ".join(f"({text})::DOUBLE AS f{j}" for j, text in enumerate(selected))
    with duckdb.connect() as connection:
        for name, column in rows._asdict().items():
            connection.register(f"column_{name}", {name: column})
        source = " POSITIONAL JOIN ".join(f"column_{name}" for name in rows._fields)
        connection.execute("CREATE TABLE events AS SELECT row_number() OVER () AS number, * FROM " + source)  # noqa: S608
        query = f"SELECT {named} FROM events WINDOW {', '.join(windows)} ORDER BY number"  # noqa: S608
        columns = connection.execute(query).fetchnumpy()
    return np.column_stack([columns[f"f{j}"] for j in range(len(selected))])


_PEERS: dict[str, Callable[[Table], FloatArray]] = {"python": _python, "polars": _polars, "duckdb": _duckdb}


def _tied(rows: Table) -> BoolArray:
    """(n,) rows whose card has another row of the same time."""
    order = np.lexsort((rows.times, rows.cards))
    times, cards = rows.times[order], rows.cards[order]
    same = (times[1:] == times[:-1]) & (cards[1:] == cards[:-1])
    tied = np.zeros(len(times), np.bool_)
    tied[order[1:][same]] = True
    tied[order[:-1][same]] = True
    return tied


def _differences(ours: FloatArray, theirs: FloatArray, compared: BoolArray) -> dict[str, Any]:
    """Rows with other counts, and the largest difference of a mean or risk, among the rows compared."""
    ours, theirs = ours[compared], theirs[compared]
    counts = int(np.count_nonzero((ours[:, ::2] != theirs[:, ::2]).any(axis=1)))
    means = float(np.abs(ours[:, 1::2] - theirs[:, 1::2]).max(initial=0.0))
    return {"rows_other_counts": counts, "means_off_max": means, "equal": counts == 0 and means < _MEANS_TOLERANCE}


def compare(rows: Table, peers: Sequence[str] = tuple(_PEERS), rounds: int = 3) -> dict[str, Any]:
    """Seconds of each on the same rows, best of ``rounds`` (plain Python: one), ratios to ours, and if it is equal.

    ``seconds`` is by the clock, ``cpu_seconds`` of all threads: polars and DuckDB use all cores, the others one. A peer
    that is not installed is reported as such.
    """
    n = len(rows.times)
    ours, seconds, cpu = _best(_headrace, rows, rounds)
    tied = _tied(rows)
    results: list[dict[str, Any]] = [{"engine": "headrace", "rows": n, **_costs(n, seconds, cpu)}]
    for name in peers:
        if name != "python" and importlib.util.find_spec(name) is None:
            results.append({"engine": name, "missing": f"not installed: pip install {name}"})
            continue
        theirs, their_seconds, their_cpu = _best(_PEERS[name], rows, 1 if name == "python" else rounds)
        compared = np.ones(n, np.bool_) if name == "python" else ~tied
        results.append(
            {
                "engine": name if name == "python" else f"{name} {version(name)}",
                "rows": n,
                **_costs(n, their_seconds, their_cpu),
                "ratio": round(their_seconds / seconds, 1),
                "ratio_cpu": round(their_cpu / cpu, 1),
                "rows_compared": int(np.count_nonzero(compared)),
                **_differences(ours, theirs, compared),
            }
        )
    return {"tied_rows": int(np.count_nonzero(tied)), "results": results}


def _costs(n: int, seconds: float, cpu: float) -> dict[str, float]:
    return {"seconds": round(seconds, 3), "cpu_seconds": round(cpu, 3), "us_per_event": round(seconds / n * 1e6, 3)}


def _best(measure: Callable[[Table], FloatArray], rows: Table, rounds: int) -> tuple[FloatArray, float, float]:
    """The columns, and the least of the seconds and of the CPU seconds."""
    seconds, cpu = [], []
    for _ in range(rounds):
        begin, cpu_begin = time.perf_counter(), time.process_time()
        out = measure(rows)
        seconds.append(time.perf_counter() - begin)
        cpu.append(time.process_time() - cpu_begin)
    return out, min(seconds), min(cpu)
