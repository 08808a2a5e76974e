"""The house rules that a linter does not hold: locks in step, contracts that bite, no addresses, commands that fit."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path
from typing import Any

import pytest
import yaml
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from streams.cli import main as cli

ROOT = Path(__file__).resolve().parent.parent
PROJECT: dict[str, Any] = tomllib.loads((ROOT / "pyproject.toml").read_text())
PACKAGES = PROJECT["tool"]["importlinter"]["root_packages"]
LOCKS = ["requirements.lock", "requirements-dev.lock"]


def locked(name: str) -> dict[str, set[str]]:
    """Package -> locked versions; more than one where they differ by Python version."""
    found: dict[str, set[str]] = {}
    for line in (ROOT / name).read_text().splitlines():
        if match := re.match(r"([a-z0-9.-]+)==([^ ;]+)", line):
            found.setdefault(match[1], set()).add(match[2])
    return found


def check(requirements: list[str], lock: str) -> None:
    versions = locked(lock)
    for requirement in map(Requirement, requirements):
        found = versions.get(canonicalize_name(requirement.name))
        assert found, f"{lock} lacks {requirement.name}: make lock"
        assert all(map(requirement.specifier.contains, found)), f"{lock}: {requirement} is not {found}: make lock"


def test_the_locks_hold_all_that_the_project_names() -> None:
    groups = PROJECT["dependency-groups"]
    runtime = PROJECT["project"]["dependencies"] + groups["build"]
    check(runtime, "requirements.lock")
    check(runtime + groups["dev"], "requirements-dev.lock")


def test_the_test_tools_change_no_runtime_version() -> None:
    all_versions = locked("requirements-dev.lock")
    assert {name: all_versions[name] for name in locked("requirements.lock")} == locked("requirements.lock")


@pytest.mark.parametrize("name", [*LOCKS, "streams/kafka_pom.xml", "Dockerfile", ".pre-commit-config.yaml"])
def test_no_address_of_a_registry(name: str) -> None:
    text = (ROOT / name).read_text().replace("http://maven.apache.org/POM/4.0.0", "")
    assert "://" not in text
    assert "index-url" not in text


@pytest.mark.parametrize("name", LOCKS)
def test_every_locked_package_has_its_hashes(name: str) -> None:
    blocks = re.split(r"\n(?=[a-z])", (ROOT / name).read_text().strip())
    assert all("--hash=sha256:" in block for block in blocks)


def lint_imports(folder: Path) -> subprocess.CompletedProcess[str]:
    command = [str(Path(sys.executable).with_name("lint-imports")), "--no-cache"]
    environment = {**os.environ, "PYTHONPATH": str(folder)}
    return subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True)


@pytest.mark.parametrize(
    ("module", "line", "broken"),
    [
        ("features/canary.py", "import time", "features has no clock"),
        ("features/canary.py", "from random import Random", "features has no clock"),
        ("features/canary.py", "import models", "Imports go down only"),
        ("models/canary.py", "import monitoring", "Imports go down only"),
        ("monitoring/canary.py", "import streams.log", "Imports go down only"),
        ("streams/canary.py", "from confluent_kafka import Producer", "Only streams/kafka"),
        ("streams/canary.py", "import faust", "know Faust"),
    ],
)
def test_the_import_contracts_bite(tmp_path: Path, module: str, line: str, broken: str) -> None:
    for package in PACKAGES:
        shutil.copytree(ROOT / package, tmp_path / package, ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(ROOT / "pyproject.toml", tmp_path)
    (tmp_path / module).write_text(line + "\n")
    done = lint_imports(tmp_path)
    assert done.returncode != 0
    assert re.search(rf"{re.escape(broken)}[^\n]* BROKEN", done.stdout), done.stdout + done.stderr


def test_the_kafka_pom_is_packaged() -> None:
    assert "kafka_pom.xml" in PROJECT["tool"]["setuptools"]["package-data"]["streams"]


def test_faust_finds_the_transport_by_its_scheme() -> None:
    points = PROJECT["project"]["entry-points"]["faust.transports"]
    assert set(points) == {"headrace", "memory"}


def test_the_hooks_run_what_make_check_runs() -> None:
    hooks = yaml.safe_load((ROOT / ".pre-commit-config.yaml").read_text())["repos"][0]["hooks"]
    recipe = (ROOT / "Makefile").read_text()
    for hook in hooks:
        tool = hook["entry"].split()[0].removeprefix(".venv/bin/")
        assert f"$(BIN)/{tool}" in recipe


def test_ci_can_be_run() -> None:
    assert os.access(ROOT / ".ci" / "run", os.X_OK)


@pytest.mark.parametrize("name", list(cli.COMMANDS))
def test_every_command_s_example_is_a_right_command_line(name: str) -> None:
    parser = cli.build_parser(name)
    example = parser.parse_args([name, *example_of(name)])
    assert callable(example.run)


def example_of(name: str) -> list[str]:
    module = __import__(f"streams.cli.{name.replace('-', '_')}", fromlist=["EXAMPLE"])
    words: list[str] = module.EXAMPLE.split()
    assert words[:2] == ["headrace", name]
    return words[2:]


def test_help_imports_nothing_that_is_slow() -> None:
    code = (
        "import sys\n"
        "from streams.cli.main import build_parser\n"
        "build_parser().format_help()\n"
        "print(sorted({name.split('.')[0] for name in sys.modules}))"
    )
    loaded = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT).stdout
    for slow in ("numpy", "numba", "pyarrow", "faust", "rich", "lightgbm", "confluent_kafka"):
        assert f"'{slow}'" not in loaded
