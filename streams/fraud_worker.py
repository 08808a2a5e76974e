"""From settings to a worker of the fraud pipeline."""

from __future__ import annotations

from collections.abc import Callable

from features.fraud import DEFAULT
from models.registry import Registry
from models.slot import ModelSlot
from streams.config import Settings
from streams.log import connect
from streams.pipelines.fraud import FraudPipeline
from streams.pipelines.fraud_stages import StageSettings
from streams.reader import ReaderSettings
from streams.worker import Worker

__all__ = ["make_pipeline", "make_worker", "stage_settings"]


def stage_settings(settings: Settings) -> StageSettings:
    """What the stages' results depend on."""
    return StageSettings(DEFAULT, settings.allowed_lateness_ms, settings.dedupe_ms, settings.dedupe_entries)


def make_pipeline(settings: Settings) -> FraudPipeline:
    """The pipeline with the registry's champion, or without a model where no registry is named."""
    slot = ModelSlot()
    if settings.models:
        slot.replace(Registry(settings.models).get("champion", DEFAULT.names, DEFAULT.schema_hash))
    return FraudPipeline(
        stage_settings(settings),
        slot,
        settings.order,
        settings.partitions,
        log_features=settings.log_features,
        watermark_delay_ms=settings.watermark_delay_ms,
        first_wait_s=settings.first_wait_ms / 1000,
    )


def make_worker(settings: Settings, on_ready: Callable[[], None] = lambda: None) -> tuple[Worker, FraudPipeline]:
    """A worker for these settings, not yet running, and its pipeline."""
    pipeline = make_pipeline(settings)
    reader = ReaderSettings(
        commit_interval_s=settings.commit_interval_ms / 1000,
        gather_s=settings.gather_ms / 1000,
        batch_records=settings.batch_records,
        stall_s=settings.max_poll_interval_ms / 1000,
    )
    log = connect(settings.log_url(), settings.kafka_config())
    return Worker(log, pipeline, settings.group, settings=reader, on_ready=on_ready), pipeline
