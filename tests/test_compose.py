"""docker-compose.yml and Dockerfile, checked as far as can be without an engine.

The schema of the compose specification, Dockerfile lint, our own command lines against our own parser, and the
broker's settings by Kafka itself.
"""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from streams.broker import Broker, free_port
from streams.cli.main import COMMANDS, build_parser
from streams.kafka_jars import kafka_version

ROOT = Path(__file__).resolve().parent.parent
COMPOSE: dict[str, Any] = yaml.safe_load((ROOT / "docker-compose.yml").read_text())
SERVICES: dict[str, dict[str, Any]] = COMPOSE["services"]
OURS = [name for name, service in SERVICES.items() if service.get("image") == "headrace"]
DOCKERFILE = (ROOT / "Dockerfile").read_text()


def run(*command: str | Path) -> None:
    done = subprocess.run([*command], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr


def instructions(name: str) -> Iterator[str]:
    joined = re.sub(r"\\\n", " ", DOCKERFILE)
    return (line.removeprefix(name).strip() for line in joined.splitlines() if line.startswith(f"{name} "))


def test_the_compose_file_is_by_the_specification() -> None:
    run(sys.executable, "-m", "check_jsonschema", "--builtin-schema", "vendor.compose-spec", "docker-compose.yml")


def test_docker_compose_reads_it() -> None:
    if shutil.which("docker") is None:
        pytest.skip("no docker client here")
    if subprocess.run(["docker", "compose", "version"], capture_output=True).returncode != 0:
        pytest.skip("the docker client here has no compose plugin")
    run("docker", "compose", "config", "--quiet")


def test_it_has_all_five_parts() -> None:
    assert sorted(SERVICES) == ["consumer", "kafka", "producer", "topics", "worker"]
    assert sorted(OURS) == ["consumer", "producer", "topics", "worker"]


@pytest.mark.parametrize("name", OURS)
def test_our_commands_are_commands(name: str) -> None:
    command: list[str] = SERVICES[name]["command"]
    assert command[0] in COMMANDS
    assert build_parser(command[0]).parse_args(command).command == command[0]


@pytest.mark.parametrize("name", list(SERVICES))
def test_what_a_service_refers_to_is_there(name: str) -> None:
    service = SERVICES[name]
    for other, dependency in service.get("depends_on", {}).items():
        wanted = dependency["condition"]
        assert wanted != "service_healthy" or "test" in SERVICES[other]["healthcheck"]
        assert wanted != "service_completed_successfully" or SERVICES[other]["command"][:2] == ["topics", "create"]
    for volume in service.get("volumes", []):
        assert volume.split(":")[0] in COMPOSE["volumes"]


def test_ports_are_open_to_this_machine_only() -> None:
    ports = [port for service in SERVICES.values() for port in service.get("ports", [])]
    assert ports == ["127.0.0.1:9092:9092"]


def test_clients_are_given_an_address_that_the_broker_listens_on_and_they_can_reach() -> None:
    kafka = SERVICES["kafka"]["environment"]
    listens = dict(item.split("://:") for item in kafka["KAFKA_LISTENERS"].split(","))
    told = dict(item.split("://") for item in kafka["KAFKA_ADVERTISED_LISTENERS"].split(","))
    assert told == {"INSIDE": f"kafka:{listens['INSIDE']}", "HOST": f"localhost:{listens['HOST']}"}
    assert {SERVICES[name]["environment"]["HEADRACE_BOOTSTRAP"] for name in OURS} == {told["INSIDE"]}


def test_it_runs_the_kafka_that_we_test_with() -> None:
    assert SERVICES["kafka"]["image"] == f"apache/kafka:{kafka_version()}"


@pytest.mark.kafka
def test_kafka_takes_these_settings(tmp_path: Path) -> None:
    def setting(name: str) -> str:
        return name.removeprefix("KAFKA_").lower().replace("_", ".")

    settings = {setting(name): str(value) for name, value in SERVICES["kafka"]["environment"].items()}
    settings["log.dirs"] = str(tmp_path / "log")
    inside, host, controller = (free_port() for _ in range(3))
    for name in ("listeners", "advertised.listeners", "controller.quorum.voters"):
        # Other ports and hosts, since this is not the container's network; all else as it is there.
        for there, here in ((":19092", f":{inside}"), (":9092", f":{host}"), (":9093", f":{controller}")):
            settings[name] = settings[name].replace(there, here).replace("kafka:", "127.0.0.1:")
    with Broker.start(host, tmp_path, settings=settings) as broker:
        assert broker.bootstrap == f"127.0.0.1:{host}"


def test_the_dockerfile_is_clean() -> None:
    run(Path(sys.executable).with_name("hadolint"), "Dockerfile")


def test_the_image_has_two_stages_and_no_root() -> None:
    assert list(instructions("FROM")) == ["python:3.11-slim AS build", "python:3.11-slim"]
    assert list(instructions("USER")) == ["10001"]
    assert DOCKERFILE.index("USER 10001") > DOCKERFILE.rindex("\nRUN ")
    assert "useradd --system --uid 10001" in DOCKERFILE


def test_the_image_s_commands_are_commands() -> None:
    words = next(instructions("CMD"))
    for command in (words_of(words), words_of(next(instructions("HEALTHCHECK")).split("CMD ")[1])[1:]):
        assert build_parser(command[0]).parse_args(command).command == command[0]
    assert words_of(next(instructions("ENTRYPOINT"))) == ["headrace"]


def words_of(text: str) -> list[str]:
    value: list[str] = yaml.safe_load(text)
    return value


def test_all_that_the_image_copies_is_there_and_not_ignored() -> None:
    allowed = {line.removeprefix("!") for line in (ROOT / ".dockerignore").read_text().splitlines() if line[:1] == "!"}
    for words in instructions("COPY"):
        if words.startswith("--from"):
            continue
        for source in words.split()[:-1]:
            assert source.removeprefix("./") in allowed
            assert (ROOT / source).exists(), source
