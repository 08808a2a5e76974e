"""Times on a command line."""

from __future__ import annotations

from datetime import UTC, datetime

from features.schema import TIME_MS_MAX
from streams.errors import ConfigError

__all__ = ["time_ms"]

#: whole numbers with fewer digits are dates such as 20260501
_MS_DIGITS_MIN = 9
#: the first time that text forms can hold
_TIME_MS_MIN = -62_135_596_800_000


def time_ms(option: str, text: str | None, default: int) -> int:
    """Milliseconds since the epoch, of an ISO date or time (UTC unless it says otherwise) or of milliseconds;
    ``default`` of None; beyond the years 1 and 9999 the first or last moment of these. ConfigError: not a time."""
    if text is None:
        return default
    if text.isascii() and text.isdigit() and len(text) >= _MS_DIGITS_MIN:
        number = text.lstrip("0") or "0"
        return TIME_MS_MAX if len(number) > len(str(TIME_MS_MAX)) else min(int(number), TIME_MS_MAX)
    try:
        when = datetime.fromisoformat(text)
    except ValueError:
        raise ConfigError(
            f"{option} {text}: not a time; give 2026-05-01, 2026-05-01T12:30 or milliseconds since the epoch"
        ) from None
    ms = round((when if when.tzinfo else when.replace(tzinfo=UTC)).timestamp() * 1000)
    return min(max(ms, _TIME_MS_MIN), TIME_MS_MAX)
