"""Is the model in the shadow better than the one that serves? Both scores of the same transactions, where labels are
final."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from features.block import BoolArray, IntArray
from models.evidence import Evidence, paired_evidence
from streams.what_if import Scored
from streams.what_if_served import Known

__all__ = ["Pairs", "compared", "paired"]


@dataclass(frozen=True, slots=True)
class Pairs:
    """n transactions that both scored, ``served`` and ``shadow`` in the same order."""

    served: Scored
    shadow: Scored

    def of(self, champion: str, challenger: str) -> BoolArray:
        """(n,) which have scores of these two models."""
        both = zip(self.served.models, self.shadow.models, strict=True)
        return np.array([pair == (champion, challenger) for pair in both], np.bool_)

    @property
    def models(self) -> list[tuple[str, str]]:
        """(who served, who was in the shadow), those of the newest transaction first."""
        newest = np.argsort(-self.served.times, kind="stable").tolist()
        return list(dict.fromkeys((self.served.models[i], self.shadow.models[i]) for i in newest))


def paired(served: Scored, shadow: Scored) -> Pairs:
    """The transactions that have a score of both, by where they are in the log."""
    _, mine, its = np.intersect1d(served.places, shadow.places, assume_unique=True, return_indices=True)
    scored = np.isfinite(served.scores[mine]) & np.isfinite(shadow.scores[its])
    return Pairs(served.take(mine[scored]), shadow.take(its[scored]))


def compared(pairs: Pairs, known: Known, champion: str, challenger: str, confidence: float) -> Evidence:
    """The evidence of the transactions that these two scored, by labels that are final. ``known`` is of all pairs.

    ModelError: a score is not a probability.
    """
    of = pairs.of(champion, challenger)
    return paired_evidence(
        known.labels[of] == 1,
        pairs.served.scores[of],
        pairs.shadow.scores[of],
        _cards(pairs.served)[of],
        known.judged[of],
        confidence=confidence,
    )


def _cards(scored: Scored) -> IntArray:
    """(n,) integers that tell the cards apart."""
    keys = scored.ids["card_id"].keys()
    return np.unique(keys, axis=0, return_inverse=True)[1].reshape(-1).astype(np.int64)
