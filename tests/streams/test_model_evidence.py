"""`headrace models evidence`: the shadow beside the champion, on the same transactions, where labels are final."""

from __future__ import annotations

import json
import uuid
from collections.abc import Sequence
from typing import Any

import numpy as np
import orjson
import pytest

from models.evidence import paired_evidence
from streams.cli.main import main
from streams.log import Log, OutBatch, connect
from streams.topics import FRAUD_SCORES, LABELS, SHADOW_SCORES, topic_infos

NOW, DAY = 1_700_000_000_000, 86_400_000
ROWS = 900


class World:
    """Transactions of thirty days, each labelled after a day: scores of m@1, and of m@2 in its shadow."""

    def __init__(self) -> None:
        rng = np.random.default_rng(1)
        self.url = f"memory://{uuid.uuid4().hex}"
        self.log: Log = connect(self.url)
        self.log.admin().create_topics(topic_infos((FRAUD_SCORES, SHADOW_SCORES, LABELS), 1))
        self.time = NOW + np.arange(ROWS) * (30 * DAY // ROWS)
        self.card = rng.integers(0, 40, ROWS)
        self.y = rng.random(ROWS) < 0.2
        odds = rng.normal(size=(2, ROWS)) + np.outer([0.2, 2.0], self.y) - 1.5
        self.score = 1 / (1 + np.exp(-odds))

    def send(self, topic: str, model: str, rows: Sequence[int], scores: Sequence[float | None]) -> None:
        values = [
            orjson.dumps(
                {
                    "transaction_id": i,
                    "event_time": int(self.time[i]),
                    "card_id": int(self.card[i]),
                    "terminal_id": 1,
                    "amount": 1.0,
                    "score": score,
                    "model": model,
                    "features": None,
                }
            )
            for i, score in zip(rows, scores, strict=True)
        ]
        headers: Any = [[("source", b"transactions/0/%d" % i)] for i in rows]
        self._put(OutBatch(topic, values, [b"%d" % i for i in rows], 0, headers))

    def label(self, rows: Sequence[int]) -> None:
        values = [
            orjson.dumps(
                {"transaction_id": i, "label_time": int(self.time[i]) + DAY, "is_fraud": int(self.y[i])},
            )
            for i in rows
        ]
        self._put(OutBatch(LABELS, values, [b"%d" % i for i in rows], 0))

    def _put(self, out: OutBatch) -> None:
        producer = self.log.producer()
        producer.send(out)
        assert producer.flush(30) == 0
        producer.close()

    def evidence(self, capsys: pytest.CaptureFixture[str], *more: str) -> list[dict[str, Any]]:
        assert main(["models", "evidence", "--bootstrap", self.url, "--json", *more]) == 0
        pairs: list[dict[str, Any]] = json.loads(capsys.readouterr().out.splitlines()[-1])["pairs"]
        return pairs


def test_a_shadow_is_judged_on_what_both_scored_and_is_final(capsys: pytest.CaptureFixture[str]) -> None:
    world, every = World(), range(ROWS)
    assert main(["models", "evidence", "--bootstrap", world.url]) == 2
    assert "headrace models shadow" in capsys.readouterr().err
    # the first hundred had no shadow, one has no score, the last three hundred were served by another model
    world.send(FRAUD_SCORES, "m@1", every[:600], [None, *world.score[0, 1:600].tolist()])
    world.send(FRAUD_SCORES, "m@3", every[600:], world.score[0, 600:].tolist())
    world.send(SHADOW_SCORES, "m@2", every[100:], world.score[1, 100:].tolist())
    world.send(SHADOW_SCORES, "m@2", every[100:200], world.score[1, 100:200].tolist())
    world.label(every)

    newest, first = world.evidence(capsys)
    assert [(pair["champion"], pair["challenger"]) for pair in (newest, first)] == [("m@3", "m@2"), ("m@1", "m@2")]
    of = np.arange(100, 600)
    expected = paired_evidence(
        world.y[of], world.score[0, of], world.score[1, of], world.card[of], np.ones(500, np.bool_)
    )
    assert (first["rows"], first["frauds"], first["cards"]) == (500, expected.frauds, expected.groups)
    for name, difference in expected.differences.items():
        for field in ("gain", "low", "high"):
            assert first["differences"][name][field] == pytest.approx(getattr(difference, field))
    assert first["differences"]["average_precision"]["better"] == "challenger"
    # labels are final a week after the event, by default: the newest label came a day after the newest event
    final = world.time <= world.time[-1] + DAY - 7 * DAY
    assert newest["rows"] == int(final[600:].sum()) < 300

    assert main(["models", "evidence", "--bootstrap", world.url]) == 0
    assert "better: m@2" in capsys.readouterr().out
    few = world.evidence(capsys, "--to", str(int(world.time[150])))
    assert [pair["differences"] for pair in few] == [{}]
    assert main(["models", "evidence", "--bootstrap", world.url, "--confidence", "95"]) == 2
