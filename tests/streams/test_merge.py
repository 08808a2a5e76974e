"""The order by event time: a pure function of the messages, equal for all interleavings of the same sources."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from features.block import Block, Ids
from features.plan import StateError
from streams.merge import ArrivalOrder, EventTimeOrder, Merged, Order
from streams.row_arrays import rows_from_arrays, rows_to_arrays
from streams.rows import Rows
from streams.shuffle import MessageKind, Shuffled, Source
from tests.features.streams_of_rows import same_arrays

#: (time, 0 = label, 1 = row, transaction id, source partition)
Item = tuple[int, int, int, int]
TOPICS = {"rows": "transactions", "labels": "transaction-labels"}


@dataclass
class Sender:
    """One source partition: makes messages of what it is given, in source order."""

    kind: Literal["rows", "labels"]
    partition: int = 0
    offset: int = 0
    watermark: int | None = None

    @property
    def name(self) -> tuple[str, int]:
        return TOPICS[self.kind], self.partition

    def send(self, *items: tuple[int, int]) -> Shuffled:
        """(time, transaction id) of each; the watermark is one less than the newest time."""
        times = np.array([t for t, _ in items], np.int64)
        offsets = np.arange(self.offset, self.offset + len(items))
        self.offset += len(items)
        newest = int(times.max()) - 1
        self.watermark = newest if self.watermark is None else max(self.watermark, newest)
        time_field = "event_time" if self.kind == "rows" else "label_time"
        return self._message(
            self.kind,
            offsets,
            {"transaction_id": Ids(ints=np.array([i for _, i in items], np.int64))},
            {time_field: times, "from": np.full(len(items), self.partition)},
        )

    def mark(self, kind: MessageKind = "watermark") -> Shuffled:
        return self._message(kind, np.empty(0, np.int64), {}, {})

    def _message(self, kind: MessageKind, offsets: Any, ids: dict[str, Ids], columns: dict[str, Any]) -> Shuffled:
        topic, partition = self.name
        block = Block(topic, partition, self.offset, offsets, offsets, ids, columns)
        return Shuffled(kind, Source(topic, "id", partition), Rows.of(block), self.offset, self.watermark)


def items(merged: Merged) -> list[Item]:
    """What came out, in its order."""

    def of(rows: Rows | None, field: str, kind: int) -> list[Item]:
        if rows is None:
            return []
        block = rows.block("", 0, 0)
        columns = (block.columns[field].tolist(), block.ids["transaction_id"].to_list(), block.columns["from"].tolist())
        return [(t, kind, int(i), p) for t, i, p in zip(*columns, strict=True)]

    sides = iter(of(merged.labels, "label_time", 0)), iter(of(merged.rows, "event_time", 1))
    out = [next(sides[0] if is_label else sides[1]) for is_label in merged.kinds]
    assert [list(side) for side in sides] == [[], []]
    return out


def push(order: Order, *messages: Shuffled) -> list[Item]:
    for message in messages:
        order.push(message)
    return items(order.due())


@st.composite
def sources(draw: st.DrawFn) -> list[tuple[Sender, list[list[tuple[int, int]]]]]:
    """Two to four sources, each with blocks of items in time order."""
    out = []
    unique = iter(draw(st.permutations(range(60))))
    for p in range(draw(st.integers(2, 4))):
        time = draw(st.integers(0, 5))
        blocks = []
        for _ in range(draw(st.integers(1, 4))):
            block = []
            for _ in range(draw(st.integers(1, 3))):
                time += draw(st.sampled_from([0, 0, 1, 3]))
                block.append((time, next(unique)))
            blocks.append(block)
        out.append((Sender("labels" if draw(st.booleans()) else "rows", p), blocks))
    return out


def interleaved(draw: Any, given_sources: list[tuple[Sender, list[list[tuple[int, int]]]]]) -> list[Shuffled]:
    """The sources' messages, watermarks and at last idle marks, in an order that keeps each source's own."""
    queues = []
    for sender, blocks in given_sources:
        fresh = Sender(sender.kind, sender.partition)
        messages = []
        for block in blocks:
            messages.append(fresh.send(*block))
            if draw(st.booleans()):
                messages.append(fresh.mark())
        queues.append([*messages, fresh.mark(), fresh.mark("idle")])
    out = []
    while any(queues):
        out.append(draw(st.sampled_from([q for q in queues if q])).pop(0))
    return out


@settings(max_examples=150, deadline=None, derandomize=True)
@given(sources(), st.data())
def test_any_interleaving_gives_the_same_order(
    given_sources: list[tuple[Sender, list[list[tuple[int, int]]]]], data: st.DataObject
) -> None:
    expected = sorted(
        (t, int(sender.kind == "rows"), i, sender.partition)
        for sender, blocks in given_sources
        for block in blocks
        for t, i in block
    )
    order = EventTimeOrder([sender.name for sender, _ in given_sources])
    got: list[Item] = []
    for message in interleaved(data.draw, given_sources):
        got += push(order, message) if data.draw(st.booleans()) else (order.push(message) or [])
    assert got + items(order.due()) == expected
    assert (order.forced, order.late) == (0, 0)


@settings(max_examples=100, deadline=None, derandomize=True)
@given(sources(), st.sampled_from([2, 5, 1_000]), st.data())
def test_an_order_goes_on_where_its_arrays_end(
    given_sources: list[tuple[Sender, list[list[tuple[int, int]]]]], rows_max: int, data: st.DataObject
) -> None:
    """Also before some source has been heard of, while rows wait, and with rows that are forced."""
    names = [sender.name for sender, _ in given_sources]
    whole, cut = EventTimeOrder(names, rows_max), EventTimeOrder(names, rows_max)
    for message in interleaved(data.draw, given_sources):
        saved = cut.to_arrays()
        cut = EventTimeOrder(names, rows_max)
        cut.restore(saved)
        assert same_arrays(cut.to_arrays(), saved)
        assert cut.waits_for() == whole.waits_for()
        assert push(cut, message) == push(whole, message)
        assert (cut.waiting, cut.forced, cut.late) == (whole.waiting, whole.forced, whole.late)
    assert same_arrays(cut.to_arrays(), whole.to_arrays())


def test_rows_of_several_layouts_with_texts_wait_in_the_arrays() -> None:
    def rows(ids: list[int | str], extra: list[bytes | None] | None, **columns: Any) -> Rows:
        n = np.arange(len(ids))
        return Rows.of(Block("t", 0, 0, n, n + 5, {"transaction_id": Ids.of(ids)}, {"event_time": n, **columns}, extra))

    parts = [
        rows([1, 2], None),
        rows(["a", 2, "\0\ud7ff"], [b'{"x":1}', None, b""], amount=np.array([0.1, np.nan, -0.0])),
        rows([3, 4], None),
        rows([5, 6], None, late=np.array([True, False])).take(np.array([1])),
    ]
    arrays = rows_to_arrays(parts)
    assert len(arrays["layouts"]) == 3
    assert all(array.dtype.kind in "iuS" for array in arrays.values())
    back = rows_from_arrays(arrays)
    assert [(b.layout, b.words.tobytes(), b.texts) for b in back] == [
        (p.layout, p.words.tobytes(), p.texts) for p in parts
    ]
    assert rows_from_arrays(rows_to_arrays([])) == []


def test_an_order_is_saved_only_when_all_that_is_due_was_taken() -> None:
    a = Sender("rows", 0)
    for order in (ArrivalOrder(), EventTimeOrder([a.name])):
        order.push(Sender("rows", 0).send((10, 1), (20, 2)))
        with pytest.raises(StateError, match="take what is due first"):
            order.to_arrays()
        order.due()
        order.to_arrays()


def test_nothing_is_due_before_every_source_has_passed_it() -> None:
    a, b, labels = Sender("rows", 0), Sender("rows", 1), Sender("labels", 0)
    order = EventTimeOrder([a.name, b.name, labels.name])
    assert push(order, a.send((10, 1), (20, 2))) == []
    assert push(order, b.send((15, 3))) == [], "the labels have never started"
    assert push(order, labels.send((12, 9))) == [(10, 1, 1, 0)]
    assert push(order, labels.send((30, 8))) == [(12, 0, 9, 0)]
    assert push(order, b.send((40, 4))) == [(15, 1, 3, 1)]
    assert push(order, a.send((50, 5))) == [(20, 1, 2, 0)], "a row of 30 may still come, and a label of 30"


def test_the_very_time_of_a_watermark_is_complete() -> None:
    a, b = Sender("rows", 0), Sender("rows", 1)
    order = EventTimeOrder([a.name, b.name])
    assert push(order, a.send((10, 1)), b.send((11, 2))) == []
    assert push(order, a.send((11, 3))) == [(10, 1, 1, 0)]
    assert push(order, a.send((12, 4)), b.send((12, 5))) == [(11, 1, 2, 1), (11, 1, 3, 0)]


def test_at_the_same_time_labels_come_first_and_rows_by_transaction_id() -> None:
    a, b, labels = Sender("rows", 0), Sender("rows", 1), Sender("labels", 0)
    order = EventTimeOrder([a.name, b.name, labels.name])
    order.push(b.send((10, 7), (10, 3)))
    order.push(a.send((10, 5)))
    order.push(labels.send((10, 99), (10, 2)))
    marks = [s.mark("idle") for s in (a, b, labels)]
    assert push(order, *marks) == [(10, 0, 2, 0), (10, 0, 99, 0), (10, 1, 3, 1), (10, 1, 5, 0), (10, 1, 7, 1)]


def test_what_has_the_same_time_and_id_keeps_the_logs_order() -> None:
    a, b, never = Sender("rows", 0), Sender("rows", 1), Sender("labels", 0)
    order = EventTimeOrder([a.name, b.name, never.name])
    order.push(a.send((10, 1)))
    order.push(b.send((5, 2), (10, 1)))
    marks = [sender.mark("idle") for sender in (a, b, never)]
    assert push(order, *marks) == [(5, 1, 2, 1), (10, 1, 1, 0), (10, 1, 1, 1)]


def test_an_idle_source_is_not_waited_for_until_it_goes_on() -> None:
    a, b = Sender("rows", 0), Sender("rows", 1)
    order = EventTimeOrder([a.name, b.name])
    assert push(order, b.send((5, 1)), a.send((100, 2))) == []
    assert push(order, b.mark("idle")) == [(5, 1, 1, 1)]
    assert push(order, a.send((200, 3))) == [(100, 1, 2, 0)]
    assert push(order, b.send((150, 4))) == []
    assert push(order, a.send((300, 5))) == [], "the source that was idle holds it again"
    assert push(order, b.send((250, 6))) == [(150, 1, 4, 1), (200, 1, 3, 0)]
    assert order.late == 0


def test_when_all_are_idle_everything_is_due() -> None:
    a, b = Sender("rows", 0), Sender("labels", 0)
    order = EventTimeOrder([a.name, b.name])
    assert push(order, a.send((10, 1)), b.send((99, 1)), a.mark("idle")) == [(10, 1, 1, 0)]
    assert push(order, b.mark("idle")) == [(99, 0, 1, 0)]


def test_who_wakes_first_after_a_silence_of_all_waits_for_the_others() -> None:
    a, b, labels = Sender("rows", 0), Sender("rows", 1), Sender("labels", 0)
    order = EventTimeOrder([a.name, b.name, labels.name])
    push(order, a.send((10, 1)), b.send((11, 2)), labels.send((12, 3)), *(s.mark("idle") for s in (a, b, labels)))
    assert push(order, a.send((1000, 4)), a.send((2000, 5))) == [], "the others are on their way too"
    assert push(order, labels.send((900, 6)), b.mark("idle")) == []
    assert push(order, labels.mark("idle")) == [(900, 0, 6, 0), (1000, 1, 4, 0)]
    assert push(order, b.send((1500, 7)), b.mark("idle")) == [(1500, 1, 7, 1)], "one that is awake keeps the idle so"
    assert order.late == 0


def test_an_idle_mark_of_a_sender_that_was_overtaken_counts_for_nothing() -> None:
    old, b = Sender("rows", 0), Sender("rows", 1)
    order = EventTimeOrder([old.name, b.name])
    order.push(old.send((10, 1)))
    stale = old.mark("idle")
    order.push(old.send((20, 2)))
    order.push(stale)
    assert push(order, b.send((50, 3))) == [(10, 1, 1, 0)]


def test_rows_that_come_too_late_are_counted_and_come_at_once() -> None:
    a = Sender("rows", 0)
    order = EventTimeOrder([a.name])
    assert push(order, a.send((10, 1), (20, 2)), a.send((30, 3))) == [(10, 1, 1, 0), (20, 1, 2, 0)]
    assert push(order, a.send((15, 4))) == [(15, 1, 4, 0)]
    assert order.late == 1


def test_too_many_rows_release_the_oldest_and_are_counted() -> None:
    a, never = Sender("rows", 0), Sender("labels", 0)
    order = EventTimeOrder([a.name, never.name], rows_max=3)
    assert push(order, a.send((30, 1), (10, 2), (20, 3))) == []
    assert push(order, a.send((40, 4), (25, 5))) == [(10, 1, 2, 0), (20, 1, 3, 0)]
    assert order.forced == 2
    assert push(order, never.send((5, 9))) == [(5, 0, 9, 0)], "and what is older than those comes at once"
    assert order.forced == 3 and order.late == 1


def test_a_source_that_nobody_named_is_waited_for_once_it_appears() -> None:
    a, b = Sender("rows", 0), Sender("rows", 7)
    order = EventTimeOrder([a.name])
    assert push(order, b.send((10, 1)), a.send((50, 2))) == []
    assert push(order, b.send((30, 3))) == [(10, 1, 1, 7)]


def test_long_waiting_costs_nothing_per_message() -> None:
    """With a source that never starts every push would else look at everything that waits."""
    a, never = Sender("rows", 0), Sender("labels", 0)
    order = EventTimeOrder([a.name, never.name])
    looked = 0

    class Times(np.ndarray[Any, Any]):
        def __le__(self, other: Any) -> Any:
            nonlocal looked
            looked += 1
            return np.asarray(self) <= other

    for i in range(300):
        message = a.send((i, i))
        order.push(message)
    waiting = order._waiting
    waiting[:] = [wait._replace(times=wait.times.view(Times)) for wait in waiting]
    for i in range(300, 400):
        order.push(a.send((i, i)))
    assert looked == 0
    assert len(push(order, never.send((1000, 1)))) == 399
    assert looked == 300


def test_by_arrival_everything_is_due_in_the_logs_order() -> None:
    a, b, labels = Sender("rows", 0), Sender("rows", 1), Sender("labels", 0)
    got = push(ArrivalOrder(), a.send((30, 1)), labels.send((5, 1)), a.mark(), b.send((10, 2), (9, 3)), a.mark("idle"))
    assert got == [(30, 1, 1, 0), (5, 0, 1, 0), (10, 1, 2, 1), (9, 1, 3, 1)]
    assert push(ArrivalOrder()) == []
