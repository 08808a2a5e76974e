"""What the control loop knows between two steps, and what people tell it: plain data, JSON in the topic `control`."""

from __future__ import annotations

from typing import Any, Literal

import msgspec

from streams.control_alerts import is_alert
from streams.errors import FatalError

__all__ = [
    "ADDED",
    "ROLLBACK",
    "STATE_KEY",
    "Case",
    "Command",
    "Kept",
    "State",
    "read_command",
    "read_state",
    "written",
]

#: key of the state's records in `control`, which is compacted: the newest one counts
STATE_KEY = b"state"
#: in the training of a package that the loop has added: the case
ADDED = "control_case"
#: action of a case that no alert asks for: what was promoted is worse
ROLLBACK = "rollback"

#: ``collecting`` labels since the change; ``building`` a challenger; ``watching`` it beside the champion; ``armed``:
#: the online calibration is being judged; ``awaiting`` a person; ``promoting``; ``dropping`` what was not better;
#: ``probation`` of what was promoted. In building, promoting and dropping there is something to be done, in the others
#: something to be waited for.
Status = Literal["collecting", "building", "watching", "armed", "awaiting", "promoting", "dropping", "probation"]


class Case(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """One alert that is being acted on."""

    #: that of the alert, and the step that opened it
    id: str
    #: update, refit, retrain or rollback
    action: str
    status: Status
    #: the alert as it was
    alert: dict[str, Any]
    #: "name@version" that scored when it opened
    champion: str
    #: event time ms since when the world is another
    since_ms: int
    #: the how manieth challenger this is
    turn: int = 1
    #: frauds since the change before a challenger is built
    frauds_min: int = 0
    candidate: str = ""
    #: when the candidate was built, of a probation when it was promoted: what was used of `labelled`, by partition, and
    #: what the clock was; rows that had come and were final by then are no evidence
    begin: list[int] = []
    built_ms: int = 0
    looks: int = 0
    #: sums of `models.online.Gate`
    gate: list[float] = []
    #: the online calibration that was chosen: slope, level, rows
    learned: list[float] = []
    #: what speaks for the candidate
    evidence: dict[str, Any] = {}


class Kept(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Which rows are kept: by partition from the offsets ``begin`` on, and of these one in 2 ** ``level``."""

    level: int = 0
    begin: list[int] = []


class State(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """After ``steps`` steps: how far the inputs are used up, and everything that later steps depend on."""

    version: int = 2
    steps: int = 0
    #: next offsets, by partition
    alerts: list[int] = []
    labelled: list[int] = []
    commands: int = 0
    #: newest time at which a label of a used row was known, ms
    clock_ms: int = 0
    champion: str = ""
    #: why nothing may be done; None: it may
    frozen: str | None = None
    #: of `models.online.OnlineCalibrator`
    learner: list[float] = []
    case: Case | None = None
    #: what was promoted last, its ``candidate``, beside the ``champion`` before it
    probation: Case | None = None
    kept: Kept = Kept()
    #: what the clock was when the newest cases were opened, and when the last one was closed
    opened_ms: list[int] = []
    closed_ms: int | None = None
    #: "id action champion" of the newest alerts that were decided on; of what was declined, also when it was known
    decided: list[str] = []


class Command(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What a person wants: ``case`` of approve and reject; ``reason`` of a freeze; ``alert`` that is to be acted on,
    whatever was decided on it before."""

    command: Literal["approve", "reject", "freeze", "thaw", "act"]
    case: str = ""
    reason: str = ""
    by: str = ""
    time: int = 0
    alert: dict[str, Any] = {}


_WRITE = msgspec.json.Encoder().encode
_STATE = msgspec.json.Decoder(State)
_COMMAND = msgspec.json.Decoder(Command)


def written(value: State | Command) -> bytes:
    """As a record's value."""
    return _WRITE(value)


def read_state(value: bytes) -> State:
    """The inverse of `written`. FatalError ``control-state``: another headrace has written it."""
    try:
        state = _STATE.decode(value)
    except (msgspec.MsgspecError, ValueError) as exc:
        raise FatalError(
            "control-state",
            f"topic control: its newest state cannot be read ({exc}). Use the headrace that wrote it, or delete the "
            "topic: the loop then begins anew, from the labels and alerts that are there.",
        ) from exc
    if state.version != State().version:
        raise FatalError(
            "control-state",
            f"topic control: its newest state has version {state.version}, this headrace reads {State().version}. Use "
            "the headrace that wrote it, or delete the topic: the loop then begins anew.",
        )
    return state


def read_command(value: bytes | None) -> Command | None:
    """None where it is none of ours."""
    try:
        command = _COMMAND.decode(value or b"")
    except (msgspec.MsgspecError, ValueError):
        return None
    return command if command.command != "act" or is_alert(command.alert) else None
