"""Rows scored by a lineup of models, as records: whose each score is, why, and what the shadow says."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt
import orjson

from features.block import IntArray
from models.conformal import UNSAID
from models.lineup import Lineup, Scored, Some, halved
from models.serving import Serving
from streams.encode import source_headers
from streams.log import OutBatch
from streams.pipelines.fraud_monitor import send_vectors
from streams.pipelines.fraud_records import id_texts
from streams.reasons import reason_texts
from streams.topics import FRAUD_SCORES, SHADOW_SCORES, TRANSACTIONS

if TYPE_CHECKING:
    from streams.pipelines.fraud import FraudPipeline
    from streams.pipelines.fraud_tasks import Vectors

__all__ = ["score_rows"]


def score_rows(
    pipeline: FraudPipeline, lineup: Lineup, vectors: Vectors, nbytes: int, start: int, stop: int
) -> list[OutBatch]:
    """Scores of the rows from ``start`` up to ``stop``, in their order, and what goes with them; ``nbytes`` were read
    for all."""
    vectors = vectors.part(start, stop)
    meters, rows = pipeline.meters, vectors.rows
    with meters.part("score", nbytes):
        keys = None if lineup.canary is None else rows.ids["card_id"].keys()
        scored = lineup.score(vectors.matrix, keys)
    with meters.part("explain", nbytes):
        reasons = _explained(lineup, vectors, scored)
    with meters.part("encode", nbytes):
        values = pipeline.encoder.encode(
            rows,
            features=vectors.matrix,
            late=vectors.late,
            model=_whose(lineup, scored),
            score=scored.score,
            raw=scored.raw,
            reasons=reasons,
            sets=_sets(lineup, scored) if pipeline.log_sets else None,
        )
        transactions = id_texts(rows.ids["transaction_id"])
        sources = source_headers(TRANSACTIONS, vectors.source_partitions, rows.offsets)
        headers = [{"source": source} for source in sources]
    outputs = [OutBatch(FRAUD_SCORES, values, transactions, None, headers)]
    if lineup.shadow is not None and scored.shadow is not None:
        with meters.part("shadow", nbytes):
            of, said = _shadowed(pipeline, lineup.shadow, vectors, scored.shadow)
        if said:
            outputs.append(OutBatch(SHADOW_SCORES, said, [transactions[i] for i in of], None, [headers[i] for i in of]))
    if pipeline.monitor:
        with meters.part("monitor", nbytes):
            outputs += send_vectors(pipeline, vectors, scored.raw, scored.score, _labels(lineup, scored))
    # last: where anything above raises, the rows are done again
    meters.counts["scored"] += len(rows)
    return outputs


def _shadowed(pipeline: FraudPipeline, shadow: Serving, vectors: Vectors, some: Some) -> tuple[list[int], list[bytes]]:
    """Which rows have a shadow score that can be written, and their records; the others go without."""

    def encoded(start: int, stop: int) -> list[bytes]:
        rows = some.rows[start:stop]
        whole = len(rows) == len(vectors.rows)
        return pipeline.shadow_encoder.encode(
            vectors.rows if whole else vectors.rows.take(rows),
            features=None,
            late=vectors.late[rows],
            model=shadow.label,
            score=some.score[start:stop],
            raw=some.raw[start:stop],
            sets=shadow.sets(some.raw[start:stop]) if pipeline.log_sets else None,
        )

    parts = halved(encoded, len(some.rows), f"shadow {shadow.label}, its records")
    of = [i for start, stop, _ in parts for i in some.rows[start:stop].tolist()]
    return of, [value for _, _, values in parts for value in values]


def _labels(lineup: Lineup, scored: Scored) -> list[str]:
    """For each row "name@version" of the model whose score it has, empty without a model."""
    labels = [lineup.champion.label or ""] * len(scored.score)
    if lineup.canary is not None:
        for i in scored.canary.tolist():
            labels[i] = lineup.canary.label or ""
    return labels


def _whose(lineup: Lineup, scored: Scored) -> str | list[bytes] | None:
    """The same as `ScoreEncoder.encode` takes it."""
    if len(scored.canary) == 0:
        return lineup.champion.label
    return [orjson.dumps(label or None) for label in _labels(lineup, scored)]


def _sets(lineup: Lineup, scored: Scored) -> npt.NDArray[np.int8] | None:
    """(n,) the labels that each row's score leaves possible, by the model that scored it; None where no model says.

    Which of the two is up to the lineup alone: what becomes of a row never depends on the rows beside it.
    """
    sets = lineup.champion.sets(scored.raw)
    if lineup.canary is None:
        return sets
    by_canary = lineup.canary.sets(scored.raw[scored.canary])
    if sets is None and by_canary is None:
        return None
    sets = np.full(len(scored.raw), UNSAID, np.int8) if sets is None else sets
    sets[scored.canary] = UNSAID if by_canary is None else by_canary
    return sets


def _explained(lineup: Lineup, vectors: Vectors, scored: Scored) -> list[bytes] | None:
    """Each row's reasons by the model that scored it, as of `reason_texts`."""
    n = len(vectors.rows)
    by_canary = scored.canary
    if lineup.canary is None or len(by_canary) == 0:
        return _texts(lineup.champion, vectors, scored, np.arange(n))
    texts = [b"[]"] * n
    by_champion = np.setdiff1d(np.arange(n), by_canary, assume_unique=True)
    for i, text in zip(by_champion.tolist(), _texts(lineup.champion, vectors, scored, by_champion) or (), strict=False):
        texts[i] = text
    for i, text in _by_canary(lineup, lineup.canary, vectors, scored):
        texts[i] = text
    return texts


def _by_canary(lineup: Lineup, canary: Serving, vectors: Vectors, scored: Scored) -> list[tuple[int, bytes]]:
    """(row, reasons) of the rows that the canary scored and explains; those that it fails to explain are counted."""
    rows = scored.canary
    parts = halved(
        lambda start, stop: _texts(canary, vectors, scored, rows[start:stop]),
        len(rows),
        f"canary {canary.label}, its reasons",
    )
    failed = len(rows) - sum(stop - start for start, stop, _ in parts)
    if failed and lineup.guard is not None:
        lineup.guard.fail(failed)
    return [
        (i, text)
        for start, stop, texts in parts
        for i, text in zip(rows[start:stop].tolist(), texts or (), strict=False)
    ]


def _texts(serving: Serving, vectors: Vectors, scored: Scored, rows: IntArray) -> list[bytes] | None:
    whole = len(rows) == len(vectors.rows)
    x = vectors.matrix if whole else vectors.matrix[rows]
    places = vectors.source_partitions[rows], vectors.rows.offsets[rows]
    return reason_texts(len(rows), serving.reasons(x, scored.score[rows], *places))
