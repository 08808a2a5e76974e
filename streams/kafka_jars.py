"""Apache Kafka's jars: fetched once with Maven by `kafka_pom.xml`, kept in the cache directory, run with plain java."""

from __future__ import annotations

import fcntl
import hashlib
import os
import re
import shutil
import subprocess
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from xml.etree import ElementTree

from streams.errors import HeadraceError

__all__ = [
    "BrokerError",
    "cache_dir",
    "fetch_jars",
    "find_java",
    "home_dir",
    "kafka_available",
    "kafka_version",
    "lock",
]

POM = Path(__file__).with_name("kafka_pom.xml")
JAVA_MIN = 17
_FETCH_TIMEOUT_S = 600
_NEED_JAVA = (
    f"install a Java runtime, version {JAVA_MIN} or newer (Debian: apt-get install default-jre-headless), "
    "or set JAVA_HOME"
)
_NEED_MVN = "install Maven (Debian: apt-get install maven), which fetches Kafka's jars once"


class BrokerError(HeadraceError):
    """The broker cannot be installed or started; the text says why and what to do."""


def kafka_version() -> str:
    """The version of Apache Kafka that the pom names."""
    found = ElementTree.parse(POM).findtext(".//{*}kafka.version")
    assert found is not None, f"{POM}: no kafka.version"
    return found


def home_dir() -> Path:
    """Where headrace keeps what it can fetch again: $HEADRACE_HOME, else headrace in the user's cache directory."""
    if home := os.environ.get("HEADRACE_HOME"):
        return Path(home)
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "headrace"


def cache_dir() -> Path:
    """The folder of the jars of this pom: another pom has another folder, so what is there is always right."""
    digest = hashlib.sha256(POM.read_bytes()).hexdigest()[:8]
    return home_dir() / f"kafka-{kafka_version()}-{digest}"


def find_java() -> str:
    """Path of a java that can run the broker. Raises BrokerError with the remedy."""
    home = os.environ.get("JAVA_HOME")
    java = shutil.which("java", path=f"{home}/bin") if home else shutil.which("java")
    if java is None:
        raise BrokerError(f"the broker needs java, none found in {home or 'PATH'}: {_NEED_JAVA}")
    try:
        shown = subprocess.run([java, "-version"], capture_output=True, text=True, timeout=60, check=True).stderr
    except (OSError, subprocess.SubprocessError) as error:
        raise BrokerError(f"{java} -version does not work ({error}): {_NEED_JAVA}") from error
    match = re.search(r'version "(\d+)', shown)
    if match is None or int(match[1]) < JAVA_MIN:
        raise BrokerError(f"{java} is too old ({shown.splitlines()[0] if shown else 'unknown'}): {_NEED_JAVA}")
    return java


def kafka_available() -> str | None:
    """Why no broker can be started here, or None if one can."""
    try:
        find_java()
    except BrokerError as error:
        return str(error)
    if not cache_dir().exists() and shutil.which("mvn") is None:
        return f"the broker needs mvn, none found in PATH: {_NEED_MVN}"
    return None


@contextmanager
def lock(name: str) -> Iterator[None]:
    """One process at a time on this machine, freed by the system if the holder dies."""
    home_dir().mkdir(parents=True, exist_ok=True)
    with (home_dir() / f"{name}.lock").open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def fetch_jars(notify: Callable[[str], None]) -> list[Path]:
    """The jars, sorted; fetched first if they are not there. Processes may race. Raises BrokerError."""
    target = cache_dir()
    if not target.exists():
        with lock("fetch"):
            if not target.exists():
                _fetch(target, notify)
    return sorted(target.glob("*.jar"))


def _fetch(target: Path, notify: Callable[[str], None]) -> None:
    mvn = shutil.which("mvn")
    if mvn is None:
        raise BrokerError(f"the broker needs mvn, none found in PATH: {_NEED_MVN}")
    notify(f"fetching Apache Kafka {kafka_version()} (about 45 MB, once) to {target}")
    with tempfile.TemporaryDirectory(dir=target.parent, prefix="fetch-") as scratch:
        jars = Path(scratch, "jars")
        goal = ["dependency:copy-dependencies", "-DincludeScope=runtime", f"-DoutputDirectory={jars}"]
        command = [mvn, "-q", "-B", "-C", "-Dstyle.color=never", "-f", str(POM), *goal]
        try:
            done = subprocess.run(
                command, capture_output=True, text=True, stdin=subprocess.DEVNULL, timeout=_FETCH_TIMEOUT_S
            )
        except subprocess.TimeoutExpired as error:
            raise BrokerError(
                f"mvn did not fetch Kafka's jars in {_FETCH_TIMEOUT_S} s: check the network and the mirrors in "
                "Maven's settings.xml, then try again"
            ) from error
        if done.returncode != 0:
            said = "\n".join((done.stdout + done.stderr).strip().splitlines()[:12])
            raise BrokerError(
                "mvn could not fetch Kafka's jars: check the network and the mirrors in Maven's settings.xml, "
                f"then try again; mvn said:\n{said}"
            )
        jars.rename(target)
