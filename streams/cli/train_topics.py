"""What `headrace train` learns from where it is in topics: the log's events and labels, as if they were in files."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from typing import TYPE_CHECKING

from streams.cli.offline_io import Inputs, report_invalid

if TYPE_CHECKING:
    from features.block import Block
    from features.declare import FeatureSet
    from features.schema import EventSchema
    from streams.codec import Dead
    from streams.log import TP, Log
    from streams.quality import QualityCounters

__all__ = ["topic_inputs"]


def topic_inputs(args: argparse.Namespace, features: FeatureSet, end_ms: int) -> Inputs:
    """The transactions before ``end_ms`` (event time), and all labels, that are in the topics of ``--bootstrap`` now.

    Earlier transactions than those to train on are what their windows look back on. Says on stderr how many records
    are invalid, and where and why the first one is. HeadraceError: no transaction is valid.
    """
    from features.schema import TRANSACTION_LABELS, TRANSACTIONS
    from streams.cli.broker_wait import await_broker
    from streams.cli.progress import progress
    from streams.config import load_settings
    from streams.errors import HeadraceError
    from streams.pipelines.fraud_stages import StageSettings
    from streams.quality import by_topic

    settings = load_settings(args.config, overrides={"bootstrap": args.bootstrap})
    log = await_broker(settings)
    with progress("records", None) as advance:
        events, bad_events, events_quality = _read(log, TRANSACTIONS, advance)
        labels, bad_labels, labels_quality = _read(log, TRANSACTION_LABELS, advance)
    for schema, valid, bad in ((TRANSACTIONS, events, bad_events), (TRANSACTION_LABELS, labels, bad_labels)):
        where = "{0.topic}/{0.partition}/{1}".format(*bad[0]) if bad else ""
        report_invalid(schema.topic, len(valid), [dead for _, _, dead in bad], where)
    events = events.take(events.event_time_ms < end_ms)
    if len(events) == 0:
        raise HeadraceError(
            f"{TRANSACTIONS.topic} at {settings.bootstrap}: no valid transaction before the test's end; give ranges "
            "that the topic holds"
        )
    stages = StageSettings(features, settings.allowed_lateness_ms, settings.dedupe_ms, settings.dedupe_entries)
    quality = by_topic({TRANSACTIONS.topic: events_quality, TRANSACTION_LABELS.topic: labels_quality})
    return Inputs(events, labels, stages, len(bad_events), len(bad_labels), quality)


def _read(
    log: Log, schema: EventSchema, progress: Callable[[int], None]
) -> tuple[Block, list[tuple[TP, int, Dead]], QualityCounters]:
    """The valid records of the topic, partition by partition, the others with their partition and offset, and what
    was found in the fields of both."""
    import numpy as np

    from features.block import Block
    from streams.codec import Decoder
    from streams.dead_letters import log_ends
    from streams.log import TP, RecordBatch
    from streams.replay import read_up_to

    decoder = Decoder(schema)
    bad: list[tuple[TP, int, Dead]] = []
    nothing = decoder.decode(RecordBatch(TP(schema.topic, 0), [], [], [], [], lambda i: [], 0))[0]
    parts: list[Block] = []
    for batch in read_up_to(log, log_ends(log, schema.topic), from_start=False):
        block, dead = decoder.decode(batch)
        block.extra = None
        bad += [(batch.tp, batch.offsets[one.index], one) for one in dead]
        parts += [block] if len(block) else []
        progress(len(batch))
    # in canonical order, however the partitions took turns
    bad.sort(key=lambda one: one[:2])
    whole = Block.concat(sorted(parts, key=lambda part: part.partition) or [nothing])
    whole.offsets = np.arange(len(whole), dtype=np.int64)
    # as of a file: when a record was sent does not matter
    whole.timestamps = whole.columns[schema.time].astype(np.int64, copy=False)
    return whole, bad, decoder.quality
