"""The section ``[control]`` of headrace.toml: what is done about which alert, how often, and on what evidence."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from typing import Any

from streams.errors import ConfigError

__all__ = ["ACTIONS", "KINDS", "ControlSettings"]

ACTIONS = ("alert", "update", "refit", "retrain")
#: kinds of alerts, see `monitoring.alerts.Alert`
KINDS = (
    "input_drift",
    "score_drift",
    "segment_drift",
    "missing_rate",
    "unseen_rate",
    "estimated_performance",
    "performance_drift",
    "calibration_drift",
)
#: what is missing or was never seen is a defect of the data, which no model should learn; inputs that drift alone cost
#: nothing as long as performance does not follow
_POLICY = dict.fromkeys(KINDS, "alert") | {"calibration_drift": "update", "performance_drift": "retrain"}
_DAY_MS = 86_400_000


@dataclass(frozen=True, slots=True)
class ControlSettings:
    """``policy``: by kind of alert alert (only), update, refit or retrain. ``approval``: auto, or human: a person says
    yes before the champion changes. Times are event time.

    A step is taken for each ``round_rows`` labelled rows of every partition; ``rows_max`` of them are kept in all.
    These have to reach back further than labels take to be final: where they would not, one in 2, 4, 8.. is kept, by a
    hash of the transaction's id. ``cooldown_ms``: from the end of a case to the next. ``alert_age_ms_max``: an alert
    that was known before, by the labels' clock, is only told. ``cases_per_30d``: opened at most. ``frauds_min``: since
    the change, before a challenger is built. ``look_frauds``: new frauds between two looks at challenger and champion,
    of which there are ``looks`` at most; ``confidence`` is that of all looks together. ``turns``: challengers for one
    alert, each of twice the frauds of the one before. ``learning_rate`` and ``gain_min`` (share of the champion's
    loss): of the online calibration, ``look_rounds`` from one look at it to the next. ``probation_looks``: at what was
    promoted, beside the champion before it, as far apart as those before; 0: none. ``timeout_s``: of a training.
    """

    policy: Mapping[str, str] = field(default_factory=dict)
    approval: str = "auto"
    round_rows: int = 256
    rows_max: int = 200_000
    cooldown_ms: int = _DAY_MS
    alert_age_ms_max: int = 7 * _DAY_MS
    cases_per_30d: int = 8
    frauds_min: int = 150
    look_frauds: int = 60
    looks: int = 4
    confidence: float = 0.95
    turns: int = 2
    learning_rate: float = 0.05
    gain_min: float = 0.01
    look_rounds: int = 10
    probation_looks: int = 4
    timeout_s: int = 3600

    def __post_init__(self) -> None:
        for kind, action in self.policy.items():
            if kind not in KINDS:
                raise ConfigError(f"control.policy.{kind}: no such kind of alert; use {', '.join(KINDS)}")
            if action not in ACTIONS:
                raise ConfigError(f"control.policy.{kind}: {action!r} is no action; use one of {', '.join(ACTIONS)}")
        if self.approval not in ("auto", "human"):
            raise ConfigError(f"control.approval: {self.approval!r} is neither auto nor human; use one of them")
        for name in ("round_rows", "frauds_min", "look_frauds", "looks", "turns", "look_rounds", "timeout_s"):
            if getattr(self, name) < 1:
                raise ConfigError(f"control.{name}: {getattr(self, name)} is below 1; give a larger one")
        if self.rows_max < 10 * self.round_rows:
            raise ConfigError(
                f"control.rows_max: {self.rows_max} is less than ten times round_rows ({self.round_rows}); give more"
            )
        if not 0.5 <= self.confidence < 1.0:
            raise ConfigError(f"control.confidence: {self.confidence} is not in 0.5..1; give such as 0.95")
        for name in ("cooldown_ms", "alert_age_ms_max", "cases_per_30d", "gain_min", "probation_looks"):
            if not 0 <= getattr(self, name) < math.inf:
                raise ConfigError(f"control.{name}: {getattr(self, name)} is below 0; give 0 or more")
        if not 0 < self.learning_rate <= 1:
            raise ConfigError(f"control.learning_rate: {self.learning_rate} is not above 0 and at most 1; give 0.05")

    def action(self, kind: str) -> str:
        """What is to be done about alerts of this kind."""
        return self.policy.get(kind, _POLICY.get(kind, "alert"))

    @property
    def look_confidence(self) -> float:
        """Of each look, so that all together are wrong no more often than asked for (Bonferroni)."""
        return 1.0 - (1.0 - self.confidence) / self.looks

    @property
    def probation_confidence(self) -> float:
        """The same of each look after a promotion."""
        return 1.0 - (1.0 - self.confidence) / max(1, self.probation_looks)

    @classmethod
    def of(cls, table: Mapping[str, Any]) -> ControlSettings:
        """Of the section as TOML gives it. ConfigError: a setting that is not known or cannot be."""
        known = {spec.name: spec for spec in fields(cls)}
        values: dict[str, Any] = {}
        for name, value in table.items():
            if name not in known:
                raise ConfigError(f"control.{name}: not known; known are {', '.join(known)}")
            values[name] = _checked(name, str(known[name].type), value)
        return cls(**values)


def _checked(name: str, kind: str, value: Any) -> Any:
    if kind.startswith("Mapping"):
        if not isinstance(value, Mapping) or not all(isinstance(action, str) for action in value.values()):
            raise ConfigError(
                f'control.{name}: {value!r} is no table; write [control.{name}] and lines of KIND = "ACTION"'
            )
        return dict(value)
    wanted: tuple[type, ...] = {"str": (str,), "int": (int,), "float": (int, float)}[kind]
    if not isinstance(value, wanted) or isinstance(value, bool):
        what = {"str": "text", "int": "a whole number", "float": "a number"}[kind]
        raise ConfigError(f"control.{name}: {value!r} is not {what}; give one")
    return value
