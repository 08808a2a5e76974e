"""Every topic of every pipeline: names, partitions and settings, declared once."""

from __future__ import annotations

from streams.kafka_producer import MAX_MESSAGE_BYTES
from streams.log import TopicInfo

__all__ = [
    "BY_TERMINAL",
    "DEAD_LETTERS",
    "DEFAULT_PARTITIONS",
    "FRAUD_SCORES",
    "LABELS",
    "LATE_EVENTS",
    "TRANSACTIONS",
    "all_topics",
    "topic_infos",
]

TRANSACTIONS = "transactions"
LABELS = "transaction-labels"
BY_TERMINAL = "fraud.by-terminal"
FRAUD_SCORES = "fraud-scores"
DEAD_LETTERS = "dead-letters"
LATE_EVENTS = "late-events"

DEFAULT_PARTITIONS = 4
_DAY_MS = 86_400_000
#: State is rebuilt from the log: what stages read must outlive the longest window plus the labels' delay.
_STATE_INPUT = {"retention.ms": str(60 * _DAY_MS)}
_OUTPUT: dict[str, str] = {}
_COMPACTED = {"cleanup.policy": "compact"}
_SETTINGS: dict[str, dict[str, str]] = {
    TRANSACTIONS: _STATE_INPUT,
    LABELS: _STATE_INPUT,
    BY_TERMINAL: _STATE_INPUT,
    FRAUD_SCORES: _OUTPUT,
    DEAD_LETTERS: _STATE_INPUT,
    LATE_EVENTS: _STATE_INPUT,
    "fraud.by-transaction": _STATE_INPUT,
    "labelled": _OUTPUT,
    "shadow-scores": _OUTPUT,
    "alerts": _OUTPUT,
    "model-events": _STATE_INPUT,
    "interactions": _STATE_INPUT,
    "interactions.by-item": _STATE_INPUT,
    "recommendations": _OUTPUT,
    "items": _COMPACTED,
}


def topic_infos(names: tuple[str, ...], partitions: int = DEFAULT_PARTITIONS) -> list[TopicInfo]:
    """How these topics are to be created. A 10 MB record fits everywhere: it may end in the dead letters."""
    size = {"max.message.bytes": str(MAX_MESSAGE_BYTES)}
    return [TopicInfo(name, partitions, "", {**size, **_SETTINGS[name]}) for name in names]


def all_topics(partitions: int = DEFAULT_PARTITIONS) -> list[TopicInfo]:
    """All topics of all pipelines, with the same number of partitions."""
    return topic_infos(tuple(_SETTINGS), partitions)
