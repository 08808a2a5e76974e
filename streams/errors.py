"""Errors of the streaming side, each with what to do, and the exit codes of a worker."""

from __future__ import annotations

__all__ = [
    "EXIT_FAILED",
    "EXIT_OK",
    "EXIT_USAGE",
    "EXIT_WATCHDOG",
    "ConfigError",
    "FatalError",
    "HeadraceError",
    "no_such_partition",
]

EXIT_OK = 0
EXIT_FAILED = 1
EXIT_USAGE = 2
#: A worker whose stage hung: nothing gentler than ending the process would have helped.
EXIT_WATCHDOG = 70


class HeadraceError(Exception):
    """Base of our errors; its text is meant for a person and ends with the remedy."""


class ConfigError(HeadraceError):
    """A setting or argument that cannot be used: names the field, the value and the remedy."""


class FatalError(HeadraceError):
    """The worker must end: ``reason`` is a short name for logs, the text says what happened and what to do."""

    def __init__(self, reason: str, message: str) -> None:
        super().__init__(f"{reason}: {message}")
        self.reason = reason


def no_such_partition(topic: str, partition: int, count: int) -> FatalError:
    """A partition was asked for that a topic of ``count`` does not have."""
    return FatalError(
        "no-such-partition",
        f"{topic}/{partition}: the topic has {count} partitions, 0 to {count - 1}. Ask for one of them, or raise the "
        "topic's partitions.",
    )
