"""The fraud features: the default fifteen columns, in the order that models and score records rely on, and more."""

from __future__ import annotations

from features.declare import FeatureSet, by, field, hour, night, weekday, weekend

__all__ = ["DEFAULT", "LABEL_DELAY", "RICH", "SETS", "TILED", "set_of"]

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

#: The default set and more of the same kinds of evidence; like it, it reads no label before `LABEL_DELAY`.
RICH = FeatureSet(
    "fraud-rich",
    [
        *DEFAULT.features,
        weekday(),
        hour(),
        # bursts: how much in how little time
        by("card_id")
        .count("10m")
        .count("1h")
        .count("6h")
        .since_last("30d")
        .decayed_count(half_life="1h")
        .decayed_sum("amount", half_life="1d"),
        # the amount against what the card usually spends
        by("card_id")
        .ratio("amount", "7d")
        .ratio("amount", "30d")
        .zscore("amount", "7d")
        .zscore("amount", "30d")
        .max("amount", "7d")
        .previous("amount", "30d"),
        # places: is the card known at this terminal, and how many does it visit
        by("card_id").first_seen("terminal_id", "30d").distinct("terminal_id", "1d").distinct("terminal_id", "7d"),
        # the terminal now, whose labels are not known yet: busier, or with larger amounts than usual? Only sums, as one
        # terminal may have much of the traffic
        by("terminal_id")
        .count("1h", name="terminal_count_now_1h")
        .count("1d", name="terminal_count_now_1d")
        .mean("amount", "7d", name="terminal_mean_amount_now_7d")
        .risk("3d", delay=LABEL_DELAY)
        .risk("14d", delay=LABEL_DELAY),
    ],
)

#: The default set for very many cards: their windows of whole tiles, in a fraction of the memory. Terminals are few and
#: stay exact.
TILED = FeatureSet(
    "fraud-tiled",
    [
        *DEFAULT.row_features,
        by("card_id")
        .count("1d", tile="1h")
        .mean("amount", "1d", tile="1h")
        .count("7d", tile="6h")
        .mean("amount", "7d", tile="6h")
        .count("30d", tile="1d")
        .mean("amount", "30d", tile="1d"),
        DEFAULT.for_entity("terminal_id"),
    ],
)

#: by the name that commands and settings take
SETS = {"default": DEFAULT, "rich": RICH, "tiled": TILED}


def set_of(schema_hash: str) -> FeatureSet:
    """The set that a model with this schema hash was made for; the default one where it is none of ours."""
    return next((features for features in SETS.values() if features.schema_hash == schema_hash), DEFAULT)
