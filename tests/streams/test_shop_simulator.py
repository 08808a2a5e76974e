"""The simulated shop: a function of its seed, with what recommendations live on, and `headrace simulate` of it."""

from __future__ import annotations

import json
import signal
import uuid
from collections import Counter
from collections.abc import Iterator
from itertools import islice

import numpy as np
import pytest

from features.schema import ACTIONS, INTERACTIONS
from streams.cli import simulate
from streams.cli.main import main
from streams.codec import Decoder
from streams.errors import ConfigError
from streams.log import TP, RecordBatch
from streams.memory import MemoryLog
from streams.shop_simulator import CATEGORIES, Shop, shop_stream
from streams.simulator import DAY_MS
from streams.topics import topic_infos

START = 1_500_000_000_000 // DAY_MS * DAY_MS
NOW_MS = 1_763_868_000_000


def make_shop(seed: int = 1) -> Shop:
    return Shop(seed, start_ms=START, users=600, items=200)


def test_days_are_the_same_however_they_are_asked_for() -> None:
    shop, other = make_shop(), make_shop()
    days = [shop.values(shop.day(d)) for d in range(3)]
    assert other.values(other.day(2)) == days[2] and other.values(other.day(0)) == days[0]
    assert make_shop(2).values(make_shop(2).day(0)) != days[0]
    ids = [json.loads(value)["event_id"] for day in days for value in day]
    assert ids == list(range(len(ids)))


def test_every_event_is_one_of_the_contract() -> None:
    shop = make_shop()
    rows = shop.day(1)
    values: list[bytes | None] = [*shop.values(rows)]
    n = len(values)
    batch = RecordBatch(TP("interactions", 0), list(range(n)), [-1] * n, [None] * n, values, lambda i: [], n)
    block, dead = Decoder(INTERACTIONS).decode(batch)
    assert not dead and block.extra is None and block.columns["category_present"].all()
    assert (np.diff(block.event_time_ms) >= 0).all()
    assert block.event_time_ms[0] >= START + DAY_MS and block.event_time_ms[-1] < START + 2 * DAY_MS
    assert set(block.columns["action"].tolist()) == set(range(len(ACTIONS)))
    assert set(block.ids["category"].to_list()) <= set(CATEGORIES)


def test_what_was_looked_at_says_what_comes_next() -> None:
    """Sessions go from an item to its neighbours far more often than chance would."""
    shop = make_shop()
    pairs, last = Counter[tuple[int, int]](), dict[int, int]()
    for d in range(4):
        rows = shop.day(d)
        for session, item in zip(rows.session_id.tolist(), rows.item_id.tolist(), strict=True):
            if session in last:
                pairs[last[session], item] += 1
            last[session] = item
    again = sum(n for _, n in pairs.items() if n > 1)
    assert again > 0.5 * sum(pairs.values()), "of 40,000 pairs that there are"


def test_fashion_comes_and_goes_and_new_items_come() -> None:
    shop = make_shop()
    first, later = shop.attraction(0), shop.attraction(40)
    assert (first == 0).sum() > (later == 0).sum() > 0
    assert np.abs(shop.attraction(5) - shop.attraction(20)).max() >= 40


def test_the_stream_is_the_days_whatever_the_chunks() -> None:
    def records(chunk_s: float) -> list[tuple[bytes, bytes]]:
        out = []
        for chunk in shop_stream(make_shop(), 0, speed_up=3600, chunk_s=chunk_s, malformed=0.05, repeated=0.05):
            out += list(zip(chunk.keys, chunk.values, strict=True))
            if chunk.send_time >= START + DAY_MS:
                return out
        raise AssertionError

    small, large = records(0.05), records(1.0)
    n = min(len(small), len(large))
    assert n > 700 and small[:n] == large[:n]
    chunks = list(islice(shop_stream(make_shop(), 0, speed_up=3600, malformed=0.05, repeated=0.05), 300))
    assert sum(c.malformed for c in chunks) > 0 < sum(c.duplicates for c in chunks)
    assert [c.due_s for c in chunks] == sorted(c.due_s for c in chunks)
    assert all(c.send_time - START <= c.due_s * 3_600_000 for c in chunks), "nothing is sent before its time"


@pytest.mark.parametrize("wrong", [{"users": 0}, {"items": 3}, {"start_ms": 1}, {"seed": -1}])
def test_a_shop_that_cannot_be_is_refused(wrong: dict[str, int]) -> None:
    with pytest.raises(ConfigError, match=next(iter(wrong))):
        Shop(**{"seed": 1, "start_ms": START, **wrong})


def test_a_later_run_of_simulate_is_later_with_other_ids() -> None:
    early, late = (next(iter(simulate.shop_chunks(50.0, 1, now))) for now in (NOW_MS, NOW_MS + 60_000))
    assert late.send_time - early.send_time == pytest.approx(60_000 * simulate.SPEED_UP, rel=0.05)
    assert json.loads(late.values[0])["event_id"] > json.loads(early.values[-1])["event_id"]


@pytest.fixture
def keep_signals() -> Iterator[None]:
    """The command sets handlers, which pytest's own must survive."""
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


def test_simulate_sends_interactions(keep_signals: None, capsys: pytest.CaptureFixture[str]) -> None:
    name = uuid.uuid4().hex
    log = MemoryLog.named(name)
    log.admin().create_topics(topic_infos(("interactions",), 2))
    words = ["simulate", "--pipeline", "recommend", "--bootstrap", f"memory://{name}", "--rate", "400"]
    assert main([*words, "--seconds", "0.5", "--json"]) == 0
    figures = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert figures["interactions"] == sum(len(p.rows) for p in log.partitions("interactions")) > 0
