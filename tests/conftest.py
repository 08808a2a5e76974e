"""What all tests share: a broker, the real data."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from streams.broker import Broker, kafka_available

ROOT = Path(__file__).resolve().parent.parent
NO_KAFKA = kafka_available()

# no test leaves a state in the user's cache, or finds one there
os.environ["HEADRACE_CHECKPOINTS"] = "none"


@pytest.hookimpl(trylast=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """The long files first, so that at the end no process of tests waits for another."""
    items.sort(key=lambda item: "kafka" not in item.path.parts)


def pytest_runtest_setup(item: pytest.Item) -> None:
    """Tests marked `kafka` start a broker of their own: skipped where that cannot be, with the reason."""
    if item.get_closest_marker("kafka") and NO_KAFKA:
        pytest.skip(NO_KAFKA)


@pytest.fixture(scope="session")
def kafka() -> Iterator[Broker]:
    """A running Kafka for the whole session: use topics and groups of your own; `broker.bootstrap` for clients."""
    if NO_KAFKA:
        pytest.skip(NO_KAFKA)
    with Broker.start() as broker:
        yield broker


@pytest.fixture(scope="session")
def data_dir() -> Path:
    """The folder of the real data: $HEADRACE_DATA, else shared/data beside the project."""
    folder = Path(os.environ.get("HEADRACE_DATA") or ROOT.parent / "shared" / "data")
    if not (folder / "fraud_transactions.parquet").exists():
        pytest.skip(f"the real data is not in {folder}: it may not be redistributed; set HEADRACE_DATA to its folder")
    return folder
