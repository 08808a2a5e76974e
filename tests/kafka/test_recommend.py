"""`headrace run --pipeline recommend` on Kafka: a list for each event, also while a worker dies and another comes."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import orjson
import pytest
from cluster import DAY, START, Feed, Sent, Tail, Worker, sources, until

from streams.broker import Broker
from streams.config import load_settings
from streams.log import Log, connect
from streams.recommend_worker import make_pipeline
from streams.topics import INTERACTIONS, RECOMMENDATIONS, topic_infos

pytestmark = [pytest.mark.kafka, pytest.mark.timeout(300)]

N = 1_200
TOPICS = ("interactions", "interactions.by-item", "items", "recommendations", "dead-letters")


def shop_topics(bootstrap: str) -> Log:
    log = connect(f"headrace://{bootstrap}")
    admin = log.admin()
    there = set(admin.topics(TOPICS))
    if there:
        admin.delete_topics(sorted(there))
    until(lambda: not admin.topics(TOPICS), "the topics to go")
    admin.create_topics(topic_infos(TOPICS, 4))
    admin.close()
    return log


def clicks() -> list[Sent]:
    """Users who go from an item to one of the two behind it, one click a second."""
    rng = np.random.default_rng(5)
    at, out = rng.integers(0, 30, 40), []
    for i in range(N):
        user = int(rng.integers(40))
        at[user] = (at[user] + rng.integers(1, 3)) % 30
        event = {"event_id": i, "event_time": START + DAY + 1000 * i, "user_id": f"u{user}", "item_id": int(at[user]),
                 "action": "click"}  # fmt: skip
        out.append((INTERACTIONS, b"u%d" % user, orjson.dumps(event)))
    return out


def check_states(tail: Tail, records: Sequence[Sent]) -> None:
    """Each list knew all that its user had done before, nothing twice: the length of the session says so."""
    seen: Counter[bytes] = Counter()
    lengths = {}
    for _, user, value in records:
        seen[user] += 1
        lengths[orjson.loads(value)["event_id"]] = seen[user]
    compared = 0
    for out in tail.records:
        listed = orjson.loads(out.value or b"")
        assert listed["items"]
        if listed["features"] is not None:
            compared += 1
            assert listed["features"]["session_length"][0] == lengths[listed["event_id"]]
    assert compared > N // 4


def test_a_worker_is_killed_and_another_takes_over(kafka: Broker, tmp_path: Path) -> None:
    # compiled here once, and kept: else three workers would do it, each for itself
    make_pipeline(load_settings(None, {}), connect("memory://warm")).warm()
    log, records = shop_topics(kafka.bootstrap), clicks()
    options = (kafka.bootstrap, tmp_path, "headrace-recommend", "--pipeline", "recommend")
    with Worker(*options) as first, Worker(*options) as second, Tail(log, RECOMMENDATIONS) as tail:
        first.wait_ready()
        second.wait_ready()
        feed = Feed(log, records[: N // 2], per_s=300)
        feed.wait_for(0.5)
        first.kill()
        feed.join()
        tail.read(N // 2)
        with Worker(*options) as third:
            third.wait_ready()
            Feed(log, records[N // 2 :], per_s=300).join()
            tail.read(N)
            figures = [third.stop(), second.stop()]
    assert set(tail.by_source) == sources(log, INTERACTIONS)
    check_states(tail, records)
    assert all(f["dead_letters"] == 0 and f["items_known"] > 0 for f in figures)
    assert sum(f["published"] for f in figures) > 30
