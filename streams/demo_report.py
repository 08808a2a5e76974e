"""The demo's books: what was sent, what came out, what the worker says of itself, and whether all of it agrees."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field

from streams.demo_scores import ScoreReader
from streams.simulator_stream import MALFORMED, Chunk, Tag

__all__ = ["Accounts", "figures"]


@dataclass(slots=True)
class Accounts:
    """Counts of one demo.

    ``history`` transactions were sent before the live part: well-formed, none repeated. ``sent`` records of the live
    part went to `transactions`, ``malformed`` and ``duplicates`` of them on purpose. ``worker`` are the worker's own
    figures over both parts, empty until it has ended.
    """

    history: int = 0
    labels: int = 0
    sent: int = 0
    malformed: int = 0
    duplicates: int = 0
    worker: Mapping[str, int] = field(default_factory=dict)

    def add(self, chunk: Chunk, *, live: bool) -> None:
        """Counts a chunk that is about to be sent."""
        labels = chunk.count(Tag.LABEL)
        self.labels += labels
        if not live:
            self.history += len(chunk.records) - labels
            return
        self.sent += len(chunk.records) - labels
        self.malformed += chunk.count(*MALFORMED)
        self.duplicates += chunk.count(Tag.DUPLICATE)

    @property
    def to_score(self) -> int:
        """Scores to expect, history included."""
        return self.history + self.sent - self.malformed - self.duplicates

    def live_figures(self) -> dict[str, int]:
        """The worker's figures less the history, which it received and scored whole."""
        names = ("received", "scored", "dead_letters", "duplicates")
        live = {name: self.worker.get(name, 0) for name in names}
        if self.worker:
            live["received"] -= self.history
            live["scored"] -= self.history
        return live

    def problems(self, scores: int, dead_letters: int) -> list[str]:
        """What does not agree, given how many scores and dead letters were consumed; empty if all does."""
        sent_in_all = self.history + self.sent
        if not self.worker:
            return ["the worker left no figures"] if sent_in_all else []
        received, scored, dead, duplicates = (
            self.worker.get(name, 0) for name in ("received", "scored", "dead_letters", "duplicates")
        )
        checks = [
            ("received by the worker", received, "scored + dead letters + duplicates", scored + dead + duplicates),
            ("received by the worker", received, "sent", sent_in_all),
            ("scored by the worker", scored, "well-formed and sent once", self.to_score),
            ("scored by the worker", scored, "scores consumed", scores),
            ("dead letters of the worker", dead, "sent malformed", self.malformed),
            ("dead letters of the worker", dead, "dead letters consumed", dead_letters),
            ("duplicates of the worker", duplicates, "sent twice", self.duplicates),
            ("labels read by the worker", self.worker.get("labels", 0), "labels sent", self.labels),
        ]
        return [f"{a} {n:,} is not {b} {m:,}" for a, n, b, m in checks if n != m]


def figures(
    accounts: Accounts,
    scores: ScoreReader | None,
    *,
    seconds: float,
    backend: str,
    model: str,
    phases: Mapping[str, float],
    problems: list[str],
) -> dict[str, object]:
    """What ``--json`` prints. ``received`` and the like are of the live part, ``worker`` also counts the history."""
    latency = {"latency_ms_p50": math.nan, "latency_ms_p99": math.nan, "latency_ms_max": math.nan}
    if scores is not None:
        digest = scores.latency
        latency = dict(zip(latency, (digest.percentile(50.0), digest.percentile(99.0), digest.max_ms), strict=True))
    live = accounts.live_figures()
    return {
        **live,
        "late": scores.late if scores is not None else 0,
        "events_per_s": round(live["scored"] / seconds, 1) if seconds else 0.0,
        **{name: None if math.isnan(value) else round(value, 3) for name, value in latency.items()},
        "seconds": round(seconds, 3),
        "scored_high": scores.high if scores is not None else 0,
        "backend": backend,
        "model": model,
        "history": {
            "transactions": accounts.history,
            "late": scores.history_late if scores is not None else 0,
        },
        "labels": accounts.labels,
        "worker": dict(accounts.worker),
        "phases_s": {name: round(value, 2) for name, value in phases.items()},
        "ok": not problems,
        "problems": problems,
    }
