"""``headrace run --pipeline all``: a process for each pipeline, which start, end and fail together."""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from streams.cli.options import print_json
from streams.demo_children import child_command
from streams.errors import EXIT_FAILED, EXIT_OK, ConfigError
from streams.web_address import Address

__all__ = ["run_all"]

_POLL_S = 0.1
#: for all workers to end, more than they need to drain; who has not by then is killed
_END_S = 60.0
#: for the last lines of one that has ended; a child of its own may hold its stdout for longer
_LINES_S = 5.0
#: options that are the same for all, by attribute; flags have no value
_PASSED = ("bootstrap", "config", "delivery", "checkpoints", "partitions")
#: those that only the fraud pipeline knows
_OF_FRAUD = ("models", "order", "set", "shed", "reasons", "reasons_max")
#: which packages tell what models were made on
_OF_MONITOR = ("models",)


class _Worker:
    """A child and what it says on stdout; its log is on our stderr."""

    def __init__(self, pipeline: str, words: Sequence[str], environment: Mapping[str, str]) -> None:
        self.pipeline = pipeline
        self.ready = threading.Event()
        self.last = ""
        #: figures it has printed, and how many it was asked for
        self.reports = self.wanted = 0
        # a session of its own: Ctrl-C in the terminal is for us, who end all in order
        self.process = subprocess.Popen(
            child_command("streams.cli.main", words),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            text=True,
            env={**os.environ, **environment},
            start_new_session=True,
        )
        self._reader = threading.Thread(target=self._read, name=f"headrace-{pipeline}", daemon=True)
        self._reader.start()

    def _read(self) -> None:
        assert self.process.stdout is not None
        with self.process.stdout as lines:
            for line in lines:
                if line == "ready\n":
                    self.ready.set()
                elif line.startswith("web "):
                    print(f"{line.rstrip()} {self.pipeline}", flush=True)
                else:
                    self.last = line.rstrip()
                    self.reports += 1

    def ask(self) -> None:
        """For its figures so far. Before it is ready, the signal would end it."""
        if self.ready.is_set() and self.process.poll() is None:
            self.wanted = self.reports + 1
            self.process.send_signal(signal.SIGUSR1)

    def end(self) -> None:
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGTERM)

    def wait(self, timeout_s: float) -> int:
        try:
            code = self.process.wait(timeout_s)
        except subprocess.TimeoutExpired:
            print(f"{self.pipeline}: has not ended in {_END_S:.0f} s: killed", file=sys.stderr, flush=True)
            self.process.kill()
            code = self.process.wait()
        self._reader.join(_LINES_S)
        return code


def words_of(pipeline: str, args: argparse.Namespace) -> list[str]:
    """The command line of one pipeline's worker."""
    words = ["run", "--pipeline", pipeline, "--json"]
    names = _PASSED + {"fraud": _OF_FRAUD, "monitor": _OF_MONITOR}.get(pipeline, ())
    for name in names:
        value = getattr(args, name)
        if value is not None:
            words += [f"--{name.replace('_', '-')}", str(value)]
    words += ["--group", f"{args.group or 'headrace'}-{pipeline}"]
    return [*words, "--monitor"] if pipeline == "fraud" else words


def web_words(page: Address | None, args: argparse.Namespace) -> list[str]:
    """What the command line has of its page."""
    if page is None:
        return []
    return ["--web", str(page), *(["--web-remote"] if args.web_remote else [])]


def pages_of(args: argparse.Namespace, pipelines: Sequence[str]) -> dict[str, Address]:
    """Where the page of each pipeline is: of the first where the settings say, of the others at the ports behind; empty
    where none has one. ConfigError: there are not so many."""
    from streams.config import load_settings

    web = load_settings(args.config, overrides={"web_address": args.web}).web_address
    first = Address.parse(web)
    if first is None:
        return {}
    # each its own free one, where any is meant
    ports = [first.port + i if first.port else 0 for i in range(len(pipelines))]
    if ports[-1] > 65_535:
        raise ConfigError(f"--web {web}: each of {len(pipelines)} pipelines has a port of its own; give a lower one")
    return {pipeline: Address(first.host, port) for pipeline, port in zip(pipelines, ports, strict=True)}


def check(args: argparse.Namespace) -> None:
    """ConfigError: settings that cannot be those of several workers."""
    from streams.cli.registry import check_champion
    from streams.config import load_settings

    overrides = {"bootstrap": args.bootstrap, "models": args.models, "feature_set": args.set}
    settings = load_settings(args.config, overrides=overrides, defaults={"group": ""})
    if settings.log_url().startswith("memory://"):
        raise ConfigError(
            f"--pipeline all: {settings.bootstrap} lives within one process, and each pipeline has one of its own; "
            "name a Kafka broker with --bootstrap"
        )
    if settings.group:
        raise ConfigError(
            f"setting group: {settings.group} would be the group of every pipeline; take it out and give --group "
            "PREFIX, which with --pipeline all is what comes before -PIPELINE"
        )
    if settings.transactional_id:
        raise ConfigError("setting transactional_id: each worker needs its own; take it out where --pipeline is all")
    check_champion(settings)


def run_all(args: argparse.Namespace, pipelines: Sequence[str]) -> int:
    """Prints ``ready`` once all are, on SIGUSR1 the figures so far. When one ends the others are ended; returns the
    first exit code that is not 0."""
    check(args)
    pages = pages_of(args, pipelines)
    ports = ",".join(f"{pipeline}={page.port}" for pipeline, page in pages.items() if page.port)
    stopping, asked = threading.Event(), threading.Event()
    with _signals(stopping, asked):
        workers = [
            _Worker(
                pipeline,
                words_of(pipeline, args) + web_words(pages.get(pipeline), args),
                {"HEADRACE_WEB_PEERS": ports},
            )
            for pipeline in pipelines
        ]
        told = asking = False
        while not stopping.wait(_POLL_S) and all(worker.process.poll() is None for worker in workers):
            if not told and all(worker.ready.is_set() for worker in workers):
                told = True
                print("ready", flush=True)
            if asked.is_set():
                asked.clear()
                asking = True
                for worker in workers:
                    worker.ask()
            if asking and all(worker.reports >= worker.wanted for worker in workers):
                asking = False
                _report(workers, args.json)
        # who ended by itself comes first
        codes = [_exit_code(worker.process.poll(), stopping.is_set()) for worker in workers]
        for worker in workers:
            worker.end()
        deadline = time.monotonic() + _END_S
        codes += [_exit_code(worker.wait(max(0.0, deadline - time.monotonic())), True) for worker in workers]
    _report(workers, args.json)
    return next((code for code in codes if code), EXIT_OK)


def _exit_code(code: int | None, stopping: bool) -> int:
    """Of a worker's: below 0 a signal has ended it, which is as it should be where it was told to end before it could
    listen. None: it runs."""
    if code is None or (stopping and code == -signal.SIGTERM):
        return EXIT_OK
    return code if code >= 0 else EXIT_FAILED


@contextlib.contextmanager
def _signals(stopping: threading.Event, asked: threading.Event) -> Iterator[None]:
    """SIGTERM and Ctrl-C set the one event, SIGUSR1 the other."""
    events = {signal.SIGTERM: stopping, signal.SIGINT: stopping, signal.SIGUSR1: asked}
    before = {number: signal.signal(number, lambda *_, event=event: event.set()) for number, event in events.items()}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _report(workers: Sequence[_Worker], as_json: bool) -> None:
    figures: dict[str, Any] = {}
    for worker in workers:
        with contextlib.suppress(json.JSONDecodeError):  # a worker that could not start has none
            figures[worker.pipeline] = json.loads(worker.last)
    if as_json:
        print_json(figures)
        return
    for pipeline, of in figures.items():
        counts = ", ".join(f"{name} {count:,}" for name, count in of.items() if isinstance(count, int))
        print(f"{pipeline}: {counts}", flush=True)
