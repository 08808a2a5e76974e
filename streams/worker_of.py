"""From settings to a worker of any pipeline."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

from streams.checkpoint_store import CheckpointStore
from streams.checkpoints import CheckpointSettings
from streams.config import Settings
from streams.log import Log
from streams.pipeline import Pipeline
from streams.reader import ReaderSettings
from streams.store import open_store
from streams.worker import Worker
from streams.worker_name import claim_name

__all__ = ["worker_of"]

_W = TypeVar("_W", bound=Worker)


def worker_of(kind: type[_W], log: Log, pipeline: Pipeline, settings: Settings, on_ready: Callable[[], None]) -> _W:
    """A worker of this kind for the pipeline, not yet running."""
    name = None
    if settings.delivery == "exactly_once":
        name = settings.transactional_id or claim_name(log.url, settings.group)
    url = settings.checkpoint_url()
    return kind(
        log,
        pipeline,
        settings.group,
        settings=ReaderSettings(
            commit_interval_s=settings.commit_interval_ms / 1000,
            gather_s=settings.gather_ms / 1000,
            batch_records=settings.batch_records,
            stall_s=settings.max_poll_interval_ms / 1000,
            lag_said_s=settings.lag_said_ms / 1000,
        ),
        checkpoints=None if url is None else CheckpointStore(open_store(url), settings.group),
        checkpoint_settings=CheckpointSettings(
            settings.checkpoint_interval_ms / 1000, settings.checkpoints_kept, settings.missing_history == "degrade"
        ),
        transactional_id=name,
        on_ready=on_ready,
    )
