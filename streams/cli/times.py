"""Times on a command line."""

from __future__ import annotations

from datetime import UTC, datetime

from streams.errors import ConfigError

__all__ = ["time_ms"]

#: whole numbers with fewer digits are dates such as 20260501
_MS_DIGITS_MIN = 9


def time_ms(option: str, text: str | None, default: int) -> int:
    """Milliseconds since the epoch, of an ISO date or time (UTC unless it says otherwise) or of milliseconds;
    ``default`` of None. ConfigError: not a time."""
    if text is None:
        return default
    if text.isdigit() and len(text) >= _MS_DIGITS_MIN:
        return int(text)
    try:
        when = datetime.fromisoformat(text)
    except ValueError:
        raise ConfigError(
            f"{option} {text}: not a time; give 2026-05-01, 2026-05-01T12:30 or milliseconds since the epoch"
        ) from None
    return round((when if when.tzinfo else when.replace(tzinfo=UTC)).timestamp() * 1000)
