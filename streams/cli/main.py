"""The `headrace` command: finds the command, runs it, turns errors into one line and an exit code.

A command is a module of this package with its name (``-`` written ``_``), which has

- ``EXAMPLE``: a command line to show in its help;
- ``add_arguments(parser)``: adds its options;
- ``run(args) -> int``: does it and returns the exit code; raises HeadraceError for what a person can mend.

Only the module of the command that is asked for is imported, and this one imports nothing that is slow, so that
``headrace --help`` answers at once.
"""

from __future__ import annotations

import argparse
import importlib
import importlib.metadata
import logging
import os
import sys
from collections.abc import Sequence
from typing import NoReturn

from models.errors import ModelError
from streams.errors import EXIT_FAILED, EXIT_USAGE, ConfigError, HeadraceError
from streams.process_end import end_with

__all__ = ["COMMANDS", "build_parser", "entry", "main"]

EXIT_INTERRUPTED = 130

#: Every command with its summary, in the order of the help.
COMMANDS = {
    "demo": "both pipelines on this machine: simulated payments and clicks in, scores and lists out, live",
    "run": "run one worker",
    "topics": "create or list the topics of all pipelines",
    "produce": "send the events of a file to a topic",
    "consume": "write the records of a topic to a file",
    "features": "compute the features of event files, offline, by the same stages",
    "train": "train a model on event files and package it",
    "models": "list, show, add, promote and roll back model packages",
    "score": "score event files with a packaged model, offline, by the same stages",
    "verify": "replay each stage from its own input log and compare with what the log holds",
    "replay": "a range of the log again with another model, threshold or feature set, beside what was served",
    "bootstrap": "give a new group the state of event files, and the seam from which it reads the topics",
    "bench": "measure: throughput, latency, predictors, features",
    "alerts": "list and explain what the monitor has raised",
    "control": "act on alerts by policy: update, retrain, promote on evidence; approve, reject, freeze",
    "report": "what the monitor knows of a day or a range, as a page: then and now, performance, alerts",
    "items": "withdraw items from all recommendations, and take that back",
    "dead-letters": "list, show and retry the records that could not be read",
    "simulate": "send simulated card payments and labels to Kafka, at a rate",
    "broker": "start a real single-node Apache Kafka in the foreground, without Docker",
}


class _Version(argparse.Action):
    """Looks the version up only when it is asked for: that reads the installed packages."""

    def __call__(self, parser: argparse.ArgumentParser, *_unused: object) -> None:
        parser.exit(message=f"headrace {importlib.metadata.version('headrace')}\n")


def build_parser(command: str | None = None) -> argparse.ArgumentParser:
    """The parser of all commands, with the options of ``command`` only."""
    parser = argparse.ArgumentParser(
        prog="headrace",
        description="Kafka events in, windowed features and LightGBM scores out.",
        epilog="example: headrace demo --seconds 30",
    )
    parser.add_argument("--version", action=_Version, nargs=0, help="show the version and leave")
    commands = parser.add_subparsers(dest="command", metavar="COMMAND", required=True)
    for name, summary in COMMANDS.items():
        sub = commands.add_parser(name, help=summary, description=summary[0].upper() + summary[1:] + ".")
        if name == command:
            module = importlib.import_module(f"streams.cli.{name.replace('-', '_')}")
            module.add_arguments(sub)
            sub.epilog = f"example: {module.EXAMPLE}"
            sub.set_defaults(run=module.run)
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Runs one command line; returns its exit code: 0 fine, 1 failed, 2 wrong use, 70 a stage hung."""
    words = sys.argv[1:] if argv is None else list(argv)
    asked = next((word for word in words if not word.startswith("-")), None)
    args = build_parser(asked).parse_args(words)
    logging.basicConfig(level=logging.WARNING, format="%(asctime)s %(levelname)s %(name)s: %(message)s")
    try:
        code: int = args.run(args)
        sys.stdout.flush()
        return code
    except (HeadraceError, ModelError) as error:
        print(f"headrace {args.command}: {error}", file=sys.stderr)
        if isinstance(error, ConfigError):
            return EXIT_USAGE
        return EXIT_FAILED
    except KeyboardInterrupt:
        return EXIT_INTERRUPTED
    except BrokenPipeError:
        # Who read our output has left (`| head`); keep the interpreter's last flush from failing on it too.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return EXIT_FAILED


def entry() -> NoReturn:
    """The `headrace` command as a process."""
    end_with(main)
