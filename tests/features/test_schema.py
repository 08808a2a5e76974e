"""`features.schema`: what cannot be declared is refused, by field, value and remedy; hashes outlive new rules."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from features.schema import SCHEMAS, TRANSACTIONS, EventSchema, Field, SchemaError


@pytest.mark.parametrize(
    ("declared", "says"),
    [
        ({"name": "a b"}, "field 'a b': not a name; use letters"),
        ({"kind": "text"}, "kind 'text' is not known; choose one of id, time_ms, number, flag, choice"),
        ({"kind": "time_ms", "required": False}, "only an id or a number can be optional, not a time_ms"),
        ({"minimum": 5, "maximum": 3}, "field 'x': minimum 5 is above maximum 3; exchange them"),
        ({"maximum": float("nan")}, "bound nan is not finite; leave it out"),
        ({"minimum": float("-inf")}, "bound -inf is not finite; leave it out"),
        ({"kind": "id", "maximum": 9}, "bound 9 of an id; an id has text_bytes_max and categories only"),
        ({"kind": "flag"}, "a flag with bounds []; write minimum=0, maximum=1"),
        ({"kind": "flag", "minimum": 0, "maximum": 2}, "a flag with bounds [0, 2]; write minimum=0, maximum=1"),
        ({"clip": True}, "clip without bounds; give minimum, maximum or both"),
        ({"kind": "time_ms", "maximum": 1, "clip": True}, "clip with kind time_ms; only a number can be clipped"),
        ({"kind": "id", "clip": True}, "clip with kind id; only a number can be clipped"),
        ({"future_ms_max": 5}, "future_ms_max 5 with kind number; give a time_ms 0 or more"),
        ({"kind": "time_ms", "future_ms_max": -1}, "future_ms_max -1 with kind time_ms"),
        ({"trim": True}, "trim with kind number; only an id can be trimmed, leave trim out"),
        ({"text_bytes_max": 5}, "text_bytes_max 5 with kind number; give an id 1 or more"),
        ({"kind": "id", "text_bytes_max": 0}, "text_bytes_max 0 with kind id; give an id 1 or more"),
        ({"categories": (1, 2)}, "categories with kind number; only an id has categories, use minimum and maximum"),
        ({"kind": "choice"}, "a choice without categories; name the texts that can be chosen"),
        ({"kind": "choice", "categories": ("a", 1)}, "category 1 of a choice is not a text; give strings"),
        ({"kind": "id", "categories": ()}, "categories () is not a tuple of ids; write one as in ('NL', 'BE')"),
        ({"kind": "id", "categories": "NL"}, "categories 'NL' is not a tuple of ids"),
        ({"kind": "id", "categories": (True,)}, "category True is not an id; give integers or strings"),
        ({"kind": "id", "categories": ("NL", "")}, "category '' is not an id; give integers or strings"),
        ({"kind": "id", "categories": (5, "5")}, "category '5' is there twice; take one out"),
        ({"kind": "id", "categories": ("NL ",), "trim": True}, "category 'NL ' begins or ends with white space"),
        ({"kind": "id", "categories": ("é" * 3,), "text_bytes_max": 5}, "is longer than text_bytes_max 5; raise it"),
    ],
)
def test_fields_that_cannot_be(declared: dict[str, Any], says: str) -> None:
    with pytest.raises(SchemaError) as refused:
        Field(**{"name": "x", "kind": "number", **declared})
    assert says in str(refused.value) and str(refused.value).startswith("field ")


def test_fields_that_can_be() -> None:
    Field("x", "number", minimum=3, maximum=3, clip=True)
    Field("x", "number", required=False, maximum=3, clip=True)
    Field("x", "id", required=False, categories=("NL ", 5, -5, "05"), text_bytes_max=3)
    Field("x", "id", trim=True, categories=("N L",))
    Field("x", "time_ms", future_ms_max=0)


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"fields": (*TRANSACTIONS.fields, Field("amount", "number"))}, "transactions: field 'amount' is there twice"),
        ({"key": "amount"}, "transactions: key 'amount' is not a required id"),
        ({"key": "nobody"}, "transactions: key 'nobody' is not a required id"),
        ({"time": "card_id"}, "transactions: time 'card_id' is not a time_ms field"),
        (
            {"fields": tuple(replace(f, trim=f.name == "card_id") for f in TRANSACTIONS.fields)},
            "transactions: trim of the key 'card_id'; records are partitioned by the text as it was sent",
        ),
    ],
)
def test_schemas_that_cannot_be(changes: dict[str, Any], says: str) -> None:
    with pytest.raises(SchemaError) as refused:
        replace(TRANSACTIONS, **changes)
    assert says in str(refused.value)


def test_the_key_must_be_required() -> None:
    fields = (Field("k", "id", required=False), Field("t", "time_ms"))
    with pytest.raises(SchemaError, match="key 'k' is not a required id"):
        EventSchema("topic", "k", "t", fields)


def test_hashes_of_the_shipped_schemas_stay() -> None:
    assert {topic: schema.schema_hash for topic, schema in SCHEMAS.items()} == {
        "transactions": "514cbbc63b43ae50791130622c2c231b37a2894b240a18e15481b737345c0da6",
        "transaction-labels": "48096989ccd9026522f45ecee309c58b8be6ebbe661faed47c299029d9026d99",
        "interactions": "871f2ff3f83bc7a6cd5495f107db633a4f96d99bd9554cef4ea56c3f05d5a620",
    }


def test_every_rule_that_is_used_is_in_the_hash() -> None:
    def with_terminal(**rules: Any) -> EventSchema:
        return replace(TRANSACTIONS, fields=tuple(
            replace(f, **rules) if f.name == "terminal_id" else f for f in TRANSACTIONS.fields
        ))  # fmt: skip

    clipped = replace(TRANSACTIONS, fields=tuple(replace(f, clip=f.kind == "number") for f in TRANSACTIONS.fields))
    variants = [
        TRANSACTIONS, clipped, with_terminal(trim=True), with_terminal(categories=("a",)), with_terminal(
            categories=("b",)), with_terminal(required=False),
    ]  # fmt: skip
    assert len({schema.schema_hash for schema in variants}) == len(variants)
