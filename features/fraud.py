"""The default fraud features: fifteen columns, in the order that models and score records rely on."""

from __future__ import annotations

from features.declare import FeatureSet, by, field, night, weekend

__all__ = ["DEFAULT", "LABEL_DELAY"]

#: Investigations take a week: what terminals did in the last seven days is not yet judged.
LABEL_DELAY = "7d"

DEFAULT = FeatureSet(
    "fraud-default",
    [
        field("amount"),
        weekend(),
        night(),
        by("card_id")
        .count("1d")
        .mean("amount", "1d")
        .count("7d")
        .mean("amount", "7d")
        .count("30d")
        .mean("amount", "30d"),
        by("terminal_id")
        .count("1d", delay=LABEL_DELAY)
        .risk("1d", delay=LABEL_DELAY)
        .count("7d", delay=LABEL_DELAY)
        .risk("7d", delay=LABEL_DELAY)
        .count("30d", delay=LABEL_DELAY)
        .risk("30d", delay=LABEL_DELAY),
    ],
)
