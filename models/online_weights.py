"""A weight of each source of candidates that learns from each click as it comes, and its gate. River lives here.

What is learned is added to the scores of a list's items, by the source that named each: a list is a choice among its
items with the softmax of these scores, and River's stochastic gradient descent follows the loss of what was clicked
(the listwise loss of Cao et al., 2007). It is judged progressively: each list is first ordered by what was learned from
the lists before it, then learned from.
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

__all__ = ["CONFIDENCE", "SourceWeights"]

#: of the gate
CONFIDENCE = 0.95

#: lists that are one round of the gate
_ROUND = 256
_OPTIM: Any = optim


class SourceWeights:
    """One weight for each of ``sources``, 0 at first, and how much it would have helped.

    ``rate``: of the descent, in units of the scores. `update` takes lists in the order of the log; how they are cut
    into calls never shows.
    """

    def __init__(self, sources: Sequence[str], rate: float = 0.02) -> None:
        self.sources, self._rate = tuple(sources), rate
        self.weights = np.zeros(len(self.sources))
        #: lists learned from
        self.lists = 0
        self.gate = Gate()
        #: (k, 2) of a round that is not complete: 1 less the reciprocal rank of the click, without and with the weights
        self._losses = np.zeros((0, 2))

    def update(self, begin: IntArray, scores: FloatArray, source: IntArray, clicked: BoolArray) -> None:
        """Learns from lists: list i is the rows ``begin[i]:begin[i + 1]``, best first, with their ``scores`` (m,),
        numbers of their ``source`` (m,), and whether each was ``clicked`` (m,). Rows without a score are left out;
        lists without a click teach nothing."""
        optimizer, weights = _OPTIM.SGD(self._rate), dict(enumerate(self.weights.tolist()))
        losses = []
        for i in range(len(begin) - 1):
            rows = np.arange(begin[i], begin[i + 1])
            part = rows[np.isfinite(scores[rows])]
            at = np.flatnonzero(clicked[part])
            if not len(at):
                continue
            mine, of = scores[part], source[part]
            weighted = mine + np.array([weights[k] for k in of.tolist()])
            losses.append((_loss(mine, at[0]), _loss(weighted, at[0])))
            share = np.exp(weighted - weighted.max())
            share /= share.sum()
            share[at[0]] -= 1.0
            slope = np.bincount(of, share, len(self.sources))
            weights = optimizer.step(weights, dict(enumerate(slope.tolist())))
        self.weights = np.array([weights[k] for k in range(len(self.sources))])
        self.lists += len(losses)
        self._judge(np.array(losses).reshape(-1, 2))

    def _judge(self, losses: FloatArray) -> None:
        waiting = np.concatenate([self._losses, losses])
        whole = len(waiting) // _ROUND * _ROUND
        for part in waiting[:whole].reshape(-1, _ROUND, 2):
            self.gate = self.gate.add(np.ascontiguousarray(part[:, 0]), np.ascontiguousarray(part[:, 1]))
        self._losses = waiting[whole:]

    def chosen(self, confidence: float = CONFIDENCE, gain_min: float = 0.005) -> FloatArray | None:
        """(sources,) the weights, where lists were better with them, beyond chance and by so much of the loss; else
        None."""
        return self.weights.copy() if self.gate.passed(confidence, gain_min) else None

    def state(self) -> Arrays:
        """``sources`` (k,) texts, ``weights`` (k,), ``lists`` (1,), ``gate`` (5,), ``losses`` (r, 2)."""
        gate = self.gate
        return {
            "sources": of_texts(self.sources),
            "weights": self.weights.copy(),
            "lists": np.array([self.lists], np.int64),
            "gate": np.array([gate.rounds, gate.rows, gate.gains, gate.squares, gate.champion], np.float64),
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
        rounds, rows, gains, squares, champion = arrays["gate"].tolist()
        self.weights, self.lists = arrays["weights"].copy(), int(arrays["lists"][0])
        self.gate = Gate(int(rounds), int(rows), gains, squares, champion)
        self._losses = arrays["losses"].copy()


def _loss(scores: FloatArray, at: int) -> float:
    """1 less the reciprocal rank of row ``at``; ties by row."""
    rank = int(np.count_nonzero(scores > scores[at])) + int(np.count_nonzero(scores[:at] == scores[at]))
    return 1.0 - 1.0 / (rank + 1)
