"""How many partitions a group's topics had: what its commits say of it, and what is refused."""

from __future__ import annotations

import pytest

from streams.errors import FatalError
from streams.log import TP
from streams.widths import check_widths, note_of

NOW = {"payments": 4, "labels": 2}
ASSIGNED = [TP("payments", 0), TP("payments", 3), TP("labels", 1)]


def test_the_same_widths_another_topic_and_foreign_notes_are_fine() -> None:
    notes = {
        TP("payments", 0): note_of(NOW),
        TP("payments", 3): note_of({"payments": 4, "lists": 9}),
        TP("labels", 1): "set by another tool",
    }
    check_widths(NOW, ASSIGNED, notes)


def test_a_commit_of_any_partition_tells_of_all_topics() -> None:
    with pytest.raises(
        FatalError, match=r"labels had 3 partitions when this group .* has 2 now.* new --group"
    ) as error:
        check_widths(NOW, ASSIGNED, {TP("payments", 3): note_of({"payments": 4, "labels": 3})})
    assert error.value.reason == "partitions-raised"


def test_a_partition_beyond_those_at_the_start_is_refused() -> None:
    with pytest.raises(FatalError, match="payments had 4 partitions when this worker began and has more now"):
        check_widths(NOW, [*ASSIGNED, TP("payments", 4)], {})
