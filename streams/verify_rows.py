"""What verifying any pipeline has in common: rows of words by source offset, and how two tables of them differ."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt
import xxhash

from features.block import IntArray
from streams.errors import ConfigError
from streams.log import TP, Log, TopicInfo
from streams.rows import Rows
from streams.shedding import SHED
from streams.shuffle import ShuffleError, unpack

__all__ = [
    "ABSENT",
    "SHOWN",
    "Difference",
    "Place",
    "StageResult",
    "Table",
    "Words",
    "add_messages",
    "compare",
    "places",
]

#: differences that are shown, of each stage
SHOWN = 10
ABSENT = "absent"

Words = npt.NDArray[np.int64]
#: (source topic, source partition, target partition); the target is 0 where there is one place only
Place = tuple[str, int, int]


@dataclass(frozen=True, slots=True)
class Difference:
    """A row that the log holds otherwise than the replay gives it: by column, (in the log, replayed)."""

    stage: str
    source: str
    columns: dict[str, tuple[Any, Any]]

    def to_json(self) -> dict[str, Any]:
        """Plain data."""
        columns = {name: {"log": log, "replayed": replayed} for name, (log, replayed) in self.columns.items()}
        return {"stage": self.stage, "source": self.source, "columns": columns}


@dataclass(slots=True)
class StageResult:
    """What was found for one stage; ``repeated`` rows were in the log more than once, each time compared."""

    stage: str
    rows: int = 0
    mismatching_rows: int = 0
    repeated: int = 0
    differences: list[Difference] = field(default_factory=list)

    def to_json(self) -> dict[str, int]:
        """The counts."""
        return {"rows": self.rows, "mismatching_rows": self.mismatching_rows, "repeated": self.repeated}


def places(
    log: Log, group: str, inputs: Sequence[str], ends: Sequence[str]
) -> tuple[dict[str, TopicInfo], dict[TP, int], dict[TP, int]]:
    """The topics, what the group has committed of ``inputs``, and then where ``ends`` end, in this order: workers may
    go on meanwhile, and what follows from another topic is to be asked for before it.

    ConfigError: a topic is missing, or the group has committed nothing.
    """
    topics = dict.fromkeys((*inputs, *ends))
    admin = log.admin()
    infos = admin.topics(list(topics))
    admin.close()
    missing = [name for name in topics if name not in infos]
    if missing:
        raise ConfigError(f"topic {missing[0]} is not there: nothing to verify; run a worker first")
    consumer = log.consumer(group)
    try:
        asked = [TP(name, p) for name in inputs for p in range(infos[name].partitions)]
        committed = {tp: offset or 0 for tp, offset in consumer.committed(asked).items()}
        found = {
            TP(name, p): consumer.offset_range(TP(name, p))[1] for name in ends for p in range(infos[name].partitions)
        }
    finally:
        consumer.close()
    if not any(committed.values()):
        raise ConfigError(f"group {group} has committed nothing: name the group of the workers with --group")
    return infos, committed, found


class Table:
    """Rows of words by source offset, of each place in the order in which they came."""

    def __init__(self) -> None:
        #: of the rows of each source topic
        self.names: dict[str, tuple[str, ...]] = {}
        #: which of them are the bits of a float64
        self.floats: frozenset[str] = frozenset()
        self._offsets: dict[Place, list[IntArray]] = {}
        self._words: dict[Place, list[Words]] = {}

    def add(self, place: Place, offsets: IntArray, words: Words) -> None:
        """``words`` (n, k), one row for each offset."""
        self._offsets.setdefault(place, []).append(offsets)
        self._words.setdefault(place, []).append(words)

    @property
    def places(self) -> set[Place]:
        """Those that have rows."""
        return set(self._offsets)

    def of(self, place: Place) -> tuple[IntArray, Words]:
        """Offsets (m,) in rising order, those that came more than once in the order of coming, and their words."""
        if place not in self._offsets:
            return np.empty(0, np.int64), np.empty((0, len(self.names.get(place[0], ()))), np.int64)
        offsets = np.concatenate(self._offsets[place])
        order = np.argsort(offsets, kind="stable")
        return offsets[order], np.concatenate(self._words[place])[order]


def add_messages(table: Table, values: Any, target: int) -> None:
    """Adds the rows of shuffle messages in the partition ``target``; what is none is left out."""
    for value in values:
        try:
            message = unpack(value)
        except ShuffleError:
            continue  # the live stage has dead-lettered it
        if len(message.rows):
            names, words = _plain(message.rows)
            if message.source.topic not in table.names:
                table.names[message.source.topic] = names
                table.floats |= {word[3:] for word in message.rows.layout.words if word.startswith("f8:")}
            place = (message.source.topic, message.source.partition, target)
            table.add(place, message.rows.offsets.copy(), words)


def _plain(rows: Rows) -> tuple[tuple[str, ...], Words]:
    """The rows in a form that does not depend on how they were put into blocks: (n, k) int64, ids as their keys."""
    block = rows.block("", 0, 0)
    columns: list[tuple[str, npt.NDArray[Any]]] = [("timestamp", block.timestamps)]
    for name, ids in sorted(block.ids.items()):
        keys = ids.keys().view(np.int64)
        columns += [(f"{name} (key, high)", keys[:, 0]), (f"{name} (key, low)", keys[:, 1])]
    for name, column in sorted(block.columns.items()):
        if name == SHED:
            continue  # decided by a clock when it was sent, and taken from the log
        columns.append((name, column.view(np.int64) if column.dtype == np.float64 else column.astype(np.int64)))
    extra = block.extra or [None] * len(block)
    columns.append(("extra", np.array([_hash(text) for text in extra], np.int64)))
    return tuple(name for name, _ in columns), np.column_stack([column for _, column in columns])


def _hash(text: bytes | None) -> int:
    return 0 if text is None else xxhash.xxh3_64_intdigest(text) >> 1


def compare(stage: str, topic: str, replayed: Table, logged: Table, stops: Mapping[TP, int] | None) -> StageResult:
    """``stops``: source offsets from there on are not compared; None = those that the replay does not have either."""
    result = StageResult(stage)
    shape = replayed if topic in replayed.names else logged
    for place in sorted(p for p in replayed.places | logged.places if p[0] == topic):
        expected_at, expected = replayed.of(place)
        found_at, found = logged.of(place)
        stop = None if stops is None else stops.get(TP(topic, place[1]), 0)
        known = np.isin(found_at, expected_at) if stop is None else found_at < stop
        found_at, found = found_at[known], found[known]
        result.rows += len(expected_at)
        result.repeated += len(found_at) - len(np.unique(found_at))
        _compare_place(result, place, shape, expected_at, expected, found_at, found)
    return result


def _compare_place(
    result: StageResult,
    place: Place,
    shape: Table,
    expected_at: IntArray,
    expected: Words,
    found_at: IntArray,
    found: Words,
) -> None:
    wrong: dict[int, dict[str, tuple[Any, Any]]] = {}
    at = np.searchsorted(expected_at, found_at)
    there = at < len(expected_at)
    there[there] = expected_at[at[there]] == found_at[there]
    for i in np.flatnonzero(~there):
        wrong[int(found_at[i])] = {"row": ("present", ABSENT)}
    for i in np.flatnonzero(~np.isin(expected_at, found_at)):
        wrong[int(expected_at[i])] = {"row": (ABSENT, "present")}
    rows = np.flatnonzero(there)
    if expected.shape[1] == found.shape[1]:
        for i in rows[(found[rows] != expected[at[rows]]).any(axis=1)]:
            pairs = zip(shape.names[place[0]], found[i].tolist(), expected[at[i]].tolist(), strict=True)
            wrong[int(found_at[i])] = {
                name: (_shown(a, name in shape.floats), _shown(b, name in shape.floats))
                for name, a, b in pairs
                if a != b
            }
    else:
        for i in rows:
            wrong[int(found_at[i])] = {"columns": (found.shape[1], expected.shape[1])}
    result.mismatching_rows += len(wrong)
    for offset in sorted(wrong)[: SHOWN - len(result.differences)]:
        result.differences.append(Difference(result.stage, f"{place[0]}/{place[1]}/{offset}", wrong[offset]))


def _shown(word: int, is_float: bool) -> Any:
    if not is_float:
        return word
    value = float(np.array([word], np.int64).view(np.float64)[0])
    return None if np.isnan(value) else value
