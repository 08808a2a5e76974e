"""From settings to a worker of the recommend pipeline."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from pathlib import Path

from features.fraud import SETS
from features.shopping import FEATURES, SCHEMA_HASH
from models.explain_policy import NO_REASONS
from models.registry import Registry
from models.slot import ModelSlot
from streams.config import Settings
from streams.errors import ConfigError
from streams.log import Log, connect
from streams.model_shelf import ModelShelf
from streams.model_watch import ModelWatch
from streams.pipelines.recommend import RecommendPipeline
from streams.pipelines.recommend_lists import ListRules
from streams.pipelines.recommend_stages import ShopSettings
from streams.topics import INTERACTIONS
from streams.worker import Worker
from streams.worker_of import worker_of

__all__ = ["RecommendWorker", "make_pipeline", "make_worker", "shop_settings"]

logger = logging.getLogger("headrace.recommend")

_FRAUD = frozenset(features.schema_hash for features in SETS.values())


class RecommendWorker(Worker):
    """A worker that, when it ends, ends reading the items too."""

    async def run(self) -> int:
        try:
            return await super().run()
        finally:
            pipeline = self._pipeline
            assert isinstance(pipeline, RecommendPipeline)
            await asyncio.to_thread(pipeline.close)


def shop_settings(settings: Settings) -> ShopSettings:
    """What the stages' results depend on."""
    return ShopSettings(
        settings.allowed_lateness_ms,
        settings.dedupe_ms,
        settings.dedupe_entries,
        settings.publish_ms,
        settings.state_mb_max * 1_000_000 or None,
    )


def make_pipeline(settings: Settings, log: Log, slot: ModelSlot | None = None) -> RecommendPipeline:
    """The pipeline with this slot; else with the champion of ``recommend_models``, else ``models``, where there is one
    for lists: without, candidates are served in their own order. ConfigError: a setting that cannot be, or no such
    registry."""
    if settings.explore > 1:
        raise ConfigError(f"setting explore: {settings.explore:g} is above 1; give the share of lists, 0 to 1")
    if slot is None:
        slot, shelf = ModelSlot(), _shelf(settings)
        if shelf is not None:
            slot.install(shelf.first()[1])
    return RecommendPipeline(
        log,
        shop_settings(settings),
        ListRules(
            length=settings.list_length,
            candidates=max(settings.list_candidates, settings.list_length),
            exclude_bought=settings.exclude_bought,
            category_max=settings.list_category_max,
            explore=settings.explore,
            explore_seed=settings.explore_seed,
        ),
        slot,
        settings.partitions,
        log_features=settings.log_features,
        source_weights=settings.source_weights,
        view_wait_s=settings.view_wait_ms / 1000,
    )


def make_worker(settings: Settings, on_ready: Callable[[], None] = lambda: None) -> tuple[Worker, RecommendPipeline]:
    """A worker for these settings, not yet running, and its pipeline. Its lists follow the registry's champion."""
    slot, shelf = ModelSlot(), _shelf(settings)
    log = connect(settings.log_url(), settings.kafka_config())
    pipeline = make_pipeline(settings, log, slot)
    worker = worker_of(RecommendWorker, log, pipeline, settings, on_ready)
    if shelf is not None:
        worker.gate = ModelWatch(shelf, slot, INTERACTIONS, settings.models_poll_ms / 1000)
    return worker, pipeline


def _shelf(settings: Settings) -> ModelShelf | None:
    """The registry's rankers; None where no registry is named."""
    models = settings.recommend_models or settings.models
    if not models:
        return None
    if not Path(models).is_dir():
        raise ConfigError(f"--models {models}: no such directory; train a model into it, or leave it out")
    shelf = ModelShelf(Registry(models), FEATURES, SCHEMA_HASH, NO_REASONS, champion_only=True, others=_FRAUD)
    if shelf.first()[0].champion is None:
        logger.warning(
            "%s has no champion for lists: they come without a model until there is one; train it with "
            "`headrace train --pipeline recommend` into a registry of its own",
            models,
        )
    return shelf
