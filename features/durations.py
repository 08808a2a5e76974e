"""Durations as people write them, and the error of a feature that cannot be."""

from __future__ import annotations

import re

__all__ = ["DURATION_MS_MAX", "FeatureError", "duration_ms", "duration_text"]

_UNITS_MS = {"s": 1_000, "m": 60_000, "h": 3_600_000, "d": 86_400_000, "w": 604_800_000}
_DURATION = re.compile(r"([0-9]+)([smhdw])")
DURATION_MS_MAX = 3_660 * _UNITS_MS["d"]


class FeatureError(ValueError):
    """A feature that cannot be: the text names the feature, the field and what to write instead."""


def duration_ms(text: str, *, feature: str = "window") -> int:
    """Milliseconds of a duration such as "90s", "5m", "1h", "7d", "4w"; `FeatureError` names ``feature``."""
    match = _DURATION.fullmatch(text) if isinstance(text, str) else None
    if match is None:
        raise FeatureError(
            f"{feature}: {text!r} is not a duration; write a whole number and s, m, h, d or w, as in '90s' or '7d'"
        )
    value = int(match[1]) * _UNITS_MS[match[2]]
    if value > DURATION_MS_MAX:
        raise FeatureError(f"{feature}: {text!r} is longer than ten years; choose a shorter duration")
    return value


def duration_text(value_ms: int) -> str:
    """The shortest way to write a number of whole seconds: "7d", "36h", "90s"."""
    for unit in ("d", "h", "m"):
        if value_ms and value_ms % _UNITS_MS[unit] == 0:
            return f"{value_ms // _UNITS_MS[unit]}{unit}"
    return f"{value_ms // 1_000}s"
