"""Settings: defaults, file, environment, command line, each over the one before; checked before anything connects."""

from __future__ import annotations

from dataclasses import fields
from pathlib import Path
from typing import Any

import pytest

from models.explain_policy import ReasonsPolicy
from streams.config import Settings, load_settings
from streams.errors import ConfigError


def toml(folder: Path, text: str) -> Path:
    path = folder / "headrace.toml"
    path.write_text(text)
    return path


def test_what_is_nearer_wins(tmp_path: Path) -> None:
    path = toml(tmp_path, 'group = "file"\npartitions = 8\nmodels = "m"\n')
    env = {"HEADRACE_GROUP": "environment", "HEADRACE_MODELS": "", "HEADRACE_OTHER": "1"}
    got = load_settings(path, env, {"partitions": None, "order": "event_time"})
    assert (got.group, got.partitions, got.models, got.order) == ("environment", 8, "m", "event_time")
    assert load_settings(path, env, {"group": "option"}).group == "option"
    assert load_settings(None, {}, defaults={"group": "of the command", "partitions": 2}).group == "of the command"
    assert load_settings(path, {}, defaults={"group": "of the command"}).group == "file"
    assert load_settings(None, {}) == Settings()


def test_transactions_are_committed_more_often(tmp_path: Path) -> None:
    assert load_settings(None, {}).commit_interval_ms == 1000
    assert load_settings(None, {"HEADRACE_DELIVERY": "exactly_once"}).commit_interval_ms == 100
    path = toml(tmp_path, 'commit_interval_ms = 250\ndelivery = "exactly_once"\n')
    assert load_settings(path, {}).commit_interval_ms == 250


def test_which_scores_are_explained(tmp_path: Path) -> None:
    assert load_settings(None, {}).reasons_policy() == ReasonsPolicy("above", 0.5, 5)
    path = toml(tmp_path, 'reasons = "sample:0.25"\nreasons_max = 0\n')
    assert load_settings(path, {}).reasons_policy() == ReasonsPolicy("sample", 0.25, 0)


def test_the_environment_gives_numbers_and_flags() -> None:
    env = {"HEADRACE_PARTITIONS": "12", "HEADRACE_LOG_FEATURES": "FALSE", "HEADRACE_BATCH_RECORDS": "1"}
    got = load_settings(None, env)
    assert (got.partitions, got.log_features, got.batch_records) == (12, False, 1)
    assert load_settings(None, {"HEADRACE_EXPLORE": "0.05"}).explore == 0.05


@pytest.mark.parametrize(
    ("text", "named"),
    [
        ("partition = 4", "setting partition: not known; known are bootstrap"),
        ('partitions = "four"', "setting partitions: 'four' is not a whole number"),
        ("partitions = 1.5", "setting partitions: 1.5 is not a whole number"),
        ("partitions = true", "setting partitions: True is not a whole number"),
        ("partitions = 0", "setting partitions: 0 is below 1"),
        ("commit_interval_ms = 0", "setting commit_interval_ms: 0 is below 10"),
        ('order = "time"', "setting order: 'time' is not one of arrival, event_time"),
        ('delivery = "twice"', "setting delivery: 'twice' is not one of at_least_once, exactly_once"),
        ('[kafka]\nproducer.transactional.id = "x"', "kafka.producer.transactional.id: 'x' would make every producer"),
        ('reasons = "above"', "setting reasons: 'above' does not say which scores are explained; write all, none"),
        ('reasons = "sample:2"', "setting reasons: 'sample:2' does not .* the rate of sample is 0 to 1"),
        ("reasons = 0.5", "setting reasons: 0.5 is not text"),
        ("reasons_max = -1", "setting reasons_max: -1 is below 0"),
        ("log_features = 3", "setting log_features: 3 is neither true nor false"),
        ("group = 5", "setting group: 5 is not text"),
        ('explore = "often"', "setting explore: 'often' is not a number; recommend: share of lists"),
        ("explore = nan", "setting explore: nan is not a number"),
        ("explore = true", "setting explore: True is not a number"),
        ("explore = -0.1", "setting explore: -0.1 is below 0"),
        ('kafka = "x"', r"setting kafka: 'x' is not a table; write \[kafka\]"),
        ("[[", "not TOML"),
        ('[kafka]\n"sasl.password" = "${env:NOT_THERE_9}"', "kafka.sasl.password: environment variable NOT_THERE_9"),
        ('[kafka]\n"sasl.password" = "${file:/not/there}"', "kafka.sasl.password: cannot read /not/there"),
    ],
)
def test_what_cannot_be_used_is_named_with_its_value(tmp_path: Path, text: str, named: str) -> None:
    with pytest.raises(ConfigError, match=named):
        load_settings(toml(tmp_path, text), {}).kafka_config()


def test_a_file_that_is_not_there_or_not_text(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="check the path"):
        load_settings(tmp_path / "no.toml", {})
    (tmp_path / "binary.toml").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(ConfigError, match="not TOML"):
        load_settings(tmp_path / "binary.toml", {})


@pytest.mark.parametrize(
    "text",
    [
        '[kafka]\nsecurity.protocol = "SSL"\nproducer.linger.ms = 5\nconsumer.enable.partition.eof = true',
        '[kafka]\n"security.protocol" = "SSL"\n"producer.linger.ms" = 5\n"consumer.enable.partition.eof" = true',
    ],
)
def test_librdkafkas_settings_pass_through_with_and_without_quotes(tmp_path: Path, text: str) -> None:
    got = load_settings(toml(tmp_path, text), {}).kafka_config()
    expected: dict[str, Any] = {
        "security.protocol": "SSL",
        "producer.linger.ms": 5,
        "consumer.enable.partition.eof": True,
    }
    assert expected.items() <= got.items()


def test_secrets_come_from_the_environment_and_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("KAFKA_USER_9", "me")
    secret = tmp_path / "secret"
    secret.write_text("p@ss\n")
    text = f'[kafka]\n"sasl.username" = "${{env:KAFKA_USER_9}}"\n"sasl.password" = "${{file:{secret}}}"'
    got = load_settings(toml(tmp_path, text), {})
    assert got.kafka_config()["sasl.username"] == "me"
    assert got.kafka_config()["sasl.password"] == "p@ss"
    assert "p@ss" not in repr(got)


def test_the_clients_poll_interval_is_the_watchdogs() -> None:
    got = load_settings(None, {"HEADRACE_MAX_POLL_INTERVAL_MS": "60000"})
    assert got.kafka_config()["consumer.max.poll.interval.ms"] == 60_000


@pytest.mark.parametrize(
    ("bootstrap", "url"),
    [("a:1,b:2", "headrace://a:1,b:2"), ("memory://x", "memory://x"), ("headrace://a:1", "headrace://a:1")],
)
def test_the_logs_url(bootstrap: str, url: str) -> None:
    assert Settings(bootstrap=bootstrap).log_url() == url


def test_every_setting_says_what_it_is() -> None:
    assert all(spec.metadata["help"] for spec in fields(Settings))
