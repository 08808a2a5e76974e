"""From settings to a worker of the monitor pipeline."""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal, cast

from monitoring.labels import JoinSettings
from monitoring.lists import ListSettings
from monitoring.settings import MonitorError
from streams.config import Settings
from streams.errors import ConfigError
from streams.log import connect
from streams.pipelines.monitor import MonitorPipeline
from streams.pipelines.monitor_watch import WatchSettings
from streams.segments import segments_of
from streams.worker import Worker
from streams.worker_of import worker_of

__all__ = ["join_settings", "make_pipeline", "make_worker"]


def join_settings(settings: Settings) -> JoinSettings:
    """How labels are joined with what was scored."""
    return JoinSettings(
        settings.label_horizon_ms,
        settings.join_rows_max,
        cast(Literal["labels", "horizon"], settings.label_negatives),
        cast(Literal["first", "last"], settings.label_conflicts),
    )


def make_pipeline(settings: Settings) -> MonitorPipeline:
    """The pipeline of these settings. ConfigError: one that cannot be."""
    join = join_settings(settings)
    watch = WatchSettings(
        settings.label_mature_ms,
        settings.alert_threshold,
        settings.false_alarms,
        segments_of(settings.monitor_segments),
    )
    lists = ListSettings(
        settings.list_click_ms, settings.allowed_lateness_ms, false_alarms_per_30d=settings.false_alarms
    )
    try:
        watch.of(("any",), join, 1)
        lists.check()
    except MonitorError as exc:
        raise ConfigError(f"settings of the monitor: {exc}") from exc
    return MonitorPipeline(join, settings.partitions, watch, lists)


def make_worker(settings: Settings, on_ready: Callable[[], None] = lambda: None) -> tuple[Worker, MonitorPipeline]:
    """A worker for these settings, not yet running, and its pipeline."""
    pipeline = make_pipeline(settings)
    log = connect(settings.log_url(), settings.kafka_config())
    return worker_of(Worker, log, pipeline, settings, on_ready), pipeline
