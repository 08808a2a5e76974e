"""Every metric: name, kind, labels and meaning, in this one file; and how they are written for Prometheus.

Base units as Prometheus has them (seconds, a share is a ratio), counters end in ``_total``. Each metric has the label
``pipeline`` besides its own. What a pipeline does not have is not written.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

__all__ = [
    "COUNTS",
    "LATENCY_BOUNDS_S",
    "METRICS",
    "PREFIX",
    "SCORE_BOUNDS",
    "Buckets",
    "Metric",
    "Sample",
    "exposition",
]

PREFIX = "headrace_"

#: upper ends of the buckets of latencies, and of scores; the last bucket of latencies is open
LATENCY_BOUNDS_S = (0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0, 30.0, 60.0, 300.0)
SCORE_BOUNDS = tuple(round(0.05 * i, 2) for i in range(1, 21))


@dataclass(frozen=True, slots=True)
class Metric:
    """``name`` without the prefix."""

    name: str
    kind: Literal["counter", "gauge", "histogram"]
    help: str
    labels: tuple[str, ...] = ()


class Buckets(NamedTuple):
    """A histogram: how many values are in each bucket and none before it, with one more for those above all ``bounds``;
    and their sum."""

    bounds: Sequence[float]
    counts: Sequence[int]
    sum: float


class Sample(NamedTuple):
    """A value of the metric with this name and these values of its labels, in their order."""

    name: str
    value: float | Buckets
    labels: tuple[str, ...] = ()


def _counter(name: str, text: str, *labels: str) -> Metric:
    return Metric(f"{name}_total", "counter", text, labels)


def _gauge(name: str, text: str, *labels: str) -> Metric:
    return Metric(name, "gauge", text, labels)


#: counters that are figures of a pipeline, by the figure's name
COUNTS: Mapping[str, Metric] = {
    "received": _counter("received", "Records taken from the pipeline's first topic"),
    "scored": _counter("scored", "Transactions scored"),
    "recommended": _counter("recommended", "Lists sent"),
    "labelled": _counter("labelled", "Scored transactions joined with their label"),
    "dead_letters": _counter("dead_letters", "Records set aside because they could not be used"),
    "duplicates": _counter("duplicates", "Events that had come before, neither applied nor scored again"),
    "late": _counter("late", "Events behind the newest by more than the allowed lateness; scored, not in windows"),
    "shed": _counter("shed", "Transactions left unscored under overload; their features are exact"),
    "labels": _counter("labels", "Labels read"),
    "replayed": _counter("replayed", "Records and rows read again to restore a state"),
    "resent_rows": _counter("resent_rows", "Rows that came twice between stages, and counted once"),
    "forced": _counter("forced", "Rows that went on before their turn since too many waited"),
    "overtaken": _counter("overtaken", "Rows and labels that came when later ones had gone on, by event time"),
    "published": _counter("published", "Items published to every worker"),
    "lists": _counter("lists_watched", "Lists read by the monitor"),
    "findings": _counter("findings", "What watches of single partitions have found, before causes are grouped"),
    "alerts": _counter("alerts_raised", "Alerts raised by this worker"),
}

METRICS: tuple[Metric, ...] = (
    _gauge("info", "Always 1", "version", "group"),
    _gauge("ready", "Whether /healthz says so, 1 or 0"),
    _gauge("uptime_seconds", "Since the web server of this worker began"),
    *COUNTS.values(),
    _gauge("keys_in_two_partitions", "Keys seen in another partition than before: their producers do not agree"),
    _gauge("items_known", "Items that lists are made of"),
    _counter("lists", "Lists by what they were made with", "rung"),
    _counter("quality_findings", "Values refused or mended", "topic", "field", "finding"),
    _gauge("events_per_second", "Over the last ten seconds", "direction"),
    _gauge("lag_records", "Records sent and not done, of this worker's partitions", "stage"),
    _gauge("lag_seconds", "How long ago the oldest record in hand was sent", "stage"),
    _gauge("in_flight_records", "Records read and not done"),
    _gauge("next_offset", "First offset that is not done", "topic", "partition"),
    _gauge("committed_offset", "First offset that is not committed, as far as is known here", "topic", "partition"),
    _gauge("partitions_assigned", "Partitions of this worker", "topic"),
    _gauge("partitions_recovering", "Partitions of this worker whose state is not whole yet", "topic"),
    _counter("partition_assignments", "Partitions given to this worker, each time counted"),
    _counter("rebalances", "Changes of what this worker is assigned, as seen once a second"),
    _gauge("recovery_seconds", "What the first recovery took, from the assignment on"),
    Metric("score_latency_seconds", "histogram", "From an event's timestamp until its score or list is encoded"),
    Metric("scores", "histogram", "Scores of this worker"),
    _counter("checkpoints_written", "Checkpoints written"),
    _gauge("checkpoint_age_seconds", "Since the last checkpoint of any partition was written"),
    _gauge("checkpoint_write_seconds", "How long the last checkpoint took until it was where it is kept"),
    _gauge("commit_seconds", "How long commits took, the flush of outputs included", "quantile"),
    _gauge("partition_lag_records", "Records sent and not done", "topic", "partition"),
    _gauge("checkpoint_pause_seconds", "How long a checkpoint has held up the stages", "quantile"),
    _counter("cpu_seconds", "CPU seconds by part of the work", "part"),
    _gauge("model_info", "Always 1: who scores the newest records", "partition", "role", "model"),
    _gauge("canary_share", "Share of keys that the canary scores"),
    _gauge("alerts", "Alerts in the topic, each counted once", "kind", "severity"),
    _counter("alerts_delivered", "Alerts logged, and taken or refused by the webhook", "outcome"),
    _counter("alerts_retries", "Deliveries to the webhook that failed and were tried again"),
    _gauge("alerts_waiting", "Alerts read by this worker that wait for the webhook"),
    _gauge("label_maturity_ratio", "Share of transactions that have their label by this age", "age_seconds"),
    _gauge("label_join_rows", "What has become of scored rows and labels", "outcome"),
    _gauge("drift_strength", "Strongest watch of the newest period; 1 is the limit", "model", "partition", "half"),
    _gauge("drift_learning", "Whether the usual is still being learned, 1 or 0", "model", "partition", "half"),
    _gauge("performance", "On matured labels of the longest window", "model", "partition", "metric", "period"),
    _counter("control_steps", "Steps of the control loop since it started"),
    _counter("control_rows", "Labelled rows that it has read"),
    _counter("control_alerts", "Alerts that it has decided on"),
    _counter("control_events", "Events that it has written to model-events"),
    _gauge("control_frozen", "Whether it may do nothing, 1 or 0"),
    _gauge("control_case", "Always 1: what it is in the midst of", "action", "status"),
    _gauge("control_rows_sampled_ratio", "Share of the labelled rows that it keeps"),
    _gauge("psi", "Population stability index of the longest window", "model", "partition", "feature"),
)  # fmt: skip

_BY_NAME: Mapping[str, Metric] = {metric.name: metric for metric in METRICS}


def exposition(samples: Iterable[Sample], pipeline: str) -> bytes:
    """The samples, and those of this process, as Prometheus text (0.0.4), with label ``pipeline``.

    KeyError: a metric that is not declared; ValueError: not as many labels as it has. NaN is left out: a value that
    there is none of is no sample.
    """
    from prometheus_client import CollectorRegistry, ProcessCollector, generate_latest

    registry = CollectorRegistry(auto_describe=False)
    ProcessCollector(registry=registry)
    registry.register(_Collector(list(_families(samples, pipeline))))
    return generate_latest(registry)


class _Collector:
    def __init__(self, families: Sequence[Any]) -> None:
        self._families = families

    def collect(self) -> Iterator[Any]:
        yield from self._families


def _families(samples: Iterable[Sample], pipeline: str) -> Iterator[Any]:
    """In the order of `METRICS`."""
    from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily

    made: dict[str, Any] = {}
    for name, value, labels in samples:
        metric = _BY_NAME[name]
        if len(labels) != len(metric.labels):
            raise ValueError(f"{name}: {len(labels)} labels {labels}, it has {', '.join(metric.labels) or 'none'}")
        if name not in made:
            kinds = {"counter": CounterMetricFamily, "gauge": GaugeMetricFamily, "histogram": HistogramMetricFamily}
            made[name] = kinds[metric.kind](PREFIX + name, metric.help, labels=("pipeline", *metric.labels))
        if isinstance(value, Buckets):
            made[name].add_metric((pipeline, *labels), buckets=list(_cumulated(value)), sum_value=value.sum)
        elif not math.isnan(value):
            made[name].add_metric((pipeline, *labels), value)
    for metric in METRICS:
        if metric.name in made:
            yield made[metric.name]


def _cumulated(buckets: Buckets) -> Iterator[tuple[str, int]]:
    from prometheus_client.utils import floatToGoString

    total = 0
    ends = map(floatToGoString, (*buckets.bounds, math.inf))
    for end, count in zip(ends, buckets.counts, strict=True):
        total += count
        yield end, total
