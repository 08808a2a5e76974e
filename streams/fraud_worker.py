"""From settings to a worker of the fraud pipeline."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import cast

from features.declare import FeatureSet
from features.fraud import DEFAULT, SETS, set_of
from features.shopping import SCHEMA_HASH
from models.lineup import CanaryBounds
from models.package import read_manifest
from models.predictor import PredictorKind
from models.registry import Registry
from models.slot import ModelSlot
from streams.config import Settings
from streams.log import connect
from streams.model_shelf import ModelShelf
from streams.model_watch import ModelWatch
from streams.pipelines.fraud import FraudPipeline
from streams.pipelines.fraud_stages import StageSettings
from streams.shedding import Shedder
from streams.topics import BY_TERMINAL
from streams.worker import Worker
from streams.worker_of import worker_of

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


def make_pipeline(settings: Settings, slot: ModelSlot | None = None) -> FraudPipeline:
    """The pipeline with this slot; else with the registry's champion, or without a model where no registry is named."""
    stages = stage_settings(settings)
    if slot is None:
        slot = ModelSlot(reasons=settings.reasons_policy())
        if settings.models:
            features = stages.features
            slot.replace(_registry(settings).get("champion", features.names, features.schema_hash))
    return FraudPipeline(
        stages,
        slot,
        settings.order,
        settings.partitions,
        log_features=settings.log_features,
        log_sets=settings.log_sets,
        watermark_delay_ms=settings.watermark_delay_ms,
        idle_after_s=settings.idle_after_ms / 1000,
        first_wait_s=settings.first_wait_ms / 1000,
        monitor=settings.monitor,
    )


def make_worker(settings: Settings, on_ready: Callable[[], None] = lambda: None) -> tuple[Worker, FraudPipeline]:
    """A worker for these settings, not yet running, and its pipeline."""
    slot = ModelSlot(reasons=settings.reasons_policy())
    pipeline = make_pipeline(settings, slot)
    log = connect(settings.log_url(), settings.kafka_config())
    worker = worker_of(Worker, log, pipeline, settings, on_ready)
    if settings.models:
        worker.gate = _watch(settings, slot)
    worker.replays_apart = True
    shedding = settings.shedding()
    if shedding is not None:
        pipeline.shedder = Shedder(shedding, partial(worker.oldest_sent_ms, BY_TERMINAL))
    return worker, pipeline


def _registry(settings: Settings) -> Registry:
    # one of `predictor`'s choices, which are `PredictorKind`'s
    return Registry(settings.models, cast(PredictorKind, settings.predictor))


def _watch(settings: Settings, slot: ModelSlot) -> ModelWatch:
    """What keeps the slot as the registry wants it; the champion is in it already."""
    features = feature_set(settings)
    bounds = CanaryBounds(settings.canary_error_rate_max, settings.canary_latency_ratio_max)
    registry = _registry(settings)
    policy, others = settings.reasons_policy(), (SCHEMA_HASH,)
    shelf = ModelShelf(registry, features.names, features.schema_hash, policy, bounds, others=others)
    return ModelWatch(shelf, slot, BY_TERMINAL, settings.models_poll_ms / 1000)
