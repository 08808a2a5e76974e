"""What was really served in a range of event time, and what has become known of it: score records and labels."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import orjson

from features.block import Block, BoolArray, FloatArray, Ids, IntArray
from features.schema import TRANSACTION_LABELS
from monitoring.labels import JoinSettings
from streams.codec import Decoder
from streams.dead_letters import log_ends
from streams.log import Log
from streams.replay import read_up_to
from streams.topics import FRAUD_SCORES, LABELS
from streams.what_if import Scored, Span, joined, places_of

__all__ = ["UNKNOWN", "Known", "known_labels", "read_served"]

#: of a label that has not come
UNKNOWN = -1


def read_served(
    log: Log,
    span: Span,
    progress: Callable[[int], None] = lambda _: None,
    recent_ms: int | None = None,
    topic: str = FRAUD_SCORES,
) -> Scored:
    """The score records of the range in ``topic``, with ``recent_ms`` at most so much older than the newest of them;
    one that was sent again counts once. Their features, where they were logged.

    ConfigError: there is no such topic.
    """
    parts: list[Scored] = []
    begin, newest, dropped = span.begin_ms, 0, 0
    for batch in read_up_to(log, log_ends(log, topic), from_start=False):
        records, where = [], []
        for i, value in enumerate(batch.values):
            source = next((v for name, v in batch.headers(i) if name == "source"), None)
            if source is None or value is None:
                continue  # not from one of our workers
            record = orjson.loads(value)
            if begin <= record["event_time"] < span.end_ms:
                newest = max(newest, record["event_time"])
                records.append(record)
                where.append([int(number) for number in source.rsplit(b"/", 2)[1:]])
        if records:
            parts.append(_columns(records, np.array(where, np.int64)))
        if recent_ms is not None:
            begin = max(begin, newest - recent_ms)
            if begin - dropped > recent_ms // 8:  # not at each batch: it looks at all there is
                parts, dropped = [part for part in parts if part.times.max() >= begin], begin
        progress(len(batch))
    names = tuple(dict.fromkeys(name for part in parts for name in part.names))
    whole = joined([_with_features(part, names) for part in parts], names)
    first = np.unique(whole.places, return_index=True)[1]
    return whole.take(first[whole.times[first] >= begin])


def _columns(records: list[dict[str, Any]], where: IntArray) -> Scored:
    """Score records (n,) and the partition and offset (n, 2) of each one's transaction."""
    names = tuple(dict.fromkeys(name for record in records for name in record["features"] or ()))
    matrix = np.array([[(r["features"] or {}).get(name) for name in names] for r in records], np.float64)
    return Scored(
        places_of(where[:, 0], where[:, 1]),
        np.array([r["event_time"] for r in records], np.int64),
        np.array([r["amount"] for r in records], np.float64),
        np.array([r["score"] for r in records], np.float64),  # null, without a model, is NaN
        {name: Ids.of([r[name] for r in records]) for name in ("transaction_id", "card_id", "terminal_id")},
        names,
        matrix.reshape(len(records), len(names)),
        [r["model"] or "" for r in records],
    )


def _with_features(part: Scored, names: tuple[str, ...]) -> Scored:
    """The rows with the features of these names, NaN where one was not logged."""
    if part.names == names:
        return part
    matrix = np.full((len(part), len(names)), np.nan)
    matrix[:, [names.index(name) for name in part.names]] = part.matrix
    return replace(part, names=names, matrix=matrix)


@dataclass(frozen=True, slots=True)
class Known:
    """Of n transactions: their ``labels`` (n,) 0, 1 or `UNKNOWN`, and which are ``matured`` (n,): so old, as of the
    newest label or event of the log, that their labels are final. ``unlabelled`` of these have none."""

    labels: IntArray
    matured: BoolArray

    @property
    def judged(self) -> BoolArray:
        """(n,) whose label is known for good: only they can be compared, or frauds that are reported early would be
        held against legitimate ones that nobody has confirmed yet."""
        known: BoolArray = self.matured & (self.labels != UNKNOWN)
        return known


def known_labels(log: Log, scored: Scored, policy: JoinSettings, mature_ms: int) -> Known:
    """What the label topic says of the rows, by the policy of the monitor's join: one label of several, and whether a
    row without one is legitimate when its horizon is passed. ``mature_ms``: age at which a label is final."""
    decoder, blocks = Decoder(TRANSACTION_LABELS), list[Block]()
    for batch in read_up_to(log, log_ends(log, LABELS), from_start=False):
        block, _ = decoder.decode(batch)
        if len(block):
            blocks.append(block)
    labels = np.full(len(scored), UNKNOWN, np.int64)
    newest = int(scored.times.max(initial=0))
    if blocks:
        ids = Ids.concat([block.ids["transaction_id"] for block in blocks])
        times = np.concatenate([block.columns["label_time"].astype(np.int64) for block in blocks])
        frauds = np.concatenate([block.columns["is_fraud"].astype(np.int64) for block in blocks])
        # as the live monitor: a label of a clock that is ahead does not make all others old
        sent = np.concatenate([block.timestamps for block in blocks])
        newest = max(newest, int(np.where(sent > 0, np.minimum(times, sent), times).max()))
        _join(labels, scored, ids, times, frauds, policy)
    if policy.at_horizon:
        mature_ms = max(mature_ms, policy.horizon_ms)
    matured = newest - scored.times >= mature_ms
    if policy.negatives == "horizon":
        labels[(labels == UNKNOWN) & (newest - scored.times >= policy.horizon_ms)] = 0
    return Known(labels, matured)


def _join(
    labels: IntArray, scored: Scored, ids: Ids, times: IntArray, frauds: FloatArray | IntArray, policy: JoinSettings
) -> None:
    """Fills the labels of the rows whose transaction has one up to its horizon."""
    keys = np.concatenate([scored.ids["transaction_id"].keys(), ids.keys()])
    _, groups = np.unique(keys, axis=0, return_inverse=True)
    groups = groups.reshape(-1)
    n = len(scored)
    row_of = np.full(int(groups.max(initial=-1)) + 1, UNKNOWN, np.int64)
    # the first of a repeated transaction was served
    row_of[groups[:n][::-1]] = np.arange(n)[::-1]
    rows = row_of[groups[n:]]
    counts = np.flatnonzero(rows != UNKNOWN)
    counts = counts[times[counts] <= scored.times[rows[counts]] + policy.horizon_ms]
    # written last is what counts: the newest label time, or the first that came
    counts = counts[np.argsort(times[counts], kind="stable")] if policy.conflicts == "last" else counts[::-1]
    labels[rows[counts]] = frauds[counts]
