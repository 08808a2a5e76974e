"""From settings to a worker of the fraud pipeline."""

from __future__ import annotations

from collections.abc import Callable

from features.declare import FeatureSet
from features.fraud import DEFAULT, SETS, set_of
from models.package import read_manifest
from models.registry import Registry
from models.slot import ModelSlot
from streams.checkpoint_store import CheckpointStore
from streams.checkpoints import CheckpointSettings
from streams.config import Settings
from streams.log import connect
from streams.pipelines.fraud import FraudPipeline
from streams.pipelines.fraud_stages import StageSettings
from streams.reader import ReaderSettings
from streams.store import open_store
from streams.worker import Worker
from streams.worker_name import claim_name

__all__ = ["feature_set", "make_pipeline", "make_worker", "stage_settings"]


def feature_set(settings: Settings) -> FeatureSet:
    """The features that the settings name, or those that the champion was made for."""
    if settings.feature_set in SETS:
        return SETS[settings.feature_set]
    registry = Registry(settings.models) if settings.models else None
    if registry is None or "champion" not in registry.aliases():
        return DEFAULT
    return set_of(read_manifest(registry.resolve("champion")).schema_hash)


def stage_settings(settings: Settings) -> StageSettings:
    """What the stages' results depend on."""
    features = feature_set(settings)
    return StageSettings(
        features,
        settings.allowed_lateness_ms,
        settings.dedupe_ms,
        settings.dedupe_entries,
        settings.state_mb_max * 1_000_000 or None,
    )


def make_pipeline(settings: Settings) -> FraudPipeline:
    """The pipeline with the registry's champion, or without a model where no registry is named."""
    slot, stages = ModelSlot(reasons=settings.reasons_policy()), stage_settings(settings)
    if settings.models:
        features = stages.features
        slot.replace(Registry(settings.models).get("champion", features.names, features.schema_hash))
    return FraudPipeline(
        stages,
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
    name = None
    if settings.delivery == "exactly_once":
        name = settings.transactional_id or claim_name(log.url, settings.group)
    url = settings.checkpoint_url()
    worker = Worker(
        log,
        pipeline,
        settings.group,
        settings=reader,
        checkpoints=None if url is None else CheckpointStore(open_store(url), settings.group),
        checkpoint_settings=CheckpointSettings(
            settings.checkpoint_interval_ms / 1000, settings.checkpoints_kept, settings.missing_history == "degrade"
        ),
        transactional_id=name,
        on_ready=on_ready,
    )
    return worker, pipeline
