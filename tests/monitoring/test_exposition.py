"""Metrics: what is declared is what Prometheus' rules of names want, and what is written can be read back."""

from __future__ import annotations

import math
import re

import pytest
from prometheus_client.parser import text_string_to_metric_families

from monitoring.metrics import COUNTS, LATENCY_BOUNDS_S, METRICS, SCORE_BOUNDS, Buckets, Metric, Sample, exposition

#: what a name may end with: base units, or what is counted
_NO_UNITS = re.compile(r"_(ms|millis|minutes|hours|mb|kb|percent)(_|$)")


def read(text: bytes) -> dict[str, list[tuple[dict[str, str], float]]]:
    found: dict[str, list[tuple[dict[str, str], float]]] = {}
    for family in text_string_to_metric_families(text.decode()):
        for sample in family.samples:
            found.setdefault(sample.name, []).append((dict(sample.labels), sample.value))
    return found


def value_for(metric: Metric) -> float | Buckets:
    return Buckets((0.5, 1.0), (1, 2, 3), 9.5) if metric.kind == "histogram" else 7.0


@pytest.mark.parametrize("metric", METRICS, ids=lambda metric: metric.name)
def test_a_metric_is_named_as_prometheus_has_it(metric: Metric) -> None:
    assert re.fullmatch(r"[a-z][a-z0-9_]*", metric.name)
    assert (metric.kind == "counter") == metric.name.endswith("_total")
    assert not _NO_UNITS.search(metric.name), "base units: seconds, bytes, ratio"
    assert metric.help and metric.help[0].isupper() and not metric.help.endswith(".")
    assert "pipeline" not in metric.labels and "le" not in metric.labels
    assert len(set(metric.labels)) == len(metric.labels)


def test_no_name_is_there_twice() -> None:
    names = [metric.name for metric in METRICS]
    assert len(set(names)) == len(names)
    assert {metric.name for metric in COUNTS.values()} <= set(names)


def test_every_metric_is_written_and_read_back() -> None:
    given = [Sample(m.name, value_for(m), tuple(f"{label}-value" for label in m.labels)) for m in METRICS]
    found = read(exposition(given, "fraud"))
    for metric in METRICS:
        name = f"headrace_{metric.name}" + ("_sum" if metric.kind == "histogram" else "")
        labels = {"pipeline": "fraud", **{label: f"{label}-value" for label in metric.labels}}
        assert found[name] == [(labels, 9.5 if metric.kind == "histogram" else 7.0)]


def test_buckets_are_cumulated() -> None:
    found = read(exposition([Sample("scores", Buckets((0.5, 1.0), (1, 2, 3), 9.5))], "fraud"))
    assert [(labels["le"], n) for labels, n in found["headrace_scores_bucket"]] == [("0.5", 1), ("1.0", 3), ("+Inf", 6)]
    assert found["headrace_scores_count"] == [({"pipeline": "fraud"}, 6)]


def test_labels_from_outside_are_escaped() -> None:
    nasty = 'a"b\\c\nd} 1'
    found = read(exposition([Sample("quality_findings_total", 1, ("transactions", nasty, "missing"))], "fraud"))
    [(labels, _)] = found["headrace_quality_findings_total"]
    assert labels["field"] == nasty


def test_no_number_is_no_sample() -> None:
    assert b"headrace_uptime_seconds{" not in exposition([Sample("uptime_seconds", math.nan)], "fraud")


def test_what_is_not_declared_is_refused() -> None:
    with pytest.raises(KeyError, match="speed"):
        exposition([Sample("speed", 1)], "fraud")
    with pytest.raises(ValueError, match=r"lag_records: 2 labels .* it has stage"):
        exposition([Sample("lag_records", 1, ("card", "0"))], "fraud")


def test_bounds_rise() -> None:
    for bounds in (LATENCY_BOUNDS_S, SCORE_BOUNDS):
        assert list(bounds) == sorted(set(bounds))
    assert SCORE_BOUNDS[-1] == 1.0 and len(SCORE_BOUNDS) % 2 == 0, "half of the bars are below 0.5"
