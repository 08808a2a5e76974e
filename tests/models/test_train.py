"""Training: the protocol of the open data, and its metrics against naive ones."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from models.errors import ModelError
from models.metrics import card_precision, not_known_before
from models.train import DAY_MS, Split, train_fraud

DATA = Path(os.environ.get("HEADRACE_DATA", Path(__file__).parents[3] / "shared" / "data"))


def _ms(day: str) -> int:
    return int(np.datetime64(day, "ms").astype(np.int64))


def _split(days: int = 7) -> Split:
    end = _ms("2018-08-01")
    return Split(end - days * DAY_MS, end, _ms("2018-08-08"), _ms("2018-08-15"), known_from=end - 7 * DAY_MS)


@pytest.mark.skipif(not (DATA / "fraud_expected.parquet").exists(), reason=f"the open card-fraud data is not in {DATA}")
def test_published_protocol_on_the_open_data() -> None:
    import pyarrow.parquet as pq

    columns = pq.read_table(DATA / "fraud_expected.parquet").drop_columns(["transaction_id"])
    x = np.stack([column.to_numpy().astype(np.float64) for column in columns.columns], axis=1)
    events = pq.read_table(DATA / "fraud_transactions.parquet", columns=["event_time", "card_id"])
    y = pq.read_table(DATA / "fraud_labels.parquet", columns=["is_fraud"])["is_fraud"].to_numpy()
    time, card = events["event_time"].to_numpy(), events["card_id"].to_numpy().astype(np.int64)

    week = train_fraud(x, y, time, card, columns.column_names, _split(), num_threads=1)
    assert (week.training["rows"], week.training["frauds"]) == (67_240, 598)
    assert (week.metrics["rows"], week.metrics["frauds"]) == (58_264, 385)
    assert 0.67 < week.metrics["average_precision"] < 0.75
    assert 0.28 < week.metrics["card_precision_100"] < 0.31
    assert 0.86 < week.metrics["auc"] < 0.89


def _toy(rows: int = 4000) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    rng = np.random.default_rng(2)
    x = rng.normal(size=(rows, 2))
    time = np.sort(rng.integers(_ms("2018-07-20"), _ms("2018-08-20"), rows))
    return x, (x[:, 0] + rng.normal(size=rows) > 1.5).astype(np.int8), time, rng.integers(0, 900, rows)


def test_trained_model_is_calibrated_and_becomes_a_draft() -> None:
    steps: list[tuple[int, int]] = []
    trained = train_fraud(*_toy(), ["a", "b"], _split(), progress=lambda done, total: steps.append((done, total)))
    assert steps[-1] == (400, 400)
    assert trained.metrics["auc"] > 0.8
    assert trained.calibration.kind == "platt"
    draft = trained.draft("toy", "abcd", "2024-05-01T00:00:00Z")
    assert draft.features == ("a", "b") and draft.training["rounds"] == 200 and draft.metrics == trained.metrics


def test_rows_outside_the_ranges_do_not_matter() -> None:
    x, y, time, card = _toy()
    trained = train_fraud(x, y, time, card, ["a", "b"], _split())
    gap = (time >= _ms("2018-08-01")) & (time < _ms("2018-08-08"))
    x[gap] = 99.0
    x[time >= _ms("2018-08-15")] = -99.0
    again = train_fraud(x, y, time, card, ["a", "b"], _split(), num_threads=1)
    # the text ends with the settings, the number of threads among them
    assert again.model_text.split("parameters:")[0] == trained.model_text.split("parameters:")[0]
    assert again.metrics == trained.metrics


def test_a_test_range_before_the_labels_are_known_is_refused() -> None:
    with pytest.raises(ModelError, match="before the labels"):
        Split(0, 10 * DAY_MS, 17 * DAY_MS - 1, 20 * DAY_MS)
    with pytest.raises(ModelError, match="train range: ends"):
        Split(5, 5, 17 * DAY_MS, 20 * DAY_MS)
    with pytest.raises(ModelError, match="test range: ends"):
        Split(0, 5, 17 * DAY_MS, 17 * DAY_MS)


def test_ranges_without_both_classes_are_refused() -> None:
    x, y, time, card = _toy()
    y[time < _ms("2018-07-31")] = 0
    with pytest.raises(ModelError, match=r"train range: \d+ rows, 0 frauds"):
        train_fraud(x, y, time, card, ["a", "b"], _split())


def _naive_card_precision(rows: list[tuple[int, int, int, int]], top: int) -> float:
    found: set[int] = set()
    precisions = []
    for today in sorted({day for day, *_ in rows}):
        best: dict[int, int] = {}
        fraud: dict[int, bool] = {}
        for day, card, score, label in rows:
            if day == today and card not in found:
                best[card] = max(best.get(card, score), score)
                fraud[card] = fraud.get(card, False) or label == 1
        listed = sorted(best, key=lambda c: (-best[c], c))[:top]
        found |= {c for c in listed if fraud[c]}
        precisions.append(sum(fraud[c] for c in listed) / top)
    return sum(precisions) / len(precisions)


ROWS = st.lists(
    st.tuples(st.integers(0, 4), st.integers(0, 9), st.integers(0, 3), st.integers(0, 1)), min_size=1, max_size=60
)


@given(rows=ROWS, top=st.integers(1, 5))
@settings(max_examples=150, deadline=None, derandomize=True)
def test_card_precision_is_the_naive_one(rows: list[tuple[int, int, int, int]], top: int) -> None:
    day, card, score, y = np.array(rows, dtype=np.int64).T
    assert card_precision(score.astype(np.float64), y, day, card, top) == pytest.approx(
        _naive_card_precision(rows, top)
    )


@given(rows=ROWS, delay=st.integers(0, 3))
@settings(max_examples=100, deadline=None, derandomize=True)
def test_known_cards_are_the_naive_ones(rows: list[tuple[int, int, int, int]], delay: int) -> None:
    day, card, _, y = np.array(rows, dtype=np.int64).T
    expected = [
        not any(c == card_ and label and d + 1 + delay <= day_ for d, c, _, label in rows) for day_, card_, *_ in rows
    ]
    assert not_known_before(day, card, y, delay).tolist() == expected
