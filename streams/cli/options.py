"""Options and output that several commands share."""

from __future__ import annotations

import argparse
import json
from collections.abc import Mapping
from pathlib import Path

__all__ = ["DEFAULT_BOOTSTRAP", "add_bootstrap", "add_config", "add_json", "add_reasons", "port", "print_json"]

DEFAULT_BOOTSTRAP = "127.0.0.1:9092"


def add_bootstrap(parser: argparse.ArgumentParser) -> None:
    """``--bootstrap HOST:PORT[,HOST:PORT]`` or a log URL; None when not given: then `load_settings` decides."""
    parser.add_argument(
        "--bootstrap",
        metavar="HOST:PORT",
        help=f"Kafka to talk to (default: $HEADRACE_BOOTSTRAP, else the --config file's, else {DEFAULT_BOOTSTRAP})",
    )


def add_config(parser: argparse.ArgumentParser) -> None:
    """``--config FILE``: settings of the worker and of Kafka's clients."""
    parser.add_argument("--config", type=Path, metavar="FILE", help="settings as TOML, e.g. headrace.toml")


def add_json(parser: argparse.ArgumentParser) -> None:
    """``--json``: the figures as one JSON object, the last line of stdout."""
    parser.add_argument("--json", action="store_true", help="print the figures as one JSON object, the last line")


def add_reasons(parser: argparse.ArgumentParser) -> None:
    """``--reasons POLICY`` and ``--reasons-max N``; None when not given: then `load_settings` decides."""
    parser.add_argument(
        "--reasons",
        metavar="POLICY",
        help="scores that are explained: all, none, above:THRESHOLD or sample:RATE (default: above:0.5)",
    )
    parser.add_argument(
        "--reasons-max", type=int, metavar="N", help="reasons of a score at most; 0: one for each feature (default: 5)"
    )


def print_json(figures: Mapping[str, object]) -> None:
    """The figures as one line of JSON on stdout."""
    print(json.dumps(figures), flush=True)


def port(text: str) -> int:
    """An argparse type: a TCP port, 0 included (any free one)."""
    try:
        value = int(text)
    except ValueError:
        value = -1
    if not 0 <= value <= 65535:
        raise argparse.ArgumentTypeError(f"{text!r} is no port: give a number from 0 (any free one) to 65535")
    return value
