"""Worlds that the open data is not like, against a naive reading of SEMANTICS.md without any code of the engine."""

from __future__ import annotations

import random
from bisect import bisect_right
from collections import defaultdict
from fractions import Fraction
from typing import Any

import numpy as np
import pytest

from features.declare import Feature
from features.fraud import DEFAULT
from features.plan import BoundError
from features.schema import TRANSACTION_LABELS, TRANSACTIONS
from streams.offline import block_of, feature_matrix
from streams.pipelines.fraud_stages import CardStage, StageSettings, TerminalStage

DAY = 86_400_000
START = 1_582_934_400_000  # 2020-02-29, a Saturday
HOUR = 3_600_000
Row = dict[str, Any]


def rank(name: int | str) -> tuple[bool, int, str]:
    return (True, 0, name) if isinstance(name, str) else (False, name, "")


def naive(rows: list[Row], labels: list[Row]) -> dict[int, list[float]]:
    """Features by row number, repeated rows left out."""
    own: dict[Any, list[int]] = defaultdict(list)  # times of the transactions of an id that are none of them repeated
    order = []
    for i in sorted(range(len(rows)), key=lambda i: (rows[i]["event_time"], rank(rows[i]["transaction_id"]))):
        t, seen = rows[i]["event_time"], own[rows[i]["transaction_id"]]
        if all(t - before > DAY for before in seen):
            seen.append(t)
            order.append(i)
    known: dict[tuple[Any, int], int] = {}  # the first positive label of each transaction
    for label in labels:
        name, t = label["transaction_id"], label["label_time"]
        if label["is_fraud"] and own[name]:  # of the newest one before it, or of the first to come
            whose = name, max([time for time in own[name] if time < t], default=own[name][0])
            known[whose] = min(t, known.get(whose, t))
    cards: dict[Any, list[tuple[int, float]]] = defaultdict(list)
    terminals: dict[Any, list[tuple[int, Any]]] = defaultdict(list)
    made = {}
    for i in order:
        row, t = rows[i], rows[i]["event_time"]
        mine, there = cards[row["card_id"]], terminals[row["terminal_id"]]
        mine.append((t, row["amount"]))
        there.append((t, row["transaction_id"]))
        out = [row["amount"], float((t // DAY + 3) % 7 >= 5), float(t % DAY < 7 * HOUR)]
        for days in (1, 7, 30):
            amounts = [amount for time, amount in mine if time > t - days * DAY]
            out += [len(amounts), float(sum(map(Fraction, amounts))) / len(amounts)]
        for days in (1, 7, 30):
            begin, end = (bisect_right(there, t - d * DAY, key=lambda pair: pair[0]) for d in (7 + days, 7))
            frauds = sum(known.get((name, time), t + 1) <= t for time, name in there[begin:end])
            out += [end - begin, frauds / (end - begin) if end > begin else 0.0]
        made[i] = out
    return made


def world(seed: int, grid_ms: int, name: Any) -> tuple[list[Row], list[Row]]:
    """Ties and boundaries on a grid, free and huge amounts, repeated rows, ids used again, labels of any time."""
    draw = random.Random(seed)
    rows = [
        {
            "transaction_id": name("x", i),
            "event_time": START + draw.randrange(60 * DAY) // grid_ms * grid_ms,
            "card_id": name("c", draw.randrange(9)),
            "terminal_id": name("t", draw.randrange(4)),
            "amount": draw.choice([0.0, 1e12, 1e-12, 9.99, draw.randrange(100_000) / 100]),
        }
        for i in range(700)
    ]
    labels = [
        {
            "transaction_id": row["transaction_id"],
            "label_time": row["event_time"] + draw.choice([7 * DAY, 7 * DAY, 7 * DAY + grid_ms, 0, -3 * DAY, 20 * DAY]),
            "is_fraud": int(draw.random() < 0.4),
        }
        for row in [*rows, *draw.sample(rows, 100)]
    ]
    labels += [{"transaction_id": name("nobody", 10**6 + i), "label_time": START, "is_fraud": 1} for i in range(9)]
    rows += [
        {**row, "event_time": row["event_time"] + draw.choice([0, DAY, DAY + grid_ms])} for row in draw.sample(rows, 60)
    ]
    draw.shuffle(rows)
    draw.shuffle(labels)
    return rows, labels


@pytest.mark.parametrize(
    ("grid_ms", "name"),
    [
        (HOUR, lambda what, i: f"{what}-{i}"),
        (DAY // 4, lambda what, i: i if i % 2 else f"{what} {i} é☃ "),
        (10 * DAY, lambda what, i: 350 - i),
        (1, lambda what, i: i),
    ],
    ids=["texts", "mixed", "negative", "sparse"],
)
def test_every_feature_is_what_is_written(grid_ms: int, name: Any) -> None:
    rows, labels = world(5, grid_ms, name)
    events, said = (
        block_of(schema, {field: [row[field] for row in table] for field in table[0]})
        for schema, table in ((TRANSACTIONS, rows), (TRANSACTION_LABELS, labels))
    )
    made = feature_matrix(events, said, StageSettings(DEFAULT)).in_input_order()
    expected = naive(rows, labels)
    assert made.row.tolist() == sorted(expected) and made.duplicates == len(rows) - len(expected) > 0
    answer = np.array([expected[i] for i in sorted(expected)])
    features: tuple[Feature, ...] = DEFAULT.features
    for j, feature in enumerate(features):
        # a mean is of values to the nearest 2**-64
        rtol, atol = (1e-14, 2.0**-64) if "mean" in feature.name else (0.0, 0.0)
        np.testing.assert_allclose(made.matrix[:, j], answer[:, j], rtol=rtol, atol=atol, err_msg=feature.name)
    assert answer[:, -1].max() > 0


def test_a_refusal_names_keys_that_are_texts_as_they_were_sent() -> None:
    settings = StageSettings(DEFAULT, state_bytes_max=200_000)
    n = 5_000
    rows = [
        {
            "transaction_id": f"t-{i}",
            "event_time": START,
            "card_id": f"card {i}",
            "terminal_id": f"shop {i}",
            "amount": 1,
        }
        for i in range(n)
    ]
    block = block_of(TRANSACTIONS, {name: [row[name] for row in rows] for name in TRANSACTIONS.names})
    with pytest.raises(BoundError) as caught:
        CardStage(settings).process(block)
    assert f"row {caught.value.row} of the block, of card_id 'card {caught.value.row}', needs" in str(caught.value)
    with pytest.raises(BoundError) as caught:
        TerminalStage(settings).windows(block, None, None)
    assert f"row {caught.value.row} of the block, of terminal_id 'shop {caught.value.row}', needs" in str(caught.value)
    early = [{"transaction_id": row["transaction_id"], "label_time": START, "is_fraud": 1} for row in rows]
    labels = block_of(TRANSACTION_LABELS, {name: [row[name] for row in early] for name in early[0]})
    with pytest.raises(BoundError) as caught:
        TerminalStage(settings).windows(block, labels, np.arange(2 * n) < n)
    at = caught.value.label
    assert caught.value.row == 0 and f"label {at} of the block, of transaction 't-{at}', needs" in str(caught.value)
