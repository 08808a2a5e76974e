"""The models that score now, and from which offset of each partition on: changed between two blocks."""

from __future__ import annotations

from collections.abc import Sequence

from features.block import FloatArray
from models.explain_policy import NO_REASONS, ReasonsPolicy
from models.lineup import Lineup
from models.package import LoadedModel
from models.serving import Serving, prepared

__all__ = ["ModelSlot", "Serving"]


class ModelSlot:
    """Holds a lineup, and by partition those that are in force from given offsets on.

    A block is scored by the lineups that `cuts` gave for it. What is put in is warm: nothing is loaded on the hot path.
    Set on one thread, read on another.
    """

    def __init__(self, model: LoadedModel | None = None, reasons: ReasonsPolicy = NO_REASONS) -> None:
        self.policy = reasons
        self._lineup = Lineup(prepared(model, reasons))
        self._scheduled: dict[int, tuple[tuple[int, Lineup], ...]] = {}

    @property
    def lineup(self) -> Lineup:
        """What scores where nothing else is scheduled."""
        return self._lineup

    @property
    def serving(self) -> Serving:
        """The champion with its explainer."""
        return self._lineup.champion

    @property
    def model(self) -> LoadedModel | None:
        """The champion."""
        return self.serving.model

    @property
    def label(self) -> str | None:
        """ "name@version" of the champion."""
        return self.serving.label

    def replace(self, model: LoadedModel | None) -> LoadedModel | None:
        """Put ``model`` in, alone, after warming it up; returns the champion before."""
        before = self.model
        self.install(Lineup(prepared(model, self.policy)))
        return before

    def install(self, lineup: Lineup) -> None:
        """What scores from now on where nothing else is scheduled."""
        self._lineup = lineup

    def schedule(self, partition: int, lineups: Sequence[tuple[int, Lineup]]) -> None:
        """``lineups`` of a partition, each from its offset on until the next one's, offsets rising; the first also
        before its offset."""
        self._scheduled[partition] = tuple(lineups)

    def forget(self, partition: int) -> None:
        """The partition is somebody else's."""
        self._scheduled.pop(partition, None)

    def cuts(self, partition: int, stop: int) -> list[tuple[int, Lineup]]:
        """The lineups in force below ``stop``, each with the offset at which it ends, the last one with ``stop``."""
        lineups = self._scheduled.get(partition)
        if not lineups:
            return [(stop, self._lineup)]
        cuts: list[tuple[int, Lineup]] = []
        for i, (_, lineup) in enumerate(lineups):
            end = lineups[i + 1][0] if i + 1 < len(lineups) else stop
            cuts.append((min(end, stop), lineup))
            if end >= stop:
                break
        return cuts

    def score(self, x: FloatArray) -> tuple[FloatArray, FloatArray]:
        """(raw scores (n,), probabilities (n,)) of ``x`` (n, d) by the champion; NaN where there is no model."""
        return self.serving.score(x)
