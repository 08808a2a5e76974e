"""Rows of the terminal stage as records again: copies of late ones, dead letters of those that cannot be scored."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import orjson

from features.block import Block, Ids, IntArray
from streams.encode import decimal_keys, source_headers
from streams.log import OutBatch
from streams.shedding import shed_rows
from streams.stage import SCORE, late_records
from streams.topics import DEAD_LETTERS, TRANSACTIONS

__all__ = ["SOURCE_PARTITION", "id_texts", "late_by_terminal", "unscored"]

#: column in which each shuffled row remembers the partition that it came from
SOURCE_PARTITION = "source_partition"


def late_by_terminal(rows: Block, lateness_ms: IntArray) -> OutBatch:
    """Copies for late-events of rows that only the terminal stage found late."""
    keys, sources = id_texts(rows.ids["card_id"]), _sources(rows)
    return late_records("terminal", _events(rows), keys, sources, lateness_ms, shed_rows(rows))


def unscored(rows: Block, reasons: Mapping[int, str]) -> OutBatch:
    """Dead letters of these rows, which cannot be scored for that reason; not the original bytes, but all of them."""
    dead = rows.take(np.array(sorted(reasons), np.int64))
    headers = [
        {"error": reasons[i].encode("utf-8", "backslashreplace"), "stage": SCORE.encode(), "source": source}
        for i, source in zip(sorted(reasons), _sources(dead), strict=True)
    ]
    return OutBatch(
        DEAD_LETTERS, [orjson.dumps(event) for event in _events(dead)], id_texts(dead.ids["card_id"]), None, headers
    )


def _sources(rows: Block) -> list[bytes]:
    return source_headers(TRANSACTIONS, rows.columns[SOURCE_PARTITION].astype(np.int64), rows.offsets)


def _events(rows: Block) -> list[dict[str, Any]]:
    """The rows as events again."""
    ids = {name: rows.ids[name].to_list() for name in ("transaction_id", "card_id", "terminal_id")}
    times, amounts = rows.event_time_ms.tolist(), rows.columns["amount"].tolist()
    extra = [orjson.loads(text or b"{}") for text in rows.extra or [None] * len(rows)]
    return [
        {
            "transaction_id": ids["transaction_id"][i],
            "event_time": times[i],
            "card_id": ids["card_id"][i],
            "terminal_id": ids["terminal_id"][i],
            "amount": amounts[i],
            **extra[i],
        }
        for i in range(len(rows))
    ]


def id_texts(ids: Ids) -> list[bytes]:
    """Each id as it is a Kafka key."""
    return decimal_keys(ids.ints) if ids.ints is not None else ids.texts()
