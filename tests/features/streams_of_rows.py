"""Rows and labels for the engine tests: hypothesis strategies and seeded long runs."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from hypothesis import strategies as st

from features.block import Block, Ids
from features.declare import FeatureSet, by

STEP_MS = 500
LATENESS_MS = 4_000

#: small windows on a grid of half seconds, so that rows fall on boundaries all the time
CARDS = FeatureSet(
    "test-cards",
    [
        by("card_id").count("1s").mean("amount", "1s").sum("amount", "20s").mean("amount", "20s").count("60s"),
        by("card_id").count("5s", delay="3s").mean("amount", "5s", delay="3s", name="card_mean_amount_5s_after_3s"),
    ],
).for_entity("card_id")
TERMINALS = FeatureSet(
    "test-terminals",
    [
        by("terminal_id")
        .count("2s", delay="5s")
        .risk("2s", delay="5s")
        .count("10s", delay="5s")
        .risk("10s", delay="5s"),
        by("terminal_id").risk("30s", delay="5s").sum("amount", "30s", delay="5s").count("3s"),
    ],
).for_entity("terminal_id")


@dataclass(frozen=True)
class Op:
    """A row, or a label if ``positive`` is not None (then ``time`` is its label time)."""

    transaction: int | str
    time: int
    key: int | str = 0
    amount: float = 0.0
    positive: bool | None = None


KEYS = st.sampled_from([1, 2, "2", "a", "b", -5])
AMOUNTS = st.one_of(
    st.integers(0, 10**8).map(lambda cents: cents / 100),
    st.floats(0.0, 1e12),
    st.sampled_from([0.0, 0.1, 1e-30, 1e12, 5e-324]),
)


@st.composite
def runs(draw: st.DrawFn, labels: bool, max_ops: int = 60) -> list[Op]:
    """Ops with ties, gaps, bursts, out-of-order rows within and beyond the lateness, labels before, at and after."""
    now, ops = 1_000_000, []
    known: list[tuple[int, int]] = []
    for number in range(draw(st.integers(1, max_ops))):
        now += STEP_MS * draw(st.sampled_from([0, 0, 0, 1, 1, 2, 3, 7, 20, 150]))
        if labels and known and draw(st.booleans()):
            transaction, time = draw(st.sampled_from(known[-12:]))
            early = draw(st.sampled_from([0, 0, 0, 1]))  # a label for a transaction that has not come yet
            label_time = time + STEP_MS * draw(st.integers(-4, 40))
            ops.append(Op(transaction + early * 3, label_time, positive=draw(st.sampled_from([True, True, False]))))
            continue
        time = now - STEP_MS * draw(st.sampled_from([0, 0, 0, 1, 4, 8, 9, 30, 100, 140]))
        ops.append(Op(number, time, draw(KEYS), draw(AMOUNTS)))
        known.append((number, time))
    return ops


def long_run(seed: int, n: int, keys: int, labels: bool) -> list[Op]:
    """A seeded run long enough for rings to grow, wrap around, expire and be reused."""
    rng = np.random.default_rng(seed)
    now, ops = 1_000_000, []
    known: list[tuple[int, int]] = []
    for number in range(n):
        now += STEP_MS * int(
            rng.choice([0, 0, 0, 0, 1, 1, 2, 5, 200], p=[0.3, 0.1, 0.1, 0.1, 0.2, 0.1, 0.07, 0.02, 0.01])
        )
        if labels and known and rng.random() < 0.4:
            transaction, time = known[-1 - int(rng.integers(0, min(len(known), 30)))]
            ahead = int(rng.integers(0, 5)) if rng.random() < 0.2 else 0
            label_time = time + STEP_MS * int(rng.integers(-4, 40))
            ops.append(Op(transaction + ahead, label_time, positive=bool(rng.random() < 0.7)))
            continue
        late = rng.choice([0, 40, 160], p=[0.7, 0.27, 0.03])  # up to beyond the longest window
        time = now - (STEP_MS * int(rng.integers(0, late)) if late else 0)
        key = int(rng.integers(0, keys)) if rng.random() < 0.7 else 0
        ops.append(Op(number, time, key, round(float(rng.gamma(2.0, 30.0)), 2)))
        known.append((number, time))
    return ops


def blocks_of(ops: list[Op], entity: str) -> tuple[Block, Block, np.ndarray]:
    """The rows, the labels, and the order of both."""
    rows = [op for op in ops if op.positive is None]
    labels = [op for op in ops if op.positive is not None]
    times = np.array([op.time for op in rows], np.int64)
    label_times = np.array([op.time for op in labels], np.int64)
    block = Block(
        "t", 0, len(rows), np.arange(len(rows)), times,
        {entity: Ids.of([op.key for op in rows]), "transaction_id": Ids.of([op.transaction for op in rows])},
        {"event_time": times, "amount": np.array([op.amount for op in rows])},
    )  # fmt: skip
    label_block = Block(
        "l", 0, len(labels), np.arange(len(labels)), label_times,
        {"transaction_id": Ids.of([op.transaction for op in labels])},
        {"label_time": label_times, "is_fraud": np.array([bool(op.positive) for op in labels], np.int8)},
    )  # fmt: skip
    return block, label_block, np.array([op.positive is not None for op in ops], np.bool_)


def same_arrays(a: dict[str, np.ndarray], b: dict[str, np.ndarray]) -> bool:
    """Equal names, types, shapes and bytes."""
    return a.keys() == b.keys() and all(
        a[k].dtype == b[k].dtype and a[k].shape == b[k].shape and a[k].tobytes() == b[k].tobytes() for k in a
    )
