"""What a step of the control loop looks up: the newest labelled rows, scored by champion and candidate."""

from __future__ import annotations

import numpy as np

from features.block import BoolArray, FloatArray, IntArray
from models.errors import ModelError
from models.evidence import Evidence, paired_evidence
from models.online import OnlineCalibrator
from models.package import LoadedModel
from models.rebuild import DEFAULT_ALPHA, DEFAULT_PARAMS, DEFAULT_ROUNDS, Champion, LabelledRows
from models.registry import Registry
from streams.control_rows import Window
from streams.control_settings import ControlSettings
from streams.control_state import Case, Kept, State

__all__ = ["WindowDesk"]

#: packages kept loaded: champion, candidate, and the champion before
_LOADED_MAX = 3
#: rows are to be kept so many times as long as labels take to be final: a third of them is final then
_REACH = 1.5
#: where they would reach back so many times as long at the next lower level, that is gone back to
_REACH_AGAIN = 3.0
_ALWAYS = np.iinfo(np.int64).min


class WindowDesk:
    """A `streams.control_step.Desk` of one champion's features. A label is final ``mature_ms`` after its event: until
    then, which labels have come may depend on what they say. ``labels_ms``: see there.
    ``kept``: of its rows."""

    def __init__(
        self,
        registry: Registry,
        settings: ControlSettings,
        champion: str,
        partitions: int,
        *,
        mature_ms: int,
        labels_ms: int,
        kept: Kept,
    ) -> None:
        self._registry, self._settings, self._mature_ms = registry, settings, mature_ms
        self.labels_ms = labels_ms
        self._loaded: dict[str, LoadedModel] = {}
        self.features = self.model(champion).manifest.features if champion else ()
        self._partitions = partitions
        self.window = self.empty_window(kept)

    def empty_window(self, kept: Kept) -> Window:
        """One of the same features without rows."""
        return Window(self.features, self._settings.rows_max, self._partitions, kept)

    def model(self, label: str) -> LoadedModel:
        """The package, verified. ModelError: it cannot be used."""
        model = self._loaded.pop(label, None) or self._registry.get(label)
        self._loaded[label] = model
        if len(self._loaded) > _LOADED_MAX:
            del self._loaded[next(iter(self._loaded))]
        return model

    def scored(self, before: State, after: State) -> tuple[FloatArray, FloatArray, IntArray]:
        final = self._final(after.clock_ms)
        known = self._final(before.clock_ms) & ~self.window.since(_ALWAYS, after.clock_ms, before.labelled)
        rows = self.window.take(final & ~known)
        return (*self._scores(after.champion, rows), rows.y)

    def learner(self, state: State) -> OnlineCalibrator:
        rate = self._settings.learning_rate
        if state.learner:
            return OnlineCalibrator.from_state(state.learner, rate)
        return OnlineCalibrator.of(self.model(state.champion).calibration, rate)

    def make_room(self, clock_ms: int) -> None:
        """Where rows would be left out for newer ones before their labels are final, every other row is instead."""
        reach_ms = self.window.reach_ms(clock_ms)
        if reach_ms is not None and reach_ms < _REACH * self._mature_ms:
            self.window.thin()

    def finer(self, clock_ms: int) -> Kept | None:
        """What to keep after a rush: more of the rows of a shorter time, which is long enough again; None: as now."""
        if self.window.kept.level == 0:
            return None
        reach_ms = self.window.finer_reach_ms(clock_ms)
        return self.window.finer() if reach_ms is not None and reach_ms >= _REACH_AGAIN * self._mature_ms else None

    def frauds(self, case: Case, clock_ms: int) -> int:
        return self.window.frauds(self._final(clock_ms, case.since_ms))

    def new_frauds(self, case: Case, clock_ms: int) -> int:
        return self.window.frauds(self._new(case, clock_ms))

    def evidence(self, case: Case, clock_ms: int, confidence: float) -> Evidence:
        rows = self.window.take(self._new(case, clock_ms))
        probabilities = [self._scores(label, rows)[1] for label in (case.champion, case.candidate)]
        every = np.ones(len(rows), np.bool_)
        return paired_evidence(rows.y, probabilities[0], probabilities[1], rows.group, every, confidence=confidence)

    def training(self, clock_ms: int) -> LabelledRows:
        """All rows whose labels are final."""
        return self.window.take(self._final(clock_ms))

    def champion(self, label: str) -> Champion:
        """What a challenger is to beat. ModelError: it is no model of probabilities."""
        model = self.model(label)
        if model.manifest.objective.split(" ")[0] not in ("binary", "cross_entropy"):
            raise ModelError(
                f"{label}: its objective is {model.manifest.objective}; only models of binary labels are rebuilt here"
            )
        training = model.manifest.training
        params = training.get("params") or DEFAULT_PARAMS
        rounds = int(training.get("rounds") or DEFAULT_ROUNDS)
        alpha = DEFAULT_ALPHA if model.conformal is None else model.conformal.alpha
        return Champion(model.model_text, model.calibration, params, rounds, alpha)

    def _final(self, clock_ms: int, since_ms: int = int(_ALWAYS)) -> BoolArray:
        return self.window.since(since_ms, clock_ms - self._mature_ms)

    def _new(self, case: Case, clock_ms: int) -> BoolArray:
        """All but those that the candidate was trained on, which had come and were final. What had come and was not is
        new: of events whose frauds are known early and the others late, frauds would be missing without."""
        come_later = self.window.since(case.since_ms, clock_ms - self._mature_ms, case.begin)
        final_later = self._final(clock_ms, max(case.since_ms, case.built_ms - self._mature_ms + 1))
        return come_later | final_later

    def _scores(self, label: str, rows: LabelledRows) -> tuple[FloatArray, FloatArray]:
        """(raw, probability) (n,)."""
        model = self.model(label)
        if tuple(model.manifest.features) == rows.features:
            x = rows.x
        else:
            place = {name: j for j, name in enumerate(rows.features)}
            x = rows.x[:, [place[name] for name in model.manifest.features]]
        raw, probability = model.score(np.ascontiguousarray(x))
        return raw, probability
