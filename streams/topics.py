"""Every topic of every pipeline: names, partitions and settings, declared once."""

from __future__ import annotations

from streams.kafka_producer import MAX_MESSAGE_BYTES
from streams.log import TopicInfo

__all__ = [
    "ALERTS",
    "BY_ITEM",
    "BY_TERMINAL",
    "BY_TRANSACTION",
    "CONTROL",
    "DEAD_LETTERS",
    "DEFAULT_PARTITIONS",
    "FINDINGS",
    "FRAUD_SCORES",
    "INTERACTIONS",
    "ITEMS",
    "LABELLED",
    "LABELS",
    "LATE_EVENTS",
    "MODEL_EVENTS",
    "RECOMMENDATIONS",
    "SHADOW_SCORES",
    "SHED_EVENTS",
    "SOURCE_WEIGHTS",
    "TRANSACTIONS",
    "all_topics",
    "topic_infos",
]

TRANSACTIONS = "transactions"
LABELS = "transaction-labels"
BY_TERMINAL = "fraud.by-terminal"
BY_TRANSACTION = "fraud.by-transaction"
FRAUD_SCORES = "fraud-scores"
DEAD_LETTERS = "dead-letters"
LATE_EVENTS = "late-events"
SHED_EVENTS = "shed-events"
LABELLED = "labelled"
FINDINGS = "monitor.findings"
ALERTS = "alerts"
CONTROL = "control"
SHADOW_SCORES = "shadow-scores"
MODEL_EVENTS = "model-events"
INTERACTIONS = "interactions"
BY_ITEM = "interactions.by-item"
RECOMMENDATIONS = "recommendations"
ITEMS = "items"
SOURCE_WEIGHTS = "source-weights"

DEFAULT_PARTITIONS = 4
_DAY_MS = 86_400_000
#: State is rebuilt from the log: what stages read must outlive the longest window plus the labels' delay.
_STATE_INPUT = {"retention.ms": str(60 * _DAY_MS)}
_OUTPUT: dict[str, str] = {}
#: which model scored which offset is asked for as long as offsets are replayed
_FOREVER = {"retention.ms": "-1"}
#: a segment that is written to is not compacted, and every worker reads all of it when it starts
_COMPACTED = {"cleanup.policy": "compact", "segment.bytes": str(64 << 20)}
_SETTINGS: dict[str, dict[str, str]] = {
    TRANSACTIONS: _STATE_INPUT,
    LABELS: _STATE_INPUT,
    BY_TERMINAL: _STATE_INPUT,
    FRAUD_SCORES: _OUTPUT,
    DEAD_LETTERS: _STATE_INPUT,
    LATE_EVENTS: _STATE_INPUT,
    SHED_EVENTS: _STATE_INPUT,
    BY_TRANSACTION: _STATE_INPUT,
    LABELLED: _OUTPUT,
    SHADOW_SCORES: _OUTPUT,
    FINDINGS: _STATE_INPUT,
    ALERTS: _OUTPUT,
    MODEL_EVENTS: _FOREVER,
    CONTROL: _COMPACTED,
    INTERACTIONS: _STATE_INPUT,
    BY_ITEM: _STATE_INPUT,
    RECOMMENDATIONS: _OUTPUT,
    ITEMS: _COMPACTED,
    SOURCE_WEIGHTS: _COMPACTED,
}


def topic_infos(names: tuple[str, ...], partitions: int = DEFAULT_PARTITIONS) -> list[TopicInfo]:
    """How these topics are to be created. A 10 MB record fits everywhere: it may end in the dead letters."""
    size = {"max.message.bytes": str(MAX_MESSAGE_BYTES)}
    return [TopicInfo(name, partitions, "", {**size, **_SETTINGS[name]}) for name in names]


def all_topics(partitions: int = DEFAULT_PARTITIONS) -> list[TopicInfo]:
    """All topics of all pipelines, with the same number of partitions."""
    return topic_infos(tuple(_SETTINGS), partitions)
