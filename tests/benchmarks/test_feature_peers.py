"""The peers of the features benchmark compute what we do, and a wrong or missing one shows."""

from __future__ import annotations

import importlib.util

import numpy as np
import pytest

from benchmarks import feature_peers
from benchmarks.feature_peers import Table, compare, table


def dense() -> Table:
    """Some rows of one card have the same time."""
    rows = table(4_000, 20, days=50)
    return rows._replace(times=rows.times // 600_000 * 600_000)


def test_peers_are_equal_or_missing() -> None:
    figures = compare(dense(), rounds=1)
    assert figures["tied_rows"] > 20
    for row in figures["results"][1:]:
        if "missing" in row:
            assert importlib.util.find_spec(row["engine"]) is None
        else:
            assert row["equal"], row
            assert row["rows_compared"] == (4_000 if row["engine"] == "python" else 4_000 - figures["tied_rows"])


@pytest.mark.parametrize("column", [2, 11])
def test_a_wrong_peer_shows(monkeypatch: pytest.MonkeyPatch, column: int) -> None:
    def wrong(rows: Table) -> np.ndarray:
        out = feature_peers._headrace(rows)
        out[1_000, column] += 1e-6
        return out

    monkeypatch.setitem(feature_peers._PEERS, "python", wrong)
    assert not compare(dense(), ["python"], rounds=1)["results"][1]["equal"]


def test_a_missing_peer_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(feature_peers._PEERS, "no_such_engine", feature_peers._headrace)
    (_, row) = compare(dense(), ["no_such_engine"], rounds=1)["results"]
    assert row == {"engine": "no_such_engine", "missing": "not installed: pip install no_such_engine"}
