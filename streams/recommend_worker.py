"""From settings to a worker of the recommend pipeline."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from pathlib import Path

from features.shopping import FEATURES, SCHEMA_HASH
from models.package import read_manifest
from models.registry import Registry
from models.slot import ModelSlot
from streams.config import Settings
from streams.errors import ConfigError
from streams.log import Log, connect
from streams.pipelines.recommend import RecommendPipeline
from streams.pipelines.recommend_lists import ListRules
from streams.pipelines.recommend_stages import ShopSettings
from streams.worker import Worker
from streams.worker_of import worker_of

__all__ = ["RecommendWorker", "make_pipeline", "make_worker", "shop_settings"]

logger = logging.getLogger("headrace.recommend")


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
    return ShopSettings(settings.allowed_lateness_ms, settings.dedupe_ms, settings.dedupe_entries, settings.publish_ms)


def make_pipeline(settings: Settings, log: Log) -> RecommendPipeline:
    """The pipeline with the champion of ``recommend_models``, else ``models``; without one, or where it is another
    pipeline's, candidates are served in their own order. ConfigError: a setting that cannot be, or no such registry."""
    if settings.explore > 1:
        raise ConfigError(f"setting explore: {settings.explore:g} is above 1; give the share of lists, 0 to 1")
    slot = ModelSlot()
    models = settings.recommend_models or settings.models
    if models:
        if not Path(models).is_dir():
            raise ConfigError(f"--models {models}: no such directory; train a model into it, or leave it out")
        registry = Registry(models)
        label = registry.aliases().get("champion")
        if label is None:
            logger.warning("%s has no champion: lists come without a model", models)
        elif read_manifest(registry.resolve(label)).schema_hash not in ("", SCHEMA_HASH):
            logger.warning(
                "the champion %s of %s was made for other features: lists come without a model; train one with "
                "`headrace train --pipeline recommend` into a registry of its own",
                label,
                models,
            )
        else:
            slot.replace(registry.get(label, FEATURES, SCHEMA_HASH))
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
        view_wait_s=settings.view_wait_ms / 1000,
    )


def make_worker(settings: Settings, on_ready: Callable[[], None] = lambda: None) -> tuple[Worker, RecommendPipeline]:
    """A worker for these settings, not yet running, and its pipeline."""
    log = connect(settings.log_url(), settings.kafka_config())
    pipeline = make_pipeline(settings, log)
    return worker_of(RecommendWorker, log, pipeline, settings, on_ready), pipeline
