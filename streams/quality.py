"""What was found wrong with, or mended in, the values of a topic: counters per field.

    wrong_type       not the JSON type of the field's kind; the record is a dead letter
    out_of_range     outside the bounds, too long, empty, too far in the future; the record is a dead letter
    missing          absent or null; the record is a dead letter where the field is required, else a row
    clipped          set to the nearer bound (`features.schema.Field.clip`); a row
    trimmed          white space at its ends removed (``trim``); a row
    unseen_category  none of the field's ``categories``: an id, a row; a ``choice``, the record is a dead letter
    unreadable       of the record, so of field "": not JSON, not an object, null, too large or too deep; a dead letter

Each value has its verdict whatever else is in its record: one record with two wrong fields counts in both and is one
dead letter, so a counter does not depend on the order of the fields, nor on what is in the same batch. A value
counts once, but one that was trimmed and then is an unseen category counts as both; what is refused is not mended.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal

__all__ = ["RECORD", "Finding", "QualityCounters", "by_topic", "in_words"]

Finding = Literal["missing", "out_of_range", "clipped", "trimmed", "unseen_category", "wrong_type", "unreadable"]

#: The field name under which findings about whole records are counted.
RECORD = ""


def in_words(found: Mapping[str, Mapping[str, int]]) -> str:
    """What `QualityCounters.to_dict` gives as one line for a log; "nothing found" when there is nothing."""
    parts = []
    for name, findings in found.items():
        words = ", ".join(f"{n} {finding.replace('_', ' ')}" for finding, n in findings.items())
        parts.append(f"{name}: {words}" if name else words)
    return "; ".join(parts) or "nothing found"


class QualityCounters:
    """How often each finding was made in each field.

    >>> counters = QualityCounters()
    >>> counters.add("amount", "out_of_range", 2)
    >>> counters.add(RECORD, "unreadable")
    >>> counters.to_dict()
    {'': {'unreadable': 1}, 'amount': {'out_of_range': 2}}
    >>> print(counters)
    1 unreadable; amount: 2 out of range
    """

    __slots__ = ("_counts",)

    def __init__(self) -> None:
        self._counts: dict[tuple[str, Finding], int] = {}

    def __bool__(self) -> bool:
        """Whether anything was found."""
        return bool(self._counts)

    def __str__(self) -> str:
        """One line for a log; "nothing found" when there is nothing."""
        return in_words(self.to_dict())

    def add(self, field: str, finding: Finding, n: int = 1) -> None:
        """Counts ``n`` more; 0 leaves no trace."""
        if n:
            self._counts[field, finding] = self._counts.get((field, finding), 0) + n

    def update(self, other: QualityCounters) -> None:
        """Adds what the other has counted."""
        for (field, finding), n in other._counts.items():
            self.add(field, finding, n)

    def to_dict(self) -> dict[str, dict[str, int]]:
        """``{field: {finding: n}}`` without zeros, in alphabetical order, as JSON can hold it."""
        out: dict[str, dict[str, int]] = {}
        for name, finding in sorted(self._counts):
            out.setdefault(name, {})[finding] = self._counts[name, finding]
        return out


def by_topic(counters: Mapping[str, QualityCounters]) -> dict[str, dict[str, dict[str, int]]]:
    """By topic and field, how often each finding was made; topics without any are left out."""
    return {topic: of.to_dict() for topic, of in counters.items() if of}
