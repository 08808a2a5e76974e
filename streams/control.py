"""The control loop: the only place where an alert becomes an update, a retrain or a swap.

It reads ``labelled``, ``alerts`` and ``control`` and writes ``control`` (its state), ``model-events`` (what it has
done, with the evidence) and ``alerts`` (the alert once more, with the action). It changes nothing but the registry:
from there on a change takes effect by the protocol of `streams.model_events`, at offsets. The protocol, in steps:

1. A loop that starts opens the one transactional id of all control loops, which ends any other, then reads the newest
   state. What is in the state has been decided; what is not has not, whoever it was that thought of it. The very
   first loop begins with the newest labels, and with alerts that are not too old.
2. If the open case is `building`, `promoting` or `dropping`, that is done first, and nothing is read meanwhile. It may
   have been done before by a loop that died, so it is done such that twice is once: a package carries the case that it
   was built for and is found again; a change of the champion carries it as its reason in the registry's history, so
   that a roll-back by a person in between stands. A training is a pure function of labels that are pinned by the state.
3. A transaction takes note of the outcome.
4. The next round is taken from the log: so many records of each partition of ``labelled``, whatever blocks they came
   in, and the alerts whose time has come by the labels' clock. Requests by people are a step of their own, at once.
5. `streams.control_policy.step` decides. Its new state, its events and its words to the alerts are one transaction.
6. Back to 2.

So everything that was decided is in the log once, before it is done, and a crash anywhere repeats at most what has no
effect. Rounds and the order of alerts follow from the logs alone; where that is not so (a partition that stands still,
an alert that comes after the labels of its time, a person), the state pins what happened.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, datetime
from functools import partial
from types import TracebackType
from typing import Any, Protocol, Self, cast

from models.errors import ModelError
from models.online import OnlineCalibrator
from models.package import Draft, Manifest
from models.rebuild import Champion, Kind, LabelledRows, Rebuilt
from models.registry import Registry
from streams.control_desk import WindowDesk
from streams.control_feed import Feed, Piece
from streams.control_log import ControlLog
from streams.control_policy import finished, step
from streams.control_rows import read_rows
from streams.control_settings import ControlSettings
from streams.control_state import ADDED, ROLLBACK, Case, Kept, State
from streams.control_step import Inputs, Step
from streams.dead_letters import log_ends
from streams.log import TP, Log
from streams.replay import read_up_to
from streams.retrain import rebuilt_apart
from streams.topics import ALERTS, CONTROL, LABELLED, MODEL_EVENTS, topic_infos
from streams.worker import ensure_topics

__all__ = ["CONTROL_TOPICS", "Build", "Controller"]

CONTROL_TOPICS = (LABELLED, ALERTS, CONTROL, MODEL_EVENTS)
_POLL_S = 0.2
#: alerts wait so long for labels of their time: then they are decided on without
_PATIENCE_S = 60.0
#: what has to be done before anything else is decided
_TO_DO = ("building", "promoting", "dropping")


class Build(Protocol):
    """`models.rebuild.rebuild`, here or elsewhere."""

    def __call__(self, rows: LabelledRows, since_ms: int, champion: Champion, kind: Kind, /) -> Rebuilt: ...


class Controller:
    """See the module. ``mature_ms``: how long after its event a label is final, and ``lateness_ms`` how much longer the
    monitor waits for those of a period. ``build`` trains, by default in a process of its own. ``clock`` gives the wall
    time in ms that records and packages are stamped with, nothing else."""

    def __init__(
        self,
        log: Log,
        registry: Registry,
        settings: ControlSettings,
        *,
        mature_ms: int,
        lateness_ms: int = 0,
        partitions: int = 4,
        build: Build | None = None,
        clock: Callable[[], int] = lambda: time.time_ns() // 1_000_000,
    ) -> None:
        self._log, self._registry, self._settings = log, registry, settings
        self._mature_ms, self._labels_ms = mature_ms, mature_ms + lateness_ms
        self._clock, self._partitions = clock, partitions
        self._stopping = threading.Event()
        apart = partial(rebuilt_apart, timeout_s=settings.timeout_s, stopping=self._stopping.is_set)
        self._build: Build = apart if build is None else build
        #: what this loop has done since it started
        self.counts: dict[str, int] = dict.fromkeys(("steps", "rows", "alerts", "events"), 0)
        #: when it was made, and when it last began a turn, by the monotonic clock
        self.began = self._turned = time.monotonic()

    def __enter__(self) -> Self:
        ensure_topics(self._log, topic_infos(CONTROL_TOPICS, self._partitions))
        admin = self._log.admin()
        self._widths = {name: info.partitions for name, info in admin.topics(CONTROL_TOPICS).items()}
        admin.close()
        self._ledger = ControlLog(self._log, self._clock, self._begin)
        try:
            self._feed = Feed(self._log, self._widths, self.state, self._labels_ms)
            try:
                self._open_desk()
            except BaseException:
                self._feed.close()
                raise
        except BaseException:
            self._ledger.close()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._feed.close()
        self._ledger.close()

    def _begin(self) -> State:
        """Before the first step: of a long history of labels only as many are gone through as are kept."""
        share = self._settings.rows_max // self._widths[LABELLED]
        begin = [max(0, end - share) for _, end in sorted(log_ends(self._log, LABELLED).items())]
        return State(labelled=begin, kept=Kept(begin=begin))

    @property
    def state(self) -> State:
        """As the log has it."""
        return self._ledger.state

    @property
    def silent_s(self) -> float:
        """How long ago the last turn began. From any thread."""
        return time.monotonic() - self._turned

    def stop(self) -> None:
        """Ends `run` soon. From any thread, or a signal's handler."""
        self._stopping.set()

    def run(self) -> None:
        """Follows the topics until `stop`."""
        moved = time.monotonic()
        while not self._stopping.is_set():
            if self._turn(_POLL_S) or not self._feed.alerts_waiting:
                moved = time.monotonic()
            elif time.monotonic() - moved > _PATIENCE_S:
                self._step(None, self._feed.alerts(None))

    def run_to_end(self) -> None:
        """Handles what is in the topics now, as far as whole rounds go."""
        while (self._turn(_POLL_S / 4) or not self._feed.at_end()) and not self._stopping.is_set():
            pass

    def _turn(self, timeout_s: float) -> bool:
        """Whether there was a step: as many as what was read allows."""
        before, self._turned = self.counts["steps"], time.monotonic()
        self._do()
        self._feed.poll(timeout_s)
        while not self._stopping.is_set():
            if commands := self._feed.commands():
                self._step(None, (), commands)
            elif (pieces := self._feed.round(self._settings.round_rows)) is not None:
                self._step(pieces)
            else:
                break
        return self.counts["steps"] > before

    # -- steps 4 and 5 --

    def _step(
        self, pieces: Sequence[Piece] | None, alerts: Sequence[dict[str, Any]] = (), commands: Sequence[Any] = ()
    ) -> None:
        champion = self._registry.aliases().get("champion", "")
        if champion != self.state.champion:
            self._open_desk(champion)
        clock_ms = self.state.clock_ms
        for piece in pieces or ():
            columns = (piece.offsets, piece.timestamps, piece.keys, piece.values)
            rows = read_rows(*columns, self._desk.features, self._desk.window.kept.level)
            self._desk.window.add(piece.partition, rows, piece.end)
            clock_ms = max(clock_ms, int(rows.known_ms.max(initial=clock_ms)))
            self.counts["rows"] += len(piece.offsets)
        if pieces is not None:
            self._desk.make_room(clock_ms)
            # of an open case's rows none is to be known only later
            finer = self._desk.finer(clock_ms) if self.state.case is None else None
            if finer is not None:
                used, self._desk.window = self._desk.window.ends, self._desk.empty_window(finer)
                self._read_window(used)
            alerts = self._feed.alerts(clock_ms)
        kept = self._desk.window.kept
        inputs = Inputs(self._feed.used(), champion, clock_ms, pieces is not None, kept, alerts, commands)
        self._commit(step(self._settings, self.state, inputs, self._desk))
        self.counts["alerts"] += len(alerts)
        self._do()

    def _commit(self, made: Step) -> None:
        self._ledger.commit(made)
        self.counts["steps"] += 1
        self.counts["events"] += len(made.events)

    def _open_desk(self, champion: str | None = None) -> None:
        """Reads the window again that the state has used, as the champion's features want it."""
        label = self.state.champion if champion is None else champion
        desk = getattr(self, "_desk", None)
        opened = WindowDesk(
            self._registry,
            self._settings,
            label,
            self._widths[LABELLED],
            mature_ms=self._mature_ms,
            labels_ms=self._labels_ms,
            kept=self.state.kept,
        )
        if desk is not None and desk.features == opened.features:
            return
        self._desk = opened
        # a partition that was added since the last step is not used at all yet
        self._read_window([*self.state.labelled, *[0] * (self._widths[LABELLED] - len(self.state.labelled))])

    def _read_window(self, used: Sequence[int]) -> None:
        """Into the desk's window, which is empty, the rows that it keeps of partitions that are used up to there."""
        window = self._desk.window
        ends = {TP(LABELLED, p): end for p, end in enumerate(used)}
        starts = dict(zip(ends, window.start_of(used), strict=True))
        for batch in read_up_to(self._log, ends, starts=starts, from_start=False):
            columns = (batch.offsets, batch.timestamps, batch.keys, batch.values)
            rows = read_rows(*columns, self._desk.features, window.kept.level)
            window.add(batch.tp.partition, rows, ends[batch.tp])

    # -- steps 2 and 3 --

    def _do(self) -> None:
        """What the open case wants done, and after it what it wants then."""
        while (case := self.state.case) is not None and case.status in _TO_DO:
            outcome: Mapping[str, Any] = {}
            if case.status == "building":
                outcome = self._built(case)
            elif case.status == "promoting":
                outcome = self._promoted(case)
            else:
                self._registry.clear("shadow", f"control {case.id}", expected=case.candidate)
            self._commit(finished(self._settings, self.state, outcome))

    def _built(self, case: Case) -> dict[str, Any]:
        """A challenger in the registry, shadow unless a person has chosen another one."""
        manifest = self._added(case)
        if manifest is None:
            try:
                champion = self._desk.champion(case.champion)
                rows, kind = self._desk.training(self.state.clock_ms), cast(Kind, case.action)
                built = self._build(rows, case.since_ms, champion, kind)
            except ModelError as error:
                return {"declined": str(error)}
            training = {"recipe": built.recipe, "rows": built.rows, "frauds": built.frauds}
            training |= {"params": dict(champion.params), "rounds": champion.rounds, "positions": case.begin}
            training["kept"] = f"1 in {2**self.state.kept.level}"
            # a loop that took over while this one was training may have added it, and this one not know yet of its end
            manifest = self._added(case) or self._add(case, built, training, built.metrics)
        aliases = self._registry.aliases()
        shadow = aliases.get("shadow")
        if shadow is None and aliases.get("champion") == case.champion:
            shadow = self._registry.set_alias("shadow", manifest.label, f"control {case.id}")
        metrics, recipe = dict(manifest.metrics), manifest.training["recipe"]
        return {
            "model": manifest.label,
            "recipe": recipe,
            "metrics": metrics,
            "shadow": shadow == manifest.label,
        }

    def _promoted(self, case: Case) -> dict[str, Any]:
        """The candidate is champion; of an update, a package of the champion with the learned calibration first; of a
        roll-back, the former champion."""
        label = case.candidate
        if case.action == "update":
            manifest = self._added(case)
            if manifest is None:
                champion = self._desk.model(case.champion)
                version = champion.calibration.version + 1
                calibration = OnlineCalibrator.from_state(case.learned).calibration(version)
                assert calibration is not None  # a slope that is not positive is not proposed
                conformal = champion.manifest.conformal
                built = Rebuilt(champion.model_text, calibration, "calibration learned online", {}, 0, 0, conformal)
                training = dict(champion.manifest.training) | {"recipe": built.recipe}
                # of raw scores and of features, which are those of the champion; its figures are of other probabilities
                reference = {name: of for name, of in champion.manifest.reference.items() if name != "score"}
                manifest = self._add(case, built, training, {}, reference=reference)
            label = manifest.label
        reason = f"control {case.id}"
        done = ("rollback" if case.action == ROLLBACK else "promote", reason)
        if all((change.action, change.reason) != done for change in self._registry.history()):
            try:
                if case.action == ROLLBACK:
                    self._registry.rollback(reason=reason, expected=case.champion, to=label)
                else:
                    self._registry.set_alias("champion", label, reason, expected=case.champion)
            except ModelError as error:  # a person was faster, and has the last word
                return {"declined": str(error)}
        return {"model": label}

    def _added(self, case: Case) -> Manifest | None:
        """The package that was built for the case, if that was done before."""
        name = case.champion.partition("@")[0]
        made = [entry.manifest for entry in self._registry.entries() if entry.manifest.name == name]
        return next((one for one in made if one.training.get(ADDED) == case.id), None)

    def _add(
        self, case: Case, built: Rebuilt, training: Mapping[str, Any], metrics: Mapping[str, Any], **kept: Any
    ) -> Manifest:
        """``kept``: what of the champion's package holds for this one as well."""
        champion = self._desk.model(case.champion).manifest
        draft = Draft(
            name=champion.name,
            model_text=built.model_text,
            features=champion.features,
            schema_hash=champion.schema_hash,
            created_at=datetime.fromtimestamp(self._clock() / 1000, UTC).isoformat(timespec="seconds"),
            calibration=built.calibration,
            training={**training, ADDED: case.id, "since": case.since_ms, "from": case.champion},
            metrics=metrics,
            conformal=built.conformal,
            categories=champion.categories,
            **kept,
        )
        return self._registry.add(draft)
