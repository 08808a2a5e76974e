"""The benchmark of drift: how alarms are judged, and that it runs and says what it should."""

from __future__ import annotations

import json

import numpy as np

from benchmarks.drift import judge, run
from benchmarks.drift_streams import STREAMS


def test_alarms_are_judged_by_the_changes() -> None:
    alarms = np.array([10, 150, 420, 600, 20_500, 90_000])
    judged = judge(alarms, [400, 20_000, 50_000], 100_000, begin=100)
    # 10 is before the beginning; 150 false; 420 and 20,500 in time; 600 again; 90,000 is 40,000 after its change
    assert judged == {"changes": 3, "delays": [20, 500], "false": 1, "quiet_rows": 300, "repeats": 2}
    assert judge(np.array([], np.int64), [], 1000, begin=100)["quiet_rows"] == 900


def test_streams_are_those_of_their_seed() -> None:
    for make in (STREAMS["gradual"], STREAMS["label_only"]):
        one, again, other = make(1), make(1), make(2)
        np.testing.assert_array_equal(one.score, again.score)
        assert (one.score != other.score).any()
        assert one.changes and one.changes[0] < len(one.x) == len(one.label)


def test_the_monitor_hears_what_errors_do_not_show() -> None:
    figures = run(quick=True, streams=["feature_only"], detectors=["monitor", "always", "ddm"], costs=False)
    by_name = {row["detector"]: row for row in figures["totals"]}
    assert by_name["monitor"]["missed"] == 0 and by_name["monitor"]["false_alarms"] == 0
    assert by_name["always"]["false_per_100k"] == 200.0
    assert by_name["ddm"]["missed"] == 1
    assert figures["results"][0]["delay_events"] <= 1000
    json.dumps(figures, allow_nan=False)
