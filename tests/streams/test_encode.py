"""`streams.encode`: byte for byte what orjson writes for the same dicts."""

from __future__ import annotations

from typing import Any

import numpy as np
import orjson
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from features.block import Block, Ids
from streams.encode import RecordTemplate, ScoreEncoder, decimal_keys, source_headers

NAMES = ("amount", "is_night", "card_mean_amount_1d")
FLOATS = st.one_of(
    st.floats(),
    st.integers(-(10**6), 10**6).map(float),
    st.sampled_from([0.0, -0.0, 1e16, 1e-7, 1e22, 5e-324, 1.7976931348623157e308, float("nan"), float("inf")]),
)
INTEGERS = st.one_of(
    st.integers(-(2**63), 2**63 - 1), st.sampled_from([0, 9, 10, -1, 99, 100, 2**63 - 1, -(2**63), 10**18])
)
IDS = st.one_of(
    INTEGERS, st.text(max_size=20), st.just(2**64 - 1), st.sampled_from(['"', "\\", "\x00\x1f\x7f", "a,b]", "é"])
)
JSON_TEXTS = st.dictionaries(st.text(max_size=5), st.integers(0, 9) | st.text(max_size=60), max_size=3).map(
    orjson.dumps
)
ROWS = st.lists(
    st.tuples(
        IDS, INTEGERS, IDS, IDS, FLOATS, FLOATS, FLOATS, st.booleans(), st.tuples(*[FLOATS] * 3), st.none() | JSON_TEXTS
    ),
    max_size=6,
)


def block_of(rows: list[Any], *, mixed: bool, extra: bool) -> Block:
    ids = [[row[i] for row in rows] for i in (0, 2, 3)]
    make = (lambda values: Ids(mixed=values)) if mixed else Ids.of
    return Block(
        "transactions",
        3,
        0,
        np.arange(len(rows)),
        np.zeros(len(rows), np.int64),
        dict(zip(("transaction_id", "card_id", "terminal_id"), map(make, ids), strict=True)),
        {
            "event_time": np.array([row[1] for row in rows], np.int64),
            "amount": np.array([row[4] for row in rows], np.float64),
        },
        [row[9] for row in rows] if extra else None,
    )


#: by what `Serving.sets` says
SETS = {-1: None, 0: [], 1: ["legitimate"], 2: ["fraud"], 3: ["legitimate", "fraud"]}


def score_oracle(
    rows: list[Any],
    model: str | None,
    features: bool,
    extra: bool,
    reasons: list[bytes] | None,
    sets: list[int] | None = None,
) -> list[bytes]:
    return [
        orjson.dumps(
            {
                "transaction_id": row[0],
                "event_time": row[1],
                "card_id": row[2],
                "terminal_id": row[3],
                "amount": row[4],
                "score": row[5] if model else None,
                "raw": row[6] if model else None,
                "model": model,
                "late": row[7],
                "reasons": orjson.loads(reasons[i]) if reasons else [],
                "features": dict(zip(NAMES, row[8], strict=True)) if features else None,
                "extra": orjson.loads(row[9]) if extra and row[9] else {},
                **({"set": SETS[sets[i]]} if sets is not None else {}),
            }
        )
        for i, row in enumerate(rows)
    ]


@settings(max_examples=200, deadline=None, derandomize=True)
@given(ROWS, st.booleans(), st.booleans(), st.booleans(), st.booleans(), st.booleans())
def test_scores_equal_the_oracle(
    rows: list[Any], mixed: bool, scored: bool, features: bool, extra: bool, explained: bool
) -> None:
    model = 'fraud "new"@3' if scored else None
    reasons = None
    if explained:
        reasons = [
            orjson.dumps([{"feature": "a" * i, "value": 1.5, "contribution": -0.25}] * i) for i in range(len(rows))
        ]
    floats = np.array([[row[5], row[6]] for row in rows], np.float64).reshape(-1, 2)
    sets = [(len(rows) - i) % 5 - 1 for i in range(len(rows))] if explained else None
    values = ScoreEncoder(NAMES if features else None).encode(
        block_of(rows, mixed=mixed, extra=extra),
        features=np.array([row[8] for row in rows], np.float64).reshape(-1, 3) if features else None,
        late=np.array([row[7] for row in rows], np.bool_),
        model=model,
        score=floats[:, 0] if scored else None,
        raw=floats[:, 1] if scored else None,
        reasons=reasons,
        sets=None if sets is None else np.array(sets, np.int8),
    )
    assert values == score_oracle(rows, model, features, extra, reasons, sets)


def test_a_large_block_equals_the_oracle() -> None:
    rng = np.random.default_rng(5)
    n = 5000
    rows = [
        (
            i * 977,
            1_722_540_800_000 + i,
            i % 50,
            f"t{i}",
            round(a, 2),
            s,
            -a,
            bool(i % 3 == 0),
            (a, 1.0, s * 1e-9),
            None,
        )
        for i, (a, s) in enumerate(zip((rng.random(n) * 1e4).tolist(), rng.random(n).tolist(), strict=True))
    ]
    values = ScoreEncoder(NAMES).encode(
        block_of(rows, mixed=False, extra=False),
        features=np.array([row[8] for row in rows]),
        late=np.array([row[7] for row in rows]),
        model="m@1",
        score=np.array([row[5] for row in rows]),
        raw=np.array([row[6] for row in rows]),
    )
    assert values == score_oracle(rows, "m@1", True, False, None)


def test_a_template_without_numbers_or_with_only_them() -> None:
    only_text = RecordTemplate([("a", "json"), ("é\n", "flag")])
    big = b'"' + b"x" * 100_000 + b'"'
    columns: dict[str, Any] = {"a": [b"1", big, b""], "é\n": np.array([True, False, True])}
    assert only_text.render(3, columns) == [
        '{"a":1,"é\\n":true}'.encode(),
        b'{"a":' + big + ',"é\\n":false}'.encode(),
        '{"a":,"é\\n":true}'.encode(),
    ]
    numbers = RecordTemplate([("v", ("x", "y")), ("z", "number"), ("none", ())])
    rendered = numbers.render(
        2, {"v": np.arange(4.0).reshape(2, 2), "z": np.array([np.nan, 1e300]), "none": np.empty((2, 0))}
    )
    assert rendered == [b'{"v":{"x":0.0,"y":1.0},"z":null,"none":{}}', b'{"v":{"x":2.0,"y":3.0},"z":1e+300,"none":{}}']
    assert RecordTemplate([]).render(2, {}) == [b"{}", b"{}"]


def test_columns_that_are_not_contiguous() -> None:
    template = RecordTemplate([("i", "integer"), ("v", ("a", "b"))])
    values = np.arange(12.0).reshape(6, 2)[::-2]
    expected = [
        orjson.dumps({"i": i, "v": {"a": a, "b": b}}) for i, (a, b) in zip((4, 2, 0), values.tolist(), strict=True)
    ]
    assert template.render(3, {"i": np.arange(5)[::-2], "v": values}) == expected
    assert template.render(3, {"i": np.arange(5)[::-2], "v": np.asfortranarray(values)}) == expected


@pytest.mark.parametrize(
    ("name", "column"),
    [
        ("i", np.arange(3)),
        ("v", np.zeros((2, 3))),
        ("v", np.zeros(2)),
        ("t", [b"1"]),
        ("id", Ids.of([1])),
        ("id", Ids.of(["a", "b", "c"])),
    ],
)
def test_a_column_of_wrong_length_is_refused(name: str, column: Any) -> None:
    template = RecordTemplate([("i", "integer"), ("v", ("a", "b")), ("t", "json"), ("id", "id")])
    good = {"i": np.arange(2), "v": np.zeros((2, 2)), "t": b"null", "id": Ids.of([1, 2])}
    assert len(template.render(2, good)) == 2
    with pytest.raises(ValueError, match=name):
        template.render(2, {**good, name: column})


@settings(max_examples=60, deadline=None, derandomize=True)
@given(st.lists(INTEGERS, max_size=20), st.text("a-zé/.", max_size=70))
@example([], "t")
def test_headers_and_keys(values: list[int], topic: str) -> None:
    column = np.array(values, np.int64)
    assert decimal_keys(column) == [str(v).encode() for v in values]
    assert source_headers(topic, np.full(len(column), 12), column) == [f"{topic}/12/{v}".encode() for v in values]
