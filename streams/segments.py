"""The features by whose values the monitor watches the scores apart, as a setting."""

from __future__ import annotations

from features.fraud import SETS
from streams.errors import ConfigError

__all__ = ["segments_of"]


def segments_of(text: str) -> tuple[str, ...]:
    """``is_weekend,is_night``: the names, each once. ConfigError: one that is a feature of no set."""
    names = tuple(dict.fromkeys(name.strip() for name in text.split(",") if name.strip()))
    known = dict.fromkeys(name for features in SETS.values() for name in features.names)
    for name in names:
        if name not in known:
            raise ConfigError(f"{name!r} is a feature of no set; use some of {', '.join(known)}")
    return names
