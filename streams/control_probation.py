"""Probation: what control has promoted is watched for a time after, beside the champion that it replaced, and rolled
back on evidence that it is worse.

The evidence is that of a promotion, the other way round: paired differences with intervals, on rows that became final
since, at looks that are set beforehand. A roll-back is a case of its own, so whatever holds for a promotion holds for
it: a person is asked first where one has to be, a freeze stops it, a crash repeats nothing. It is not held up by a
cool-down, but begins one.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

from msgspec.structs import replace

from models.evidence import Evidence
from streams.control_settings import ControlSettings
from streams.control_state import ROLLBACK, Case
from streams.control_step import MONTH_MS, Desk, Step

__all__ = ["roll_back", "rolled_back", "watched_after"]


def watched_after(settings: ControlSettings, out: Step, desk: Desk) -> None:
    """A look at what is on probation, where one is due."""
    trial, clock_ms = out.state.probation, out.state.clock_ms
    if trial is None:
        return
    if desk.new_frauds(trial, clock_ms) < settings.look_frauds * (trial.looks + 1):
        if clock_ms > trial.built_ms + MONTH_MS + desk.labels_ms:
            _end(out, trial, "too few frauds in 30 days to judge by")
        return
    found = desk.evidence(trial, clock_ms, settings.probation_confidence)
    looked = replace(trial, looks=trial.looks + 1, evidence=asdict(found))
    if _worse(found):
        running = out.state.case
        # of the one that is open, a candidate may have to be dropped first: then `finished` goes on with the roll-back
        out.state = replace(out.state, probation=replace(looked, status="promoting"))
        if running is not None:
            out.close(running, f"given up: {trial.candidate} is rolled back", "given-up")
        if out.state.case is None:
            roll_back(settings, out, looked)
    elif looked.looks >= settings.probation_looks:
        _end(out, looked, f"not worse than {trial.champion}")
    else:
        out.state = replace(out.state, probation=looked)
        out.tell("looked", looked, model=looked.candidate, probation=True, evidence=looked.evidence)


def _worse(found: Evidence) -> bool:
    """Whether the one that was replaced is better: it ranks better, or is as good at that and nearer to the truth."""
    ranking, loss = found.better(), found.better("log_loss")
    return ranking == "champion" or (ranking is None and loss == "champion")


def _end(out: Step, trial: Case, reason: str) -> None:
    out.state = replace(out.state, probation=None)
    out.tell("kept", trial, model=trial.candidate, reason=reason, evidence=trial.evidence)


def roll_back(settings: ControlSettings, out: Step, trial: Case) -> None:
    """The case of the roll-back, no other one being open: it is done, or a person asked."""
    human = settings.approval == "human"
    case = replace(
        trial,
        id=f"{trial.alert['alert_id']}-{out.state.steps}",
        action=ROLLBACK,
        status="awaiting" if human else "promoting",
        champion=trial.candidate,
        candidate=trial.champion,
    )
    out.state = replace(out.state, case=case, probation=None)
    more = {"model": case.candidate, "evidence": case.evidence}
    if human:
        out.follow(case, f"{case.champion} is worse than {case.candidate}; awaits approval", "proposed", **more)
    else:
        out.tell("decided", case, **more)


def rolled_back(out: Step, case: Case, outcome: Mapping[str, Any]) -> None:
    """The former champion is champion again."""
    out.state = replace(
        out.state, champion=case.candidate, learner=[], case=None, probation=None, closed_ms=out.state.clock_ms
    )
    text = f"{case.candidate} is champion again, {case.champion} was worse"
    out.follow(case, text, "rolled-back", **outcome, evidence=case.evidence)
