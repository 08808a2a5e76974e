"""A real single-node Apache Kafka (KRaft) as a child process, for people without Docker, tests, the demo, benchmarks.

The first start fetches the jars (`kafka_jars`) and records a class data archive, with which every later start
takes 1.5 s instead of 6 s. Only loopback listeners; nothing is replicated; not for production.
"""

from __future__ import annotations

import base64
import logging
import os
import random
import socket
import struct
import subprocess
import sys
import tempfile
import threading
import time
import uuid
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Self

from streams.errors import ConfigError
from streams.kafka_jars import BrokerError, cache_dir, fetch_jars, find_java, kafka_available, lock

__all__ = ["Broker", "BrokerError", "free_port", "kafka_available"]

log = logging.getLogger(__name__)

HOST = "127.0.0.1"
#: C1 only: faster to start and, measured with runs of 1 M records, no slower.
_QUICK_START = ["-Xms64m", "-Xmx512m", "-XX:+UseSerialGC", "-XX:TieredStopAtLevel=1"]
#: As Kafka's own scripts start it. The small heap above stops the world for 5 to 10 ms twice a second at 1,000
#: records/s, which is its own 3% of the latencies.
_LONG_RUN = [
    "-server", "-Xms1G", "-Xmx1G", "-XX:+UseG1GC", "-XX:MaxGCPauseMillis=20",
    "-XX:InitiatingHeapOccupancyPercent=35", "-XX:+ExplicitGCInvokesConcurrent",
]  # fmt: skip
_JVM = ["-Djava.awt.headless=true"]
SETTINGS = {
    "process.roles": "broker,controller",
    "node.id": "1",
    "controller.listener.names": "CONTROLLER",
    "inter.broker.listener.name": "PLAINTEXT",
    "listener.security.protocol.map": "PLAINTEXT:PLAINTEXT,CONTROLLER:PLAINTEXT",
    "auto.create.topics.enable": "false",
    # A record of 12 MB fits, with room for its batch.
    "message.max.bytes": "16777216",
    # One node: nothing to replicate, few partitions of the internal topics so that the first client is served at once.
    "offsets.topic.replication.factor": "1",
    "offsets.topic.num.partitions": "4",
    "transaction.state.log.replication.factor": "1",
    "transaction.state.log.min.isr": "1",
    "transaction.state.log.num.partitions": "4",
    "share.coordinator.state.topic.replication.factor": "1",
    "share.coordinator.state.topic.min.isr": "1",
    "share.coordinator.state.topic.num.partitions": "1",
    "group.initial.rebalance.delay.ms": "0",
    # Lets a group find a dead member faster than the default minimum of 6 s.
    "group.min.session.timeout.ms": "1000",
    # After a crash the node must wait for its own former session to end before it serves again (default 9 s).
    "broker.session.timeout.ms": "3000",
    "broker.heartbeat.interval.ms": "500",
    # A small machine spends more on handing requests from thread to thread than on the requests: the defaults (3 and 8)
    # had a third more latency at 1,000 records/s.
    "num.network.threads": "1",
    "num.io.threads": "2",
    # The cleaner's default buffer (128 MB) is for large logs and does not fit our heap beside the rest.
    "log.cleaner.dedupe.buffer.size": "8388608",
}
LOG4J2 = """<?xml version="1.0" encoding="UTF-8"?>
<Configuration status="error" shutdownHook="disable">
  <Appenders>
    <Console name="out"><PatternLayout pattern="%d %p %c{1}: %m%n"/></Console>
  </Appenders>
  <Loggers>
    <Root level="warn"><AppenderRef ref="out"/></Root>
  </Loggers>
</Configuration>
"""
#: Runs a command that the system kills when our process dies, whatever it dies of (Linux: PR_SET_PDEATHSIG, SIGKILL).
_GUARD = """
import ctypes, os, sys
if sys.platform == "linux":
    ctypes.CDLL(None).prctl(1, 9, 0, 0, 0)
if os.getppid() == int(sys.argv[1]):
    os.execv(sys.argv[2], sys.argv[2:])
"""
_RECORD = "-XX:ArchiveClassesAtExit="
_START_TIMEOUT_S = 90.0
_STOP_TIMEOUT_S = 30.0
_ATTEMPTS = 3


class Broker:
    """A running broker: ``with Broker.start() as broker: connect_to(broker.bootstrap)``.

    ``data`` keeps the log between starts; without it the log lives in a temporary folder removed by `stop`.
    """

    def __init__(
        self, java: str, port: int, data: Path | None, settings: Mapping[str, str] | None, jvm: Sequence[str]
    ) -> None:
        self._temporary = None if data else tempfile.TemporaryDirectory(prefix="headrace-broker-")
        self.data = Path(self._temporary.name) if self._temporary else Path(data or "").absolute()
        _make_writable(self.data)
        self.port = port
        self.log_file = self.data / "server.log"
        self._settings = dict(settings or {})
        self._java = java
        self._jvm = list(jvm)
        self._process: subprocess.Popen[bytes] | None = None
        self._exited = threading.Event()

    @classmethod
    def start(
        cls,
        port: int = 0,
        data: Path | str | None = None,
        *,
        settings: Mapping[str, str] | None = None,
        long_run: bool = False,
        notify: Callable[[str], None] = log.info,
    ) -> Self:
        """Starts a broker and returns when it serves.

        ``port`` 0 takes a free one; ``settings`` are more server.properties; ``long_run`` is for measuring: slow in
        its first half minute, twice as fast from then on; ``notify`` is told about the first, longer start. Raises
        BrokerError: no java or mvn, port in use, data in use, or Kafka's own reason; ConfigError: ``data`` is no folder
        that can be written to.
        """
        if port and not _port_is_free(port):
            raise BrokerError(f"port {port} on {HOST} is in use: stop what listens there or choose another --port")
        java = find_java()
        jvm = [*_JVM, *(_LONG_RUN if long_run else _QUICK_START), _archive_option(java, notify)]
        broker = cls(java, port, Path(data) if data else None, settings, jvm)
        try:
            broker._run()
        except BaseException:
            broker.stop()
            raise
        return broker

    @property
    def bootstrap(self) -> str:
        """HOST:PORT for clients."""
        return f"{HOST}:{self.port}"

    @property
    def pid(self) -> int | None:
        """Process id of java, None when none runs."""
        return self._process.pid if self._process and not self._exited.is_set() else None

    def wait(self, timeout_s: float | None = None) -> int | None:
        """Waits for java to end by itself; its exit code, or None at the time limit."""
        if self._process is None or not self._exited.wait(timeout_s):
            return None
        return self._process.returncode

    def kill(self) -> None:
        """Ends java with SIGKILL, as a crash would; `restart` goes on with the same data and port."""
        if self._process is not None:
            self._process.kill()
            self._exited.wait()

    def stop(self) -> None:
        """Ends java cleanly (by force after 30 s) and removes a temporary log. May be called twice."""
        self._halt()
        if self._temporary is not None:
            self._temporary.cleanup()

    def restart(self) -> None:
        """Starts java again on the same data and port, after a clean end if it still runs."""
        self._halt()
        self._run()

    def _halt(self) -> None:
        if self._process is None:
            return
        self._process.terminate()
        if not self._exited.wait(_STOP_TIMEOUT_S):
            log.warning("broker %s did not end in %.0f s: killed", self.bootstrap, _STOP_TIMEOUT_S)
            self.kill()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    def _run(self) -> None:
        fixed = self.port
        for attempt in range(1, _ATTEMPTS + 1):
            self.port = fixed or free_port()
            properties = self._write_settings(controller=free_port())
            command = [self._java, *self._jvm, f"-Dlog4j2.configurationFile={self.data / 'log4j2.xml'}", "-cp"]
            command.append(os.pathsep.join(str(jar) for jar in fetch_jars(log.info)))
            if not (self.data / "log" / "meta.properties").exists():
                self._format(command, properties)
            self._spawn([*command, "kafka.Kafka", str(properties)])
            failure = self._await_ready()
            if failure is None:
                return
            # A port we had found free was taken in between: find another. Any other failure would come again.
            taken = "Address already in use" in failure and (not fixed or _port_is_free(fixed))
            if not taken or attempt == _ATTEMPTS:
                raise BrokerError(failure)

    def _write_settings(self, controller: int) -> Path:
        (self.data / "log4j2.xml").write_text(LOG4J2)
        settings = {
            **SETTINGS,
            "listeners": f"PLAINTEXT://{HOST}:{self.port},CONTROLLER://{HOST}:{controller}",
            "advertised.listeners": f"PLAINTEXT://{HOST}:{self.port}",
            # A fixed quorum of one: its port may differ at each start, which one stored in the log may not.
            "controller.quorum.voters": f"{SETTINGS['node.id']}@{HOST}:{controller}",
            "log.dirs": str(self.data / "log"),
            **self._settings,
        }
        properties = self.data / "server.properties"
        properties.write_text("".join(f"{name}={value}\n" for name, value in settings.items()))
        return properties

    def _format(self, command: list[str], properties: Path) -> None:
        arguments = ["format", "--ignore-formatted", "--cluster-id", _cluster_id(), "--config", str(properties)]
        command = [part for part in command if not part.startswith(_RECORD)]
        done = subprocess.run([*command, "kafka.tools.StorageTool", *arguments], capture_output=True, text=True)
        if done.returncode != 0:
            raise BrokerError(f"{self.data} could not be made a Kafka log: {(done.stdout + done.stderr).strip()}")

    def _spawn(self, command: list[str]) -> None:
        """Starts java from a thread that lives as long: the death signal comes when the *thread* that forked ends."""
        guarded = [sys.executable, "-I", "-S", "-c", _GUARD, str(os.getpid()), *command]
        started: Future[subprocess.Popen[bytes]] = Future()
        exited = threading.Event()

        def keep() -> None:
            try:
                with self.log_file.open("wb") as out:
                    # A session of its own: Ctrl-C in the terminal is for us, who end our clients before the broker.
                    process = subprocess.Popen(
                        guarded, stdin=subprocess.DEVNULL, stdout=out, stderr=out, start_new_session=True
                    )
            except OSError as error:
                started.set_exception(error)
                return
            started.set_result(process)
            process.wait()
            exited.set()

        threading.Thread(target=keep, name="headrace-broker", daemon=True).start()
        self._process, self._exited = started.result(), exited

    def _await_ready(self) -> str | None:
        """None once clients are served, else why they never will be."""
        deadline = time.monotonic() + _START_TIMEOUT_S
        while time.monotonic() < deadline:
            if self._exited.wait(0.02):
                return f"Kafka ended while starting: {self.failure()}"
            with suppress(OSError, struct.error):
                if _serves(self.port):
                    return None
        reason = self.failure()
        self.kill()
        return f"Kafka was not ready in {_START_TIMEOUT_S:.0f} s: {reason}"

    def failure(self) -> str:
        """What Kafka's log says went wrong, in a form to show."""
        text = self.log_file.read_text(errors="replace")
        if "Failed to acquire lock on file" in text:
            return f"{self.data} is in use by another broker: stop that one or choose another --data"
        lines = [line for line in text.splitlines() if "ERROR" in line or "Exception" in line] or text.splitlines()
        return "\n".join(lines[-8:]) or "it said nothing"


def _make_writable(folder: Path) -> None:
    """Makes the folder where it is missing; ConfigError where that cannot be, or nothing can be written in it."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        why = "not a folder" if isinstance(error, FileExistsError | NotADirectoryError) else error.strerror
        raise ConfigError(f"--data {folder}: {why}; name a folder that you may write to, or one to be made") from error


def free_port() -> int:
    """A port nobody listens on, below the range from which the system gives ports to outgoing connections."""
    for port in random.sample(range(20_000, 32_000), k=200):
        if _port_is_free(port):
            return port
    raise BrokerError(f"no free port between 20000 and 32000 on {HOST}: stop some of the servers there")


def _port_is_free(port: int) -> bool:
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((HOST, port))
        except OSError:
            return False
    return True


def _cluster_id() -> str:
    """A random id as Kafka writes them; one that began with a dash would read as an option."""
    return base64.urlsafe_b64encode(uuid.uuid4().bytes).decode().rstrip("=").replace("-", "A")


def _serves(port: int) -> bool:
    """Whether the broker knows itself (Metadata v5) and hands out producer ids (InitProducerId v1).

    Spoken by hand, since only streams/kafka*.py know Kafka's clients, which also would log each refused connection.
    """
    with socket.create_connection((HOST, port), timeout=1) as connection:
        connection.settimeout(2)
        _throttle, brokers = struct.unpack_from(">ii", _ask(connection, 3, 5, struct.pack(">ib", 0, 0)))
        if brokers < 1:
            return False
        _throttle, error = struct.unpack_from(">ih", _ask(connection, 22, 1, struct.pack(">hi", -1, 1000)))
        return bool(error == 0)


def _ask(connection: socket.socket, api: int, version: int, body: bytes) -> bytes:
    """One request of Kafka's protocol, the answer without its correlation id."""
    client = b"headrace"
    request = struct.pack(">hhih", api, version, 1, len(client)) + client + body
    connection.sendall(struct.pack(">i", len(request)) + request)
    with connection.makefile("rb") as answer:
        (length,) = struct.unpack(">i", answer.read(4))
        return answer.read(length)[4:]


def _archive_option(java: str, notify: Callable[[str], None]) -> str:
    """The java option that uses the archive of loaded classes, recorded by one start and end if there is none yet."""
    jars = fetch_jars(notify)
    archive = cache_dir() / "classes.jsa"
    if not archive.exists():
        with lock("archive"):
            if not archive.exists():
                notify(f"preparing Apache Kafka ({len(jars)} jars) for quick starts, once")
                _record_archive(java, archive)
    return f"-XX:SharedArchiveFile={archive}"


def _record_archive(java: str, archive: Path) -> None:
    recorded = archive.with_suffix(".new")
    trainer = Broker(java, 0, None, None, [*_JVM, *_QUICK_START, f"{_RECORD}{recorded}"])
    try:
        trainer._run()
    finally:
        trainer.stop()
    if recorded.exists():
        recorded.replace(archive)
