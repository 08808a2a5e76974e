"""What a worker has to say to the web page and to Prometheus: read where it is kept, when somebody asks.

`Figures.collect` runs on the worker's event loop, between two blocks, and only copies; everything else is on the web
server's thread.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from importlib.metadata import version
from typing import TYPE_CHECKING, Any, NamedTuple

from monitoring.metrics import COUNTS, Sample
from streams.topics import BY_TERMINAL, INTERACTIONS
from streams.web_scores import ScoreTap, TappedEncoder, TappedLists

if TYPE_CHECKING:
    from models.lineup import Lineup
    from models.slot import ModelSlot
    from streams.worker import Worker

__all__ = ["FLOWS", "Collected", "Figures", "Health", "PartitionNow", "samples"]

#: by pipeline, the figures of what comes in and what goes out
FLOWS = {"fraud": ("received", "scored"), "monitor": ("received", "labelled"), "recommend": ("received", "recommended")}
#: the topics whose rows are scored
_SCORED = (BY_TERMINAL, INTERACTIONS)
_RUNG = "rung_"
#: nothing done for so long with something in hand is a stall, though the watchdog still waits
STALL_S = 30.0


class PartitionNow(NamedTuple):
    """A partition of this worker as it is; ``models`` by role, of those whose rows are scored."""

    topic: str
    partition: int
    epoch: int
    next_offset: int
    committed: int
    in_flight: int
    #: records sent and not done, as of the last time that the log was asked where it ends
    lag: int
    recovering: bool
    models: dict[str, str]


class Health(NamedTuple):
    """``state`` is one word; ``reason`` says why it is not ready."""

    ok: bool
    state: str
    reason: str = ""


@dataclass(frozen=True, slots=True)
class Collected:
    """Plain data of one moment, ``at_s`` by the monotonic clock."""

    at_s: float
    counts: Mapping[str, int]
    lag: Mapping[str, Mapping[str, float]]
    partitions: Sequence[PartitionNow]
    models: Mapping[str, Any]
    seconds: Mapping[str, float]
    checkpoints: Mapping[str, float]
    #: of commits, see `LatencyDigest.to_dict`
    commits: Mapping[str, float | None]
    recovery: Mapping[str, Any]
    quality: Mapping[str, Mapping[str, Mapping[str, int]]]


@dataclass(slots=True)
class Figures:
    """Of ``worker``, whose pipeline, ``of`` this name, has scores or lists that go through ``tap``."""

    of: str
    group: str
    worker: Worker
    pipeline: Any
    tap: ScoreTap = field(default_factory=ScoreTap)
    #: whether the worker has said that it is ready
    ready: bool = False

    def __post_init__(self) -> None:
        if self.of == "fraud":
            self.pipeline.encoder = TappedEncoder(self.pipeline.encoder.feature_names, self.tap)
        elif self.of == "recommend":
            serving = self.pipeline.serving
            serving.encoder = TappedLists(serving.encoder.feature_names, self.tap)

    @property
    def taps_latency(self) -> bool:
        """Whether it is told how long scores or lists took."""
        return self.taps_scores or self.of == "recommend"

    @property
    def taps_scores(self) -> bool:
        """Whether scores are looked at where they are encoded."""
        return isinstance(getattr(self.pipeline, "encoder", None), TappedEncoder)

    def collect(self) -> Collected:
        """On the worker's event loop."""
        worker, pipeline = self.worker, self.pipeline
        slot = getattr(pipeline, "slot", None)
        return Collected(
            at_s=time.monotonic(),
            counts=pipeline.figures(),
            lag=worker.lag,
            partitions=self._partitions(slot),
            models={} if slot is None else _models(slot.lineup),
            seconds={**pipeline.meters.seconds, **worker.seconds},
            checkpoints=worker.checkpoints,
            commits={} if worker.reader is None else worker.reader.committer.latency.to_dict(),
            recovery=worker.recovery,
            quality=pipeline.quality(),
        )

    def _partitions(self, slot: ModelSlot | None) -> list[PartitionNow]:
        reader = self.worker.reader
        if reader is None:
            return []
        found: list[PartitionNow] = []
        ends = reader.lag.ends
        with reader.assignment.cond:
            for tp, p in sorted(reader.assignment.partitions.items()):
                models: dict[str, str] = {}
                if slot is not None and tp.topic in _SCORED:
                    lineup = slot.cuts(tp.partition, p.next_done + 1)[-1][1]
                    models = {role: label for role, label in _models(lineup).items() if isinstance(label, str)}
                waiting, recovering = sum(map(len, p.in_flight)), p.loading or p.recovering
                lag = max(0, ends.get(tp, 0) - max(p.next_done, p.live_from))
                found.append(PartitionNow(*tp, p.epoch, p.next_done, p.committed, waiting, lag, recovering, models))
        return found

    def health(self, silent_s: float) -> Health:
        """From any thread, whatever the event loop does, which has not answered for ``silent_s``."""
        worker, reader = self.worker, self.worker.reader
        if worker.error is not None:
            return Health(False, "failed", str(worker.error))
        if reader is None:
            return Health(False, "starting", "not in its group yet: kernels are compiled, topics looked for")
        assignment = reader.assignment
        with assignment.cond:
            total = len(assignment.partitions)
            recovering = sum(p.loading or p.recovering for p in assignment.partitions.values())
            waiting = any(p.in_flight for p in assignment.partitions.values())
            idle_s = time.monotonic() - assignment.progress_at
        if waiting and idle_s > STALL_S:
            return Health(False, "stalled", f"no batch was done for {idle_s:.0f} s, with some in hand")
        if silent_s > STALL_S:
            return Health(False, "stalled", f"the event loop has not answered for {silent_s:.0f} s")
        if recovering:
            return Health(False, "recovering", f"{recovering} of {total} partitions do not have their state yet")
        if not self.ready:
            return Health(False, "starting", "no partitions are assigned yet")
        if reader.flow_is_stopped:
            return Health(False, "paused", "told to take no more records; POST /api/resume lets them flow")
        return Health(True, "ready")


def _models(lineup: Lineup) -> dict[str, Any]:
    """The lineup's models by role, and the canary's share; those that there are."""
    found: dict[str, Any] = {"champion": lineup.champion.label}
    for role, serving in (("shadow", lineup.shadow), ("canary", lineup.canary)):
        if serving is not None:
            found[role] = serving.label
    if lineup.canary is not None:
        found["share"] = lineup.share
    return found


def samples(figures: Figures, now: Collected, details: Mapping[str, Any] | None, health: Health) -> Iterator[Sample]:
    """For `monitoring.metrics.exposition`: what one moment says, and of a monitor its ``details``."""
    yield Sample("info", 1, (version("headrace"), figures.group))
    yield Sample("ready", int(health.ok))
    for name, count in now.counts.items():
        if name in COUNTS:
            yield Sample(COUNTS[name].name, count)
        elif name.startswith(_RUNG):
            yield Sample("lists_total", count, (name.removeprefix(_RUNG),))
        elif name in ("keys_in_two_partitions", "items_known"):
            yield Sample(name, count)
    for stage, lag in now.lag.items():
        yield Sample("lag_records", lag["records"], (stage,))
        yield Sample("lag_seconds", lag["seconds"], (stage,))
    for topic, fields in now.quality.items():
        for name, findings in fields.items():
            for finding, n in findings.items():
                yield Sample("quality_findings_total", n, (topic, name, finding))
    for part, seconds in now.seconds.items():
        yield Sample("cpu_seconds_total", seconds, (part,))
    yield from _of_partitions(now.partitions)
    if "share" in now.models:
        yield Sample("canary_share", now.models["share"])
    if now.checkpoints:
        yield Sample("checkpoints_written_total", now.checkpoints["written"])
        if now.checkpoints["written"]:
            yield Sample("checkpoint_write_seconds", now.checkpoints["took_s"])
        for name, quantile in (("pause_ms_p50", "0.5"), ("pause_ms_p99", "0.99"), ("pause_ms", "1")):
            if name in now.checkpoints:
                yield Sample("checkpoint_pause_seconds", now.checkpoints[name] / 1000, (quantile,))
    for name, quantile in (("latency_ms_p50", "0.5"), ("latency_ms_p99", "0.99"), ("latency_ms_max", "1")):
        took_ms = now.commits.get(name)
        if took_ms is not None:
            yield Sample("commit_seconds", took_ms / 1000, (quantile,))
    if now.recovery:
        yield Sample("recovery_seconds", now.recovery["ready_s"])
    if details:
        yield from _of_monitor(details)


def _of_partitions(partitions: Sequence[PartitionNow]) -> Iterator[Sample]:
    yield Sample("in_flight_records", sum(p.in_flight for p in partitions))
    for topic in sorted({p.topic for p in partitions}):
        mine = [p for p in partitions if p.topic == topic]
        yield Sample("partitions_assigned", len(mine), (topic,))
        yield Sample("partitions_recovering", sum(p.recovering for p in mine), (topic,))
    for p in partitions:
        yield Sample("next_offset", p.next_offset, (p.topic, str(p.partition)))
        yield Sample("partition_lag_records", p.lag, (p.topic, str(p.partition)))
        yield Sample("committed_offset", p.committed, (p.topic, str(p.partition)))
        for role, label in p.models.items():
            yield Sample("model_info", 1, (str(p.partition), role, label))


def _of_monitor(details: Mapping[str, Any]) -> Iterator[Sample]:
    for outcome, count in details.get("join", {}).items():
        yield Sample("label_join_rows", count, (outcome,))
    for point in details.get("maturity", ()):
        if point["labelled"] is not None:
            yield Sample("label_maturity_ratio", point["labelled"], (f"{point['age_ms'] / 1000:g}",))
    for place, models in details.get("watched", {}).items():
        for model, found in models.items():
            for half in ("scored", "labelled"):
                if half in found:
                    labels = (model or "none", place.rpartition("/")[2], half)
                    yield Sample("drift_learning", int(found[half]["learning"]), labels)
                    if found[half].get("strongest") is not None:
                        yield Sample("drift_strength", found[half]["strongest"], labels)
                    yield from _of_half(found[half], labels[:2])


def _of_half(half: Mapping[str, Any], labels: tuple[str, str]) -> Iterator[Sample]:
    for feature, psi in half.get("psi", {}).items():
        if psi is not None:
            yield Sample("psi", psi, (*labels, feature))
    for metric, of in half.get("metrics", {}).items():
        for name, period in (("value", "now"), ("reference", "reference")):
            if of[name] is not None:
                yield Sample("performance", of[name], (*labels, metric, period))
