"""One step of the control loop as a pure function: what was known, and what has come, give what is done.

A step is one round of labelled rows with the alerts that are due by then, or what people asked for in between. It only
decides; what is to be *done* is a status of the open case (`building`, `promoting`, `dropping`), which is in the log
before anybody does it, and `finished` is the step that takes note of the outcome. See `streams.control`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import asdict
from typing import Any

import numpy as np
from msgspec.structs import replace

from models.metrics import log_losses
from models.online import Gate
from streams.control_alerts import Wanted, wanted
from streams.control_probation import roll_back, rolled_back, watched_after
from streams.control_settings import ControlSettings
from streams.control_state import ROLLBACK, Case, Command, State
from streams.control_step import MONTH_MS, Desk, Inputs, Step

__all__ = ["finished", "step"]

#: ids of alerts that are known again when they are sent twice
_DECIDED = 256


def step(settings: ControlSettings, state: State, inputs: Inputs, desk: Desk) -> Step:
    """The next state. Nothing is asked but ``desk``: the same inputs in the same order give the same steps."""
    alerts, labelled, commands = inputs.used
    clock_ms = max(state.clock_ms, inputs.clock_ms)
    now = replace(
        state,
        steps=state.steps + 1,
        alerts=alerts,
        labelled=labelled,
        commands=commands,
        clock_ms=clock_ms,
        # before the first label there is no clock: a case that a person has asked for by then begins with it
        opened_ms=[opened or clock_ms for opened in state.opened_ms],
        kept=inputs.kept or state.kept,
    )
    out = Step(now)
    if now.kept.level < state.kept.level:
        kept = f"1 in {2**now.kept.level}"
        out.tell("sampled", None, kept=kept, reason=f"of the rows {kept} is kept again, since fewer come")
    elif now.kept.level != state.kept.level:
        sampled = _sampled(now)
        if now.case is not None and now.case.status == "collecting":
            out.follow(now.case, f"collecting, {sampled['reason']}", "sampled", **sampled)
        else:
            out.tell("sampled", None, **sampled)
    if inputs.champion != state.champion:
        _other_champion(out, inputs.champion)
    for command in inputs.commands:
        _obey(settings, out, command, desk)
    if inputs.rows and out.state.champion:
        _learn(settings, state, out, desk)
    for alert in inputs.alerts:
        _decide(settings, out, alert, desk)
    if inputs.rows and out.state.frozen is None:
        watched_after(settings, out, desk)
    case = out.state.case
    if inputs.rows and case is not None and out.state.frozen is None:
        _MOVES.get(case.status, _wait)(settings, out, case, desk)
    return out


def _sampled(state: State) -> dict[str, str]:
    """What an event says of the rows that are left out, and what to do about it; nothing where none are. Of too few
    rows there may never be the frauds that a case waits for, however many have come."""
    if not state.kept.level:
        return {}
    kept = f"1 in {2**state.kept.level}"
    return {"kept": kept, "reason": f"of the rows {kept} is kept, raise control.rows_max for more frauds"}


def _other_champion(out: Step, champion: str) -> None:
    """Somebody else has changed the champion: what was learned beside the former one says nothing any more."""
    case, first = out.state.case, not out.state.champion
    out.state = replace(out.state, champion=champion, learner=[], probation=None)
    if case is not None and case.status != "dropping" and not first:
        out.close(case, f"given up: {champion or 'no model'} was made champion by somebody else", "given-up")


def _obey(settings: ControlSettings, out: Step, command: Command, desk: Desk) -> None:
    case, by = out.state.case, command.by
    if command.command == "freeze":
        out.state = replace(out.state, frozen=command.reason or "frozen")
        out.tell("frozen", by=by, reason=command.reason)
    elif command.command == "thaw":
        out.state = replace(out.state, frozen=None)
        out.tell("thawed", by=by)
    elif command.command == "act":
        out.tell("asked", by=by, alert_id=command.alert["alert_id"])
        _decide(settings, out, command.alert, desk, asked=True)
    elif case is None or case.id != command.case or case.status == "dropping":
        out.tell("ignored", by=by, command=command.command, asked=command.case, reason="no such case is open")
    elif command.command == "reject":
        out.close(case, f"rejected by {by}", "rejected", by=by, model=case.candidate)
    elif case.status != "awaiting":
        out.tell("ignored", case, by=by, command="approve", reason=f"the case is {case.status}, not awaiting approval")
    elif out.state.frozen is not None:
        out.tell("ignored", case, by=by, command="approve", reason=f"frozen: {out.state.frozen}")
    else:
        out.state = replace(out.state, case=replace(case, status="promoting"))
        out.tell("approved", case, by=by, model=case.candidate)


def _learn(settings: ControlSettings, before: State, out: Step, desk: Desk) -> None:
    """The online calibration takes the labels that are final now; where it is being judged, by how it did on them."""
    raw, probability, y = desk.scored(before, out.state)
    learner = desk.learner(out.state)
    predicted = learner.update(raw, y)
    case = out.state.case
    if case is not None and case.status == "armed":
        truth = y.astype(np.float64)
        gate = _gate(case).add(log_losses(truth, probability), log_losses(truth, predicted))
        case = replace(case, gate=list(asdict(gate).values()))
    out.state = replace(out.state, case=case, learner=learner.state().tolist())


def _gate(case: Case) -> Gate:
    return Gate(int(case.gate[0]), int(case.gate[1]), *case.gate[2:]) if case.gate else Gate()


def _decide(settings: ControlSettings, out: Step, alert: Mapping[str, Any], desk: Desk, asked: bool = False) -> None:
    """What is done about an alert, and that it was decided. One that comes again, as it was or because more was found
    of its cause, is decided on again where that asks for something else, is about another champion, is newer than what
    was declined, or a person has ``asked`` for it: then no pause, age or number of cases is in the way."""
    state, name = out.state, str(alert["alert_id"])
    if state.case is not None and state.case.alert["alert_id"] == name:
        state = out.state = replace(state, case=replace(state.case, alert=dict(alert)))
    found = wanted(settings, alert, state.champion, desk.labels_ms)
    key = f"{name} {found.action} {state.champion}" if found is not None else f"{name} nothing"
    if not asked and _decided(state, name, key, found):
        return
    alert_only = found is not None and found.action == "alert"
    reason = None if alert_only else _why_not(settings, state, found, asked)
    noted = key if reason is None or found is None else f"{key} {found.known_ms}"
    others = [other for other in state.decided if other != noted and not other.startswith(f"{key} ")]
    out.state = replace(state, decided=[*others, noted][-_DECIDED:])
    if alert_only:
        out.answer(alert, "alert only")
        return
    running = state.case
    if reason is not None or found is None:
        out.tell("declined", alert_id=name, reason=reason)
        out.answer(alert, f"none: {reason}", case=None if running is None else running.id)
        return
    if running is not None:
        out.follow(running, f"given up for {found.action}", "given-up", reason=f"gives way to {found.action}, {name}")
    case = Case(
        id=f"{name}-{state.steps}",
        action=found.action,
        status="armed" if found.action == "update" else "collecting",
        alert=dict(alert),
        champion=state.champion,
        since_ms=found.since_ms,
        frauds_min=settings.frauds_min,
    )
    out.state = replace(out.state, case=case, opened_ms=[*_recent(state), state.clock_ms])
    sampled = _sampled(out.state) if case.status == "collecting" else {}
    text = f"begun, {sampled['reason']}" if sampled else "begun"
    out.follow(case, text, "opened", since=case.since_ms, **sampled)


def _decided(state: State, name: str, key: str, found: Wanted | None) -> bool:
    """Whether this was decided on: acted on under ``key``, or declined when as much was found as now."""
    if found is None:
        return any(other.startswith(f"{name} ") for other in state.decided)
    declined = [int(other.removeprefix(f"{key} ")) for other in state.decided if other.startswith(f"{key} ")]
    return key in state.decided or found.known_ms <= max(declined, default=found.known_ms - 1)


def _recent(state: State) -> list[int]:
    """When the cases of the last 30 days were opened."""
    return [opened for opened in state.opened_ms if opened > state.clock_ms - MONTH_MS]


def _why_not(settings: ControlSettings, state: State, found: Wanted | None, asked: bool) -> str | None:
    """Why nothing is done about an alert; None: something is. A calibration that is only being judged gives way to what
    changes the ranking."""
    case = state.case
    gives_way = case is not None and case.status == "armed" and found is not None and found.action != "update"
    if not state.champion:
        return "no model scores"
    if state.frozen is not None:
        return f"frozen: {state.frozen}"
    if case is not None and not gives_way:
        return f"{case.action} for {case.alert['alert_id']} is under way"
    if found is None:
        return f"it is not about {state.champion}, which is champion"
    if asked:
        return None
    if found.known_ms < state.clock_ms - settings.alert_age_ms_max:
        return "it is too old"
    if state.closed_ms is not None and found.known_ms < state.closed_ms + settings.cooldown_ms:
        return f"cooling down until {state.closed_ms + settings.cooldown_ms}"
    if len(_recent(state)) >= settings.cases_per_30d:
        return f"{len(_recent(state))} cases in 30 days are as many as allowed"
    return None


def _wait(settings: ControlSettings, out: Step, case: Case, desk: Desk) -> None:
    """It is not for a round of rows to move this case."""


def _collect(settings: ControlSettings, out: Step, case: Case, desk: Desk) -> None:
    frauds = desk.frauds(case, out.state.clock_ms)
    if frauds >= case.frauds_min:
        # what becomes final from here on is new to the candidate
        clock_ms, begin = out.state.clock_ms, out.state.labelled
        built = replace(case, status="building", frauds_min=frauds, begin=begin, built_ms=clock_ms)
        out.state = replace(out.state, case=built)
        out.tell("building", built, frauds=frauds, since=case.since_ms, positions=built.begin)
    elif _too_long(out, case, desk):
        _too_few(out, case, f"{frauds} of {case.frauds_min} frauds in 30 days")


def _too_few(out: Step, case: Case, found: str, **more: Any) -> None:
    """Gives the case up; where rows are left out, that says so."""
    sampled = _sampled(out.state)
    text = f"given up: {found}, {sampled['reason']}" if sampled else f"given up: {found}"
    out.close(case, text, "given-up", **(sampled | {"reason": text}), **more)


def _too_long(out: Step, case: Case, desk: Desk) -> bool:
    """Whether the case was opened 30 days ago, for each of its challengers, and as long as its first labels took."""
    return out.state.clock_ms > out.state.opened_ms[-1] + MONTH_MS * case.turn + desk.labels_ms


def _watch(settings: ControlSettings, out: Step, case: Case, desk: Desk) -> None:
    """Looks at the candidate beside the champion when so many more frauds have come, so many times."""
    if desk.new_frauds(case, out.state.clock_ms) < settings.look_frauds * (case.looks + 1):
        if _too_long(out, case, desk):
            _too_few(out, case, "too few frauds in 30 days to judge by", model=case.candidate)
        return
    found = desk.evidence(case, out.state.clock_ms, settings.look_confidence)
    looked = replace(case, looks=case.looks + 1, evidence=asdict(found))
    better = found.better()
    if better == "challenger" and found.better("log_loss") != "champion":
        _propose(settings, out, looked)
    elif better == "champion" or looked.looks >= settings.looks:
        why = "is worse than the champion" if better == "champion" else "is not better beyond chance"
        out.close(
            looked, f"given up: {case.candidate} {why}", "given-up", model=case.candidate, evidence=looked.evidence
        )
    else:
        out.state = replace(out.state, case=looked)
        out.tell("looked", looked, model=case.candidate, evidence=looked.evidence)


def _judge(settings: ControlSettings, out: Step, case: Case, desk: Desk) -> None:
    """Looks at the online calibration after so many rounds, so many times; each look is at new rounds."""
    gate = _gate(case)
    if gate.rounds < settings.look_rounds:
        if _too_long(out, case, desk):
            out.close(case, "given up: too few final labels in 30 days to judge by", "given-up")
        return
    figures = gate.figures(settings.look_confidence)
    looked = replace(case, looks=case.looks + 1, gate=[], evidence=figures)
    if gate.passed(settings.look_confidence, settings.gain_min) and out.state.learner[0] > 0:
        _propose(settings, out, replace(looked, learned=out.state.learner))
    elif looked.looks >= settings.looks:
        out.close(looked, "given up: what was learned is not better than the champion", "given-up", evidence=figures)
    else:
        out.state = replace(out.state, case=looked)
        out.tell("looked", looked, evidence=figures)


def _propose(settings: ControlSettings, out: Step, case: Case) -> None:
    """The evidence is there: it is promoted, or a person asked."""
    human = settings.approval == "human"
    case = replace(case, status="awaiting" if human else "promoting")
    out.state = replace(out.state, case=case)
    more = {"model": case.candidate or None, "evidence": case.evidence}
    if human:
        out.follow(case, f"{case.candidate or 'a new calibration'} awaits approval", "proposed", **more)
    else:
        out.tell("decided", case, **more)


_MOVES: dict[str, Callable[[ControlSettings, Step, Case, Desk], None]] = {
    "collecting": _collect,
    "watching": _watch,
    "armed": _judge,
}


def finished(settings: ControlSettings, state: State, outcome: Mapping[str, Any]) -> Step:
    """The step that takes note of what was done about the open case, which was building, promoting or dropping.

    ``outcome`` of building: ``model`` and ``metrics`` and ``shadow`` (whether it is), or ``declined``, why there is no
    challenger; of promoting: ``model``, or ``declined``, why it was not.
    """
    case = state.case
    assert case is not None
    out = Step(replace(state, steps=state.steps + 1))
    if case.status == "dropping":
        out.state = replace(out.state, case=None)
        trial = out.state.probation
        if trial is not None and trial.status == "promoting":
            roll_back(settings, out, trial)
    elif "declined" in outcome:
        out.close(case, f"given up: {outcome['declined']}", "given-up")
    elif case.status == "building":
        watched = replace(case, status="watching", candidate=outcome["model"], looks=0, evidence={})
        out.state = replace(out.state, case=watched)
        event = "refitted" if case.action == "refit" else "retrained"
        out.follow(watched, f"{outcome['model']} is watched beside the champion", event, **outcome)
    elif case.action == ROLLBACK:
        rolled_back(out, case, outcome)
    else:
        model = outcome["model"]
        out.state = replace(out.state, champion=model, learner=[], case=None, closed_ms=state.clock_ms)
        trial = None  # one of a champion before says nothing of this one
        if settings.probation_looks:
            trial = replace(case, status="probation", candidate=model, looks=0, evidence={})
            trial = replace(trial, begin=state.labelled, built_ms=state.clock_ms)
        out.state = replace(out.state, probation=trial)
        event = "updated" if case.action == "update" else "promoted"
        out.follow(case, f"{model} is champion", event, **outcome, evidence=case.evidence)
        if case.action != "update" and case.turn < settings.turns:
            turn = case.turn + 1
            following = Case(
                id=f"{case.alert['alert_id']}-{out.state.steps}",
                action=case.action,
                status="collecting",
                alert=case.alert,
                champion=model,
                since_ms=case.since_ms,
                turn=turn,
                frauds_min=2 * case.frauds_min,
            )
            out.state = replace(out.state, case=following)
    return out
