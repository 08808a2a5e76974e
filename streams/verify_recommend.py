"""Live equals offline for the recommend pipeline: its stages replayed from their own input logs.

The user stage is replayed from ``interactions`` and compared with the rows in ``interactions.by-item``, bit by bit; the
item stage from these, compared with the values in ``items``. Lists are made from a view that lags, so they are not
replayed: what is checked of ``recommendations`` is that each event has its list, with what the event said, and that the
model gives the scores that were served for the features that were logged.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields
from functools import cache
from typing import Any

import numpy as np
import orjson

from features.block import Block, Ids
from features.plan import StateError
from features.schema import ACTIONS
from features.shopping import FAN, FEATURES, ItemRecords
from models.slot import Serving
from streams.codec import decode_together
from streams.log import TP, Log, TopicInfo
from streams.partitioner import partitions_of
from streams.pipelines.recommend import RecommendPipeline
from streams.pipelines.recommend_stages import rows_by_item
from streams.pipelines.recommend_tasks import ItemTask, UserTask
from streams.pipelines.recommend_withdrawn import DECISION, NOTE
from streams.replay import read_up_to
from streams.shuffle import Sent, pack_for
from streams.topics import BY_ITEM, INTERACTIONS, ITEMS, RECOMMENDATIONS
from streams.verify_rows import ABSENT, SHOWN, Difference, StageResult, Table, add_messages, compare, places

__all__ = ["verify_recommend"]

#: of a list, what its event said
_SAID = ("event_id", "event_time", "user_id", "item_id", "action")
_VALUES_SHOWN = 3


@dataclass(slots=True)
class _Logs:
    """The logs, how far their group has come and where they end, and a pipeline for replaying."""

    log: Log
    pipeline: RecommendPipeline
    infos: Mapping[str, TopicInfo]
    committed: Mapping[TP, int]
    ends: Mapping[TP, int]
    progress: Callable[[int], None]

    def stops(self, topic: str, of: Mapping[TP, int]) -> dict[TP, int]:
        return {tp: offset for tp, offset in of.items() if tp.topic == topic}


def verify_recommend(
    log: Log, group: str, pipeline: RecommendPipeline, progress: Callable[[int], None] = lambda _: None
) -> list[StageResult]:
    """Results of the stages ``user``, ``item`` and ``lists``.

    ``pipeline``: with the settings and the model that the group's workers ran with, not bound. ConfigError: a topic is
    missing, or the group has committed nothing.
    """
    # items follow from rows, and rows from events
    of_ends = (ITEMS, BY_ITEM, INTERACTIONS, RECOMMENDATIONS)
    infos, committed, ends = places(log, group, (INTERACTIONS, BY_ITEM), of_ends)
    pipeline.infos = infos
    logs = _Logs(log, pipeline, infos, committed, ends, progress)
    sent, said = _users_again(logs)
    stops = {tp: at * FAN for tp, at in logs.stops(INTERACTIONS, committed).items()}
    results = [compare("user", INTERACTIONS, sent, _rows_in_log(logs), stops), _items(logs)]
    return [*results, _lists(logs, said)]


# --- by user ---


def _users_again(logs: _Logs) -> tuple[Table, dict[tuple[int, int], tuple[Any, ...]]]:
    """The rows that the user stage sends, and by partition and offset what each event that gets a list says."""
    table, said = Table(), {}
    pipeline, n = logs.pipeline, logs.infos[BY_ITEM].partitions
    task = cache(lambda tp: UserTask(pipeline, tp))
    for batch in read_up_to(logs.log, logs.stops(INTERACTIONS, logs.committed)):
        [(block, _)] = decode_together(pipeline.interactions.decode, [batch])
        made = task(batch.tp).stage.process(block)
        if len(made.block):
            sent = Sent(task(batch.tp).source, rows_by_item(made))
            targets = partitions_of(sent.block.ids["item_id"], n)
            for out in pack_for(BY_ITEM, "rows", [sent], targets, n):
                add_messages(table, out.values, out.partition or 0)
            said.update(_said(made.block))
        logs.progress(len(batch))
    return table, said


def _said(block: Block) -> dict[tuple[int, int], tuple[Any, ...]]:
    columns = zip(
        block.offsets.tolist(),
        block.ids["event_id"].to_list(),
        block.event_time_ms.tolist(),
        block.ids["user_id"].to_list(),
        block.ids["item_id"].to_list(),
        block.columns["action"].tolist(),
        strict=True,
    )
    return {(block.partition, at): (*words, ACTIONS[action]) for at, *words, action in columns}


def _rows_in_log(logs: _Logs) -> Table:
    table = Table()
    for batch in read_up_to(logs.log, logs.stops(BY_ITEM, logs.ends)):
        add_messages(table, batch.values, batch.tp.partition)
        logs.progress(len(batch))
    return table


# --- by item ---


def _items(logs: _Logs) -> StageResult:
    """Values of `items` beside those that the stage publishes again. The topic is compacted: of an item any value may
    be gone but the last. What follows the last one that was published again is of what the group has not committed."""
    result = StageResult("item")
    published = _published_again(logs)
    open_end = any(logs.committed[tp] < end for tp, end in logs.ends.items() if tp.topic == BY_ITEM)
    logged: dict[bytes, list[bytes]] = defaultdict(list)
    for batch in read_up_to(logs.log, logs.stops(ITEMS, logs.ends), from_start=False):
        for key, value in zip(batch.keys, batch.values, strict=True):
            if key is not None and value is not None and not key.startswith((DECISION, NOTE)):
                logged[key].append(value)
        logs.progress(len(batch))
    for key in sorted(published.keys() | logged.keys()):
        _check_item(result, key, logged[key], published.get(key, []), open_end)
    return result


def _check_item(result: StageResult, key: bytes, logged: list[bytes], expected: list[bytes], open_end: bool) -> None:
    """One item's values; with ``open_end`` newer ones than those ``expected``, of input that was not committed, may
    follow."""
    result.rows += len(logged) or 1
    result.repeated += len(logged) - len(set(logged))
    known, last = set(expected), expected[-1] if expected else b""
    # a newer value may have taken the place of the last one that is known
    replaced = open_end and last not in logged and bool(logged) and logged[-1] not in known
    seen_last = replaced or not expected
    for value in logged:
        seen_last = seen_last or value == last
        if value not in known and not (open_end and seen_last):
            _item_differs(result, key, value, last)
    if expected and last not in logged and not replaced:
        _item_differs(result, key, b"", last)


def _published_again(logs: _Logs) -> dict[bytes, list[bytes]]:
    out: dict[bytes, list[bytes]] = defaultdict(list)
    task = cache(lambda tp: ItemTask(logs.pipeline, tp))
    for batch in read_up_to(logs.log, logs.stops(BY_ITEM, logs.committed)):
        for sent in logs.pipeline.process([(task(batch.tp), batch)]):
            if sent.topic == ITEMS:
                for key, value in zip(sent.keys or [], sent.values, strict=True):
                    out[key or b""].append(value or b"")
        logs.progress(len(batch))
    return out


def _item_differs(result: StageResult, key: bytes, found: bytes, expected: bytes) -> None:
    result.mismatching_rows += 1
    if len(result.differences) >= SHOWN:
        return
    columns: dict[str, tuple[Any, Any]] = {}
    try:
        a, b = (ItemRecords.unpack(Ids(ints=np.zeros(1, np.int64)), [value]) for value in (found, expected))
        for of in fields(ItemRecords)[1:]:
            x, y = np.ravel(getattr(a, of.name)), np.ravel(getattr(b, of.name))
            if x.tobytes() != y.tobytes():
                columns[of.name] = (x[:_VALUES_SHOWN].tolist(), y[:_VALUES_SHOWN].tolist())
    except StateError:
        columns["record"] = ("present" if found else ABSENT, "present" if expected else ABSENT)
    name = key.decode("utf-8", "replace")
    result.differences.append(Difference("item", f"{ITEMS}/{name}", columns))


# --- lists ---


def _lists(logs: _Logs, said: dict[tuple[int, int], tuple[Any, ...]]) -> StageResult:
    result, missing = StageResult("lists", rows=len(said)), set(said)
    model = logs.pipeline.slot.serving
    for batch in read_up_to(logs.log, logs.stops(RECOMMENDATIONS, logs.ends)):
        for i, value in enumerate(batch.values):
            source = next((v for name, v in batch.headers(i) if name == "source"), None)
            if source is None or value is None:
                continue  # not from one of our workers
            partition, offset = map(int, source.rsplit(b"/", 2)[1:])
            if offset >= logs.committed.get(TP(INTERACTIONS, partition), 0):
                continue
            place = (partition, offset)
            result.repeated += place in said and place not in missing
            missing.discard(place)
            _list_differs(result, source.decode(), _differences(orjson.loads(value), said.get(place), model))
        logs.progress(len(batch))
    for partition, offset in sorted(missing):
        _list_differs(result, f"{INTERACTIONS}/{partition}/{offset}", {"list": (ABSENT, "present")})
    return result


def _differences(listed: dict[str, Any], said: tuple[Any, ...] | None, model: Serving) -> dict[str, tuple[Any, Any]]:
    if said is None:
        return {"list": ("present", ABSENT)}
    out = {name: (listed[name], value) for name, value in zip(_SAID, said, strict=True) if listed[name] != value}
    if model.model is None or listed["model"] != model.label or list(listed["features"] or ()) != list(FEATURES):
        return out  # of a model that is not here any more, or without features to score
    scored = [i for i, item in enumerate(listed["items"]) if item["score"] is not None]
    x = np.array([listed["features"][name] for name in FEATURES], np.float64).T[scored]
    served = np.array([listed["items"][i]["score"] for i in scored], np.float64)
    again = model.score(np.ascontiguousarray(x))[0] if len(scored) else served
    for i in np.flatnonzero(again != served).tolist()[:_VALUES_SHOWN]:
        out[f"score of item {listed['items'][scored[i]]['item_id']}"] = (float(served[i]), float(again[i]))
    return out


def _list_differs(result: StageResult, source: str, columns: dict[str, tuple[Any, Any]]) -> None:
    if columns:
        result.mismatching_rows += 1
        if len(result.differences) < SHOWN:
            result.differences.append(Difference("lists", source, columns))
