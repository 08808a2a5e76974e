"""Settings of Kafka's clients pass through; wrong ones are refused with a clear line, and nothing hangs."""

from __future__ import annotations

from pathlib import Path

import pytest
from cluster import Worker, headrace

from streams.broker import Broker

pytestmark = pytest.mark.kafka


@pytest.mark.parametrize("key", ["no.such.setting", "producer.no.such.setting", "consumer.no.such.setting"])
def test_an_unknown_setting_is_wrong_use(kafka: Broker, tmp_path: Path, key: str) -> None:
    with Worker(kafka.bootstrap, tmp_path, "settings", config=f'[kafka]\n{key} = "1"') as worker:
        assert worker.wait(20) == 2
    [said] = [line for line in worker.log.splitlines() if "No such configuration property" in line]
    assert said.startswith("headrace run: ") and "no.such.setting" in said and "CONFIGURATION.md" in said


def test_tls_against_a_plaintext_listener_fails_with_the_reason(kafka: Broker, tmp_path: Path) -> None:
    with Worker(kafka.bootstrap, tmp_path, "settings", config='[kafka]\nsecurity.protocol = "SSL"') as worker:
        assert worker.wait(40) == 1
    said = worker.log.splitlines()[-1]
    assert "kafka-refused" in said and "security.protocol" in said and kafka.bootstrap in said
    assert "Traceback" not in worker.log


def test_a_setting_reaches_the_client(kafka: Broker, tmp_path: Path) -> None:
    """librdkafka itself checks the range, so it was told."""
    config = tmp_path / "headrace.toml"
    config.write_text("[kafka]\nconsumer.session.timeout.ms = 0\n")
    assert headrace("topics", "create", "--bootstrap", kafka.bootstrap).returncode == 0
    done = headrace(
        "consume",
        "--topic",
        "transactions",
        "--to",
        "-",
        "--count",
        "0",
        "--bootstrap",
        kafka.bootstrap,
        "--config",
        str(config),
    )
    assert done.returncode == 2 and "session.timeout.ms" in done.stderr
