"""A weight of each source of candidates that learns from each click as it comes, and which weights are to be served.
River lives here.

A weight is added to the model's score of every item that the source names. LambdaRank fits the difference of two scores
to the log odds that the one is clicked rather than the other, so a weight is in units of log odds: 0.7 doubles the odds
of a source's items against all others. A list is taken for a choice among its items with the softmax of these sums, and
River's stochastic gradient descent follows the loss of what was clicked (the listwise loss of Cao et al., 2007).

It is judged progressively: each list is first ordered by what was learned from the lists before it, then learned from.
Of the last rounds of lists the model's own order, that with the served weights, and that with the learned ones are
compared: what is better than the served beyond chance takes its place, and the comparison begins anew. Without
evidence, nothing moves.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
from river import optim

from features.arrays import Arrays, check_like, of_texts, texts_of
from features.block import BoolArray, FloatArray, IntArray
from features.plan import StateError
from models.online import Gate

__all__ = ["CONFIDENCE", "WEIGHT_MAX", "SourceWeights"]

#: of the gate
CONFIDENCE = 0.95
#: weights stay within this: what is shown first is clicked more, so that a weight may feed itself
WEIGHT_MAX = 3.0

#: lists that are one round of the gate, and rounds that are looked at: what is older says nothing of the present
_ROUND, _ROUNDS_KEPT = 256, 32
#: of the loss, to be gained at least
_GAIN_MIN = 0.005
#: weights are served in steps of a thousandth, so that what is written is what is used
_DECIMALS = 3
#: of the losses of a list: 1 less the reciprocal rank of the click, in the model's order, with the served and with the
#: learned weights
_MODEL, _SERVED, _LEARNED = range(3)
_OPTIM: Any = optim


class SourceWeights:
    """One weight for each of ``sources``, 0 at first.

    ``weights`` (k,) are what was learned, ``served`` (k,) what lists are to be ordered with. ``rate``: of the descent,
    in units of the scores. `update` takes lists in the order of the log; how they are cut into calls never shows.
    """

    def __init__(self, sources: Sequence[str], rate: float = 0.02) -> None:
        self.sources, self._rate = tuple(sources), rate
        self.weights, self.served = np.zeros(len(self.sources)), np.zeros(len(self.sources))
        #: lists learned from
        self.lists = 0
        #: (r, 3) mean losses of the last rounds since ``served`` changed, and (n, 3) of a round that is not complete
        self._rounds, self._losses = np.zeros((0, 3)), np.zeros((0, 3))

    def update(
        self, begin: IntArray, scores: FloatArray, source: IntArray, clicked: BoolArray
    ) -> list[tuple[int, FloatArray]]:
        """Learns from lists: list i is the rows ``begin[i]:begin[i + 1]``, with the model's ``scores`` (m,), without
        any weight, numbers of their ``source`` (m,), and whether each was ``clicked`` (m,). Rows without a score are
        left out; lists without a click teach nothing.

        Returns the lists with which ``served`` changed, and to what.
        """
        changes = []
        optimizer, weights = _OPTIM.SGD(self._rate), dict(enumerate(self.weights.tolist()))
        losses = [tuple(row) for row in self._losses.tolist()]
        for i in range(len(begin) - 1):
            rows = np.arange(begin[i], begin[i + 1])
            part = rows[np.isfinite(scores[rows])]
            at = np.flatnonzero(clicked[part])
            if not len(at):
                continue
            mine, of = scores[part], source[part]
            weighted = mine + np.array([weights[k] for k in of.tolist()])
            losses.append((_loss(mine, at[0]), _loss(mine + self.served[of], at[0]), _loss(weighted, at[0])))
            share = np.exp(weighted - weighted.max())
            share /= share.sum()
            share[at[0]] -= 1.0
            slope = np.bincount(of, share, len(self.sources))
            weights = optimizer.step(weights, dict(enumerate(slope.tolist())))
            weights = {k: min(max(weight, -WEIGHT_MAX), WEIGHT_MAX) for k, weight in weights.items()}
            self.lists += 1
            if len(losses) == _ROUND:
                learned = np.round([weights[k] for k in range(len(self.sources))], _DECIMALS)
                if self._judge(np.array(losses), learned):
                    changes.append((i, self.served.copy()))
                losses = []
        self.weights = np.array([weights[k] for k in range(len(self.sources))])
        self._losses = np.array(losses).reshape(-1, 3)
        return changes

    def _judge(self, losses: FloatArray, learned: FloatArray) -> bool:
        """Takes a round, the ``learned`` weights after it; whether something else is served from now on."""
        self._rounds = np.concatenate([self._rounds, losses.mean(axis=0)[None]])[-_ROUNDS_KEPT:]
        better = self.served
        if self._gate(_SERVED, _LEARNED).passed(CONFIDENCE, _GAIN_MIN):
            better = learned
        elif self._gate(_SERVED, _MODEL).passed(CONFIDENCE, _GAIN_MIN):
            better = np.zeros_like(learned)
        if np.array_equal(better, self.served):
            return False
        self.served, self._rounds = better, np.zeros((0, 3))
        return True

    def _gate(self, champion: int, learner: int) -> Gate:
        """Of the rounds since the last change, by columns of the losses."""
        loss, gain = self._rounds[:, champion], self._rounds[:, champion] - self._rounds[:, learner]
        return Gate(
            len(loss), len(loss) * _ROUND, float(gain.sum()), float((gain * gain).sum()), float(loss.sum())
        )  # fmt: skip

    def figures(self) -> dict[str, Any]:
        """The ``learned`` and ``served`` weights by source, how many ``lists`` taught them, and of the learned against
        the served the ``gate``, see `Gate.figures`, of 1 less the reciprocal rank."""
        return {
            "learned": dict(zip(self.sources, self.weights.round(4).tolist(), strict=True)),
            "served": dict(zip(self.sources, self.served.tolist(), strict=True)),
            "lists": self.lists,
            "gate": self._gate(_SERVED, _LEARNED).figures(CONFIDENCE),
        }

    def state(self) -> Arrays:
        """``sources`` (k,) texts, ``weights`` and ``served`` (k,), ``lists`` (1,), ``rounds`` (r, 3), ``losses``
        (n, 3)."""
        return {
            "sources": of_texts(self.sources),
            "weights": self.weights.copy(),
            "served": self.served.copy(),
            "lists": np.array([self.lists], np.int64),
            "rounds": self._rounds.copy(),
            "losses": self._losses.copy(),
        }

    def restore(self, arrays: Mapping[str, npt.NDArray[Any]]) -> None:
        """The reverse of `state`. StateError: of other sources."""
        check_like(arrays, self.state(), "source weights")
        if tuple(texts_of(arrays["sources"])) != self.sources:
            raise StateError(
                f"the saved source weights are of {', '.join(texts_of(arrays['sources']))}, not of "
                f"{', '.join(self.sources)}; let them be learned anew"
            )
        self.weights, self.served = arrays["weights"].copy(), arrays["served"].copy()
        self.lists = int(arrays["lists"][0])
        self._rounds, self._losses = arrays["rounds"].copy(), arrays["losses"].copy()


def _loss(scores: FloatArray, at: int) -> float:
    """1 less the reciprocal rank of row ``at``; ties by row."""
    rank = int(np.count_nonzero(scores > scores[at])) + int(np.count_nonzero(scores[:at] == scores[at]))
    return 1.0 - 1.0 / (rank + 1)
