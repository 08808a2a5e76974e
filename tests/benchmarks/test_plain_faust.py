"""The rival computes the same features: its own code, row by row, against the stages that the worker runs."""

from __future__ import annotations

import msgspec
import numpy as np

from benchmarks.plain_faust import Card, Terminal
from benchmarks.workload import expected, simulated
from features.fraud import DEFAULT


def test_features_are_bit_equal() -> None:
    n = 12_000
    workload = simulated(n, cards=60, terminals=40)
    matrix = expected(workload)
    frauds = {
        label["transaction_id"]: label["label_time"]
        for label in map(msgspec.json.decode, workload.labels.values)
        if label["is_fraud"]
    }
    assert len(frauds) > 20
    cards: dict[int, Card] = {}
    terminals: dict[int, Terminal] = {}
    own = [name for name in DEFAULT.names if name.startswith(("card_", "terminal_"))]
    rows = []
    for value in workload.transactions.values:
        event = msgspec.json.decode(value)
        t = event["event_time"]
        found = cards.setdefault(event["card_id"], Card()).features(t, event["amount"])
        terminal = terminals.setdefault(event["terminal_id"], Terminal())
        found |= terminal.features(t)
        terminal.add(t, frauds.get(event["transaction_id"]))
        rows.append([found[name] for name in own])
    theirs = matrix[:, [DEFAULT.names.index(name) for name in own]]
    assert theirs.any(axis=0).all(), "every feature is exercised"
    assert np.array_equal(np.array(rows), theirs)


def test_label_after_its_transaction() -> None:
    day = 86_400_000
    terminal = Terminal()
    terminal.add(0, None)
    terminal.add(day // 2, None)
    terminal.fraud(0, 8 * day)
    assert terminal.features(7 * day + day // 2)["terminal_risk_1d"] == 0.0
    assert terminal.features(8 * day - 1)["terminal_risk_1d"] == 0.0
    assert terminal.features(8 * day)["terminal_risk_7d"] == 0.5
