"""The broker: serves, ends cleanly, survives a crash, never leaves a java behind, says what is missing."""

from __future__ import annotations

import errno
import os
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from streams import kafka_jars
from streams.broker import Broker, BrokerError, free_port
from streams.errors import ConfigError
from streams.kafka_jars import cache_dir, fetch_jars, kafka_available
from streams.log import TP, OutBatch, TopicInfo, connect


@contextmanager
def command(*arguments: object) -> Iterator[subprocess.Popen[str]]:
    """`headrace broker ...` as a process, ended whatever happens."""
    code = "from streams.cli.main import entry; entry()"
    process = subprocess.Popen(
        [sys.executable, "-W", "error", "-c", code, "broker", *map(str, arguments)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        yield process
    finally:
        process.kill()
        process.communicate()


def line_of(process: subprocess.Popen[str]) -> str:
    assert process.stdout is not None
    return process.stdout.readline().strip()


def javas_on(data: Path) -> list[int]:
    """Pids of the processes with this data folder in their command line."""
    found = []
    for entry in Path("/proc").iterdir():
        if not entry.name.isdigit():
            continue
        try:
            words = (entry / "cmdline").read_bytes().split(b"\0")
        except OSError:
            continue
        if b"kafka.Kafka" in words and str(data / "server.properties").encode() in words:
            found.append(int(entry.name))
    return found


def until(condition: Callable[[], bool], timeout_s: float = 10.0) -> bool:
    deadline = time.monotonic() + timeout_s
    while not condition():
        if time.monotonic() > deadline:
            return False
        time.sleep(0.02)
    return True


@pytest.mark.kafka
def test_large_records_survive_a_crash_and_a_clean_restart(tmp_path: Path) -> None:
    value = os.urandom(12_000_000)
    with Broker.start(data=tmp_path) as broker:
        port = broker.port
        kafka_log = connect(f"headrace://{broker.bootstrap}")
        admin, producer = kafka_log.admin(), kafka_log.producer()
        admin.create_topics([TopicInfo("big", 1, "")])
        assert producer.send(OutBatch("big", [value, b"small"])) == 2
        assert producer.flush(30.0) == 0
        producer.close()
        admin.close()
        broker.kill()
        assert broker.pid is None and not javas_on(tmp_path)
        broker.restart()
        assert broker.port == port and broker.pid is not None
        broker.stop()
        broker.restart()
        consumer = connect(f"headrace://{broker.bootstrap}").consumer("reader")
        assert consumer.offset_range(TP("big", 0)) == (0, 2)
        consumer.close()
    assert broker.pid is None and not javas_on(tmp_path)


@pytest.mark.kafka
def test_a_temporary_log_is_removed_and_a_second_stop_is_harmless() -> None:
    broker = Broker.start()
    assert broker.data.exists() and broker.bootstrap == f"127.0.0.1:{broker.port}"
    broker.stop()
    broker.stop()
    assert not broker.data.exists()


@pytest.mark.kafka
def test_java_outlives_the_thread_that_started_it(tmp_path: Path) -> None:
    started: list[Broker] = []
    thread = threading.Thread(target=lambda: started.append(Broker.start(data=tmp_path)))
    thread.start()
    thread.join()
    with started[0] as broker:
        assert broker.wait(0.3) is None, broker.failure()


@pytest.mark.kafka
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_the_command_ends_cleanly_on_a_signal(tmp_path: Path, number: signal.Signals) -> None:
    port = free_port()
    with command("--port", port, "--data", tmp_path) as process:
        assert line_of(process) == f"ready 127.0.0.1:{port}"
        assert len(javas_on(tmp_path)) == 1
        process.send_signal(number)
        _out, errors = process.communicate(timeout=30)
        assert (process.returncode, errors) == (0, "")
        assert not javas_on(tmp_path)


@pytest.mark.kafka
def test_no_java_is_left_when_we_are_killed_and_data_in_use_is_said(tmp_path: Path) -> None:
    with command("--port", 0, "--data", tmp_path) as process:
        assert line_of(process).startswith("ready 127.0.0.1:")
        with pytest.raises(BrokerError, match="in use by another broker: stop that one or choose another --data"):
            Broker.start(data=tmp_path)
        process.kill()
        assert until(lambda: not javas_on(tmp_path))


@pytest.mark.kafka
def test_kafka_s_own_reason_is_shown(tmp_path: Path) -> None:
    with pytest.raises(BrokerError, match=r"num\.io\.threads"):
        Broker.start(data=tmp_path, settings={"num.io.threads": "-1"})


def test_a_port_in_use_is_said_with_the_remedy() -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        with command("--port", port) as process:
            _out, errors = process.communicate(timeout=30)
        assert process.returncode == 1
        assert errors == (
            f"headrace broker: port {port} on 127.0.0.1 is in use: stop what listens there or choose another --port\n"
        )


def test_data_that_is_no_folder_to_write_to_is_wrong_use(tmp_path: Path) -> None:
    file = tmp_path / "file"
    file.touch()
    for data in (file, file / "below", Path("/proc/nothing")):
        with command("--port", 0, "--data", data) as process:
            out, errors = process.communicate(timeout=30)
        assert (process.returncode, out) == (2, "")
        [line] = errors.splitlines()
        assert line.startswith(f"headrace broker: --data {data}: ") and "name a folder" in line


def test_data_without_permission_is_wrong_use(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(**_: object) -> None:
        raise PermissionError(errno.EACCES, "Permission denied")

    # the tests may run as root, to whom nothing is forbidden
    monkeypatch.setattr(tempfile, "TemporaryFile", refuse)
    with pytest.raises(ConfigError, match=r"--data .*: Permission denied; name a folder that you may write to"):
        Broker.start(data=tmp_path)


@pytest.fixture
def bare(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A machine with nothing in PATH but what a test puts in the folder returned, and an empty cache."""
    folder = tmp_path / "bin"
    folder.mkdir()
    monkeypatch.setenv("PATH", str(folder))
    monkeypatch.delenv("JAVA_HOME", raising=False)
    monkeypatch.setenv("HEADRACE_HOME", str(tmp_path / "home"))
    return folder


def put(folder: Path, name: str, script: str) -> None:
    (folder / name).write_text(f"#!/bin/sh\nPATH=/usr/bin:/bin\n{script}\n")
    (folder / name).chmod(0o755)


JAVA_21 = "echo 'openjdk version \"21.0.1\" 2023-10-17' >&2"


def test_no_java(bare: Path) -> None:
    with pytest.raises(BrokerError, match="needs java, none found in PATH: install a Java runtime, version 17"):
        Broker.start()
    assert "install a Java runtime" in (kafka_available() or "")


@pytest.mark.parametrize(
    ("script", "said"),
    [("echo 'java version \"1.8.0_292\"' >&2", "too old"), ("exit 3", "does not work")],
)
def test_java_that_cannot_be_used(bare: Path, script: str, said: str) -> None:
    put(bare, "java", script)
    assert said in (kafka_available() or "")


def test_java_home_comes_first(bare: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    put(bare, "java", JAVA_21)
    monkeypatch.setenv("JAVA_HOME", str(tmp_path / "nothing"))
    assert f"none found in {tmp_path / 'nothing'}" in (kafka_available() or "")


def test_no_mvn(bare: Path) -> None:
    put(bare, "java", JAVA_21)
    assert "install Maven" in (kafka_available() or "")
    with pytest.raises(BrokerError, match="needs mvn"):
        Broker.start()


def test_mvn_without_network(bare: Path) -> None:
    put(bare, "java", JAVA_21)
    put(bare, "mvn", "echo '[ERROR] could not resolve dependencies'; exit 1")
    assert kafka_available() is None
    with pytest.raises(BrokerError, match=r"check the network[^\0]*could not resolve dependencies"):
        fetch_jars(lambda _: None)
    assert not cache_dir().exists()


def test_processes_that_race_fetch_once(bare: Path, tmp_path: Path) -> None:
    put(
        bare,
        "mvn",
        f"echo run >> {tmp_path}/runs; sleep 0.1\n"
        'for a; do case $a in -DoutputDirectory=*) d="${a#*=}"; mkdir "$d"; touch "$d/b.jar" "$d/a.jar";; esac; done',
    )
    found: list[list[Path]] = []
    threads = [threading.Thread(target=lambda: found.append(fetch_jars(lambda _: None))) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found == [[cache_dir() / "a.jar", cache_dir() / "b.jar"]] * 4
    assert (tmp_path / "runs").read_text() == "run\n"
    assert sorted(p.name for p in cache_dir().parent.iterdir()) == ["fetch.lock", cache_dir().name]


def test_another_pom_has_another_folder(bare: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = cache_dir()
    other = tmp_path / "pom.xml"
    other.write_text(kafka_jars.POM.read_text() + "<!-- changed -->")
    monkeypatch.setattr(kafka_jars, "POM", other)
    assert cache_dir() != before and cache_dir().parent == before.parent
