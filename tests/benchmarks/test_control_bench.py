"""The benchmark of the control loop on one short stream of each kind: what it is to show holds there too."""

from __future__ import annotations

from benchmarks.control import _drifting, _stationary


def test_most_of_what_drift_has_cost_is_regained() -> None:
    found = _drifting(1, "retrain", 25_000)
    assert found["lost"] > 0.4 and 0 < found["noticed_after"] < 2_000
    assert found["regained_share"] >= 0.8 and found["regained_after"] <= 4_000
    assert found["champions"][0]["model"] == "fraud@2"


def test_nothing_changes_where_nothing_has_changed() -> None:
    found = _stationary(1, 12_000)
    assert found["false_alarms_put_in"] == 3 and found["cases"] >= 1
    assert found["promoted"] == found["changes_of_the_champion"] == 0
