"""The dispatcher: errors become one line and an exit code."""

from __future__ import annotations

import argparse
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest

from streams.cli import main as cli
from streams.cli.options import DEFAULT_BOOTSTRAP, add_bootstrap, add_config, add_json, print_json
from streams.config import load_settings
from streams.errors import ConfigError, FatalError, HeadraceError


@pytest.fixture
def command(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """A command `try-out`, whose `run` a test sets."""
    module = ModuleType("streams.cli.try_out")
    vars(module).update(EXAMPLE="headrace try-out --json", add_arguments=add_json, run=lambda args: 0)
    monkeypatch.setitem(sys.modules, "streams.cli.try_out", module)
    monkeypatch.setitem(cli.COMMANDS, "try-out", "do something")
    return module


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (HeadraceError("no room: make some"), 1),
        (ConfigError("--rate -1: not above 0"), 2),
        (FatalError("kafka-away", "no broker for 300 s"), 1),
    ],
)
def test_an_error_is_one_line_and_an_exit_code(
    command: ModuleType, capsys: pytest.CaptureFixture[str], error: HeadraceError, code: int
) -> None:
    def run(args: argparse.Namespace) -> int:
        raise error

    vars(command)["run"] = run
    assert cli.main(["try-out"]) == code
    assert capsys.readouterr().err == f"headrace try-out: {error}\n"


def test_the_command_s_own_exit_code_and_arguments(command: ModuleType) -> None:
    vars(command)["run"] = lambda args: 3 if args.json else 4
    assert cli.main(["try-out", "--json"]) == 3
    assert cli.main(["try-out"]) == 4


def test_an_interrupt_is_130(command: ModuleType) -> None:
    def run(args: argparse.Namespace) -> int:
        raise KeyboardInterrupt

    vars(command)["run"] = run
    assert cli.main(["try-out"]) == 130


def test_a_defect_is_not_hidden(command: ModuleType) -> None:
    def run(args: argparse.Namespace) -> int:
        raise ZeroDivisionError

    vars(command)["run"] = run
    with pytest.raises(ZeroDivisionError):
        cli.main(["try-out"])


@pytest.mark.parametrize("words", [[], ["no-such"], ["try-out", "--no-such"]])
def test_wrong_use_is_2(command: ModuleType, words: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as left:
        cli.main(words)
    assert left.value.code == 2
    assert "usage: headrace" in capsys.readouterr().err


def test_help_shows_the_example(command: ModuleType, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as left:
        cli.main(["try-out", "--help"])
    assert left.value.code == 0
    assert "example: headrace try-out --json" in capsys.readouterr().out


def test_who_reads_our_output_may_leave() -> None:
    code = (
        "import sys, types\n"
        "from streams.cli import main as cli\n"
        "def run(args):\n"
        "    for i in range(100_000): print(i)\n"
        "    return 0\n"
        "module = types.ModuleType('streams.cli.long')\n"
        "vars(module).update(EXAMPLE='', add_arguments=lambda parser: None, run=run)\n"
        "sys.modules['streams.cli.long'] = module\n"
        "cli.COMMANDS['long'] = 'print much'\n"
        "sys.exit(cli.main(['long']))\n"
    )
    process = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    assert process.stdout is not None
    assert process.stderr is not None
    with process.stdout, process.stderr:
        assert process.stdout.readline() == "0\n"
        process.stdout.close()
        assert process.wait(30) == 1
        assert process.stderr.read() == ""


def test_bootstrap_comes_from_the_option_the_environment_the_file_or_the_default(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    def bootstrap(*words: str) -> str:
        parser = argparse.ArgumentParser()
        add_bootstrap(parser)
        add_config(parser)
        args = parser.parse_args(words)
        return load_settings(args.config, overrides={"bootstrap": args.bootstrap}).bootstrap

    file = tmp_path / "headrace.toml"
    file.write_text('bootstrap = "file:9092"')
    monkeypatch.delenv("HEADRACE_BOOTSTRAP", raising=False)
    assert bootstrap() == DEFAULT_BOOTSTRAP
    assert bootstrap("--config", str(file)) == "file:9092"
    monkeypatch.setenv("HEADRACE_BOOTSTRAP", "kafka:19092")
    assert bootstrap("--config", str(file)) == "kafka:19092"
    assert bootstrap("--bootstrap", "other:1", "--config", str(file)) == "other:1"


def test_figures_are_one_line_of_json(capsys: pytest.CaptureFixture[str]) -> None:
    print_json({"received": 2, "rate": None})
    assert capsys.readouterr().out == '{"received": 2, "rate": null}\n'
