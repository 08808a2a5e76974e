"""What a step of the control loop is made of: what has come, what may be looked up, and what follows."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

from msgspec.structs import replace

from features.block import FloatArray, IntArray
from models.evidence import Evidence
from models.online import OnlineCalibrator
from streams.control_state import ROLLBACK, Case, Command, Kept, State

__all__ = ["MONTH_MS", "Desk", "Inputs", "Step"]

MONTH_MS = 30 * 86_400_000


class Desk(Protocol):
    """What a step may look up: pure functions of the rows used so far and of packages."""

    @property
    def labels_ms(self) -> int:
        """How long after its end a period of events has all its labels."""

    def scored(self, before: State, after: State) -> tuple[FloatArray, FloatArray, IntArray]:
        """(raw, probability, label) by the champion of the rows whose labels became final between these states."""

    def frauds(self, case: Case, clock_ms: int) -> int:
        """Final frauds since the change."""

    def new_frauds(self, case: Case, clock_ms: int) -> int:
        """Those that the candidate could not know."""

    def evidence(self, case: Case, clock_ms: int, confidence: float) -> Evidence:
        """Champion and candidate on the rows that the candidate could not know."""

    def learner(self, state: State) -> OnlineCalibrator:
        """As it was left, or a new one of the champion's calibration."""


@dataclass(frozen=True, slots=True)
class Inputs:
    """What has come: ``used`` are the next offsets of alerts, labelled and commands after it, ``clock_ms`` the newest
    time of a label. ``champion`` is the registry's. ``kept``, see `State`; None: as before."""

    used: tuple[list[int], list[int], int]
    champion: str
    clock_ms: int = 0
    rows: bool = False
    kept: Kept | None = None
    alerts: Sequence[dict[str, Any]] = ()
    commands: Sequence[Command] = ()


@dataclass(slots=True)
class Step:
    """The state after it, the events for ``model-events``, and the records for ``alerts``."""

    state: State
    events: list[dict[str, Any]] = field(default_factory=list)
    alerts: list[dict[str, Any]] = field(default_factory=list)

    def tell(self, event: str, case: Case | None = None, **more: Any) -> None:
        """One more event."""
        told: dict[str, Any] = {"event": event}
        if case is not None:
            told |= {"case": case.id, "alert_id": case.alert["alert_id"], "action": case.action}
        self.events.append(told | {"champion": self.state.champion, "clock": self.state.clock_ms} | more)

    def answer(self, alert: Mapping[str, Any], action: str, **control: Any) -> None:
        """The alert once more, with what was done about it."""
        evidence = {**alert["evidence"], "control": {"clock": self.state.clock_ms, **control}}
        self.alerts.append({**alert, "action": action, "evidence": evidence})

    def follow(self, case: Case, text: str, event: str, **more: Any) -> None:
        """The case has come to this: an event, and the alert says it too."""
        self.tell(event, case, **more)
        self.answer(case.alert, f"{case.action}: {text}", case=case.id, **more)

    def close(self, case: Case, text: str, event: str, **more: Any) -> None:
        """The case ends without a change; a candidate is to be dropped first."""
        self.follow(case, text, event, **({"reason": text} | more))
        left = replace(case, status="dropping") if case.candidate and case.action != ROLLBACK else None
        self.state = replace(self.state, case=left, closed_ms=self.state.clock_ms)
