"""How far several sources are together, by what they have told."""

from __future__ import annotations

import pytest

from features.plan import StateError
from streams.pipelines.monitor_sources import Sources
from streams.rows import NO_ROWS
from streams.shuffle import MessageKind, Shuffled, Source

A, B = ("labels", 0), ("rows", 0)


def told(
    sources: Sources, who: tuple[str, int], kind: MessageKind, time: int | None, next_offset: int = 0
) -> int | None:
    return sources.push(Shuffled(kind, Source(who[0], "id", who[1]), NO_ROWS, next_offset, time))


def test_all_are_waited_for_and_the_slowest_counts() -> None:
    sources = Sources([A, B], "rows")
    assert told(sources, A, "watermark", 50) is None
    assert told(sources, B, "watermark", None) is None
    assert told(sources, B, "rows", 20) == 20
    assert told(sources, B, "rows", 90) == 50
    assert told(sources, A, "labels", 40) == 50, "a source does not go back"


def test_who_is_idle_is_not_waited_for_until_it_wakes() -> None:
    sources = Sources([A, B], "rows")
    assert told(sources, B, "watermark", 90) is None
    assert told(sources, A, "idle", None) == 90, "a source that never had anything says so too"
    assert told(sources, B, "idle", 90) == 90, "all are idle: everything up to the newest is there"
    assert told(sources, A, "watermark", None) is None
    assert told(sources, A, "labels", 30) == 30
    assert told(sources, B, "watermark", 90) == 30


def test_an_idle_mark_of_a_sender_that_was_overtaken_counts_for_nothing() -> None:
    sources = Sources([A, B], "rows")
    told(sources, A, "labels", 10, next_offset=7)
    assert told(sources, B, "rows", 90) == 10
    assert told(sources, A, "idle", 10, next_offset=6) == 10
    assert told(sources, A, "idle", 10, next_offset=7) == 90


def test_the_sources_go_on_from_their_arrays() -> None:
    sources = Sources([A, B], "rows")
    told(sources, A, "labels", 0, next_offset=7)
    told(sources, B, "idle", 5)
    again = Sources([A, B], "rows")
    again.restore(sources.to_arrays())
    for both in (sources, again):
        assert told(both, A, "idle", 0, next_offset=6) == 0
        assert told(both, B, "rows", 5) == 0
        assert told(both, A, "labels", 9, next_offset=8) == 5
    with pytest.raises(StateError, match="knows nothing of rows/1"):
        Sources([A, B, ("rows", 1)], "rows").restore(sources.to_arrays())


def test_the_time_is_never_beyond_what_the_vectors_have_told() -> None:
    sources = Sources([A, B], "rows")
    assert told(sources, A, "labels", 10**15) is None
    assert told(sources, B, "idle", None) is None, "no vector has come: there is no time yet"
    assert told(sources, B, "rows", 20) == 20
    assert told(sources, B, "idle", 20) == 20, "a label of the far future is awake alone"
    assert told(sources, A, "idle", 10**15) == 20
    assert told(sources, B, "rows", 30) == 30, "and has spoilt nothing for good"
