"""From settings to a worker of the monitor pipeline."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Literal, cast

from monitoring.labels import JoinSettings
from monitoring.lists import ListSettings
from monitoring.settings import MonitorError
from monitoring.trained import Trained
from streams.config import Settings
from streams.errors import ConfigError, FatalError
from streams.log import connect
from streams.pipelines.monitor import MonitorPipeline
from streams.pipelines.monitor_watch import Packages, WatchSettings
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
    packages = packages_of(settings.models) if settings.models else None
    return MonitorPipeline(join, settings.partitions, watch, lists, packages)


def packages_of(models: str) -> Packages:
    """What the packages of a registry tell of the rows that they were made on. A version never changes once it is
    there, so a log that is read again meets the same. FatalError ``package-missing``: the version is not there, which
    as nothing told would be the state for good; ``package-unreadable``: what is there is damaged."""
    from models.errors import ModelError
    from models.package import read_manifest
    from models.registry import Registry

    registry = Registry(Path(models))

    def reference(model: str) -> Mapping[str, Any]:
        if not model:
            return {}
        try:
            path = registry.resolve(model)
        except ModelError as error:
            where = f"is not in {models}" if registry.root.is_dir() else f"cannot be looked up, {models} is no folder"
            raise FatalError(
                "package-missing",
                f"{model} has scored rows and {where}. Put its package back, or where that is gone run the monitor "
                "without --models (setting models), which then watches models without what they were made on.",
            ) from error
        try:
            manifest = read_manifest(path)
            Trained.of(manifest.reference, manifest.features)
            return manifest.reference
        except (ModelError, MonitorError) as error:
            raise FatalError("package-unreadable", f"{model} in {models}: {error}") from error

    return reference


def make_worker(settings: Settings, on_ready: Callable[[], None] = lambda: None) -> tuple[Worker, MonitorPipeline]:
    """A worker for these settings, not yet running, and its pipeline."""
    pipeline = make_pipeline(settings)
    log = connect(settings.log_url(), settings.kafka_config())
    return worker_of(Worker, log, pipeline, settings, on_ready), pipeline
