"""A worker in a thread with the web server beside it, on a log in memory; and what asks it."""

from __future__ import annotations

import asyncio
import json
import threading
import urllib.error
import urllib.request
import uuid
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from workers import FAST, CountingPipeline, until

from streams.encode import ScoreEncoder
from streams.log import TP, OutBatch, RecordBatch, connect
from streams.stage import Meters
from streams.topics import ALERTS, topic_infos
from streams.web import WebServer
from streams.web_address import Address
from streams.web_figures import Figures
from streams.worker import Worker, ensure_topics

ANY = Address("127.0.0.1", 0)


class WebPipeline(CountingPipeline):
    """Numbers records, and has what a page wants to know."""

    def __init__(self, source: str, output: str) -> None:
        super().__init__(source, output)
        self.meters = Meters()
        self.encoder = ScoreEncoder(("amount",))

    def process(self, parts: Any) -> list[OutBatch]:
        outputs = super().process(parts)
        self.meters.counts["received"] += sum(len(batch) for _, batch in parts if not batch.replay)
        self.meters.counts["scored"] += sum(map(len, outputs))
        return outputs

    def figures(self) -> dict[str, int]:
        return {name: self.meters.counts[name] for name in ("received", "scored", "dead_letters")}

    def quality(self) -> dict[str, dict[str, dict[str, int]]]:
        return {"transactions": {"amount": {"out_of_range": 3}}}


@dataclass
class Served:
    """A worker whose page is at ``url``."""

    url: str
    worker: Worker
    figures: Figures
    pipeline: WebPipeline
    loop: asyncio.AbstractEventLoop

    def get(self, path: str, *, method: str = "GET", headers: Mapping[str, str] | None = None) -> tuple[int, bytes]:
        return ask(self.url + path, method=method, headers=headers)

    def json(self, path: str) -> Any:
        return json.loads(self.get(path)[1])

    def on_loop(self, call: Callable[[], Any]) -> None:
        """Has the worker's event loop call it, and waits for that."""
        done = threading.Event()

        def called() -> None:
            call()
            done.set()

        self.loop.call_soon_threadsafe(called)
        assert done.wait(60)


def ask(url: str, *, method: str = "GET", headers: Mapping[str, str] | None = None) -> tuple[int, bytes]:
    request = urllib.request.Request(url, b"" if method == "POST" else None, dict(headers or {}), method=method)
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    try:
        with opener.open(request, timeout=10) as answer:
            return answer.status, answer.read()
    except urllib.error.HTTPError as exc:
        with exc:
            return exc.code, exc.read()


@contextmanager
def served(
    *, before: Callable[[TP, RecordBatch], None] | None = None, name: str | None = None, **options: Any
) -> Iterator[Served]:
    """The worker is ready inside. ``options`` of `WebServer`; ``name`` of the log."""
    log = connect(f"memory://{name or uuid.uuid4().hex}")
    ensure_topics(log, topic_infos([ALERTS], 2))
    pipeline = WebPipeline("transactions", "fraud-scores")
    if before is not None:
        pipeline.before = before
    known: list[Served] = []
    ready = threading.Event()
    problems: list[BaseException] = []

    async def main() -> None:
        worker = Worker(log, pipeline, "g", settings=FAST, on_ready=ready.set, hard_exit=lambda code: None)
        figures = Figures("fraud", "g", worker, pipeline)
        server = WebServer(figures, log, ANY, **options)
        loop = asyncio.get_running_loop()
        known.append(Served(server.start(loop).rstrip("/"), worker, figures, pipeline, loop))
        try:
            assert await worker.run() == 0
        finally:
            await asyncio.to_thread(server.close)

    def run() -> None:
        try:
            asyncio.run(main())
        except BaseException as exc:  # noqa: BLE001 - told to the test
            problems.append(exc)
            ready.set()

    thread = threading.Thread(target=run)
    thread.start()
    assert ready.wait(60)
    if problems:
        thread.join()
        raise problems[0]
    [it] = known
    it.figures.ready = True
    try:
        yield it
    finally:
        it.worker.stop()
        thread.join(60)
        assert not thread.is_alive() and not problems, problems


def until_status(it: Served, condition: Callable[[Any], bool], what: str) -> Any:
    """The first status that is as wanted."""
    seen: list[Any] = []

    def right() -> bool:
        seen[:] = [it.json("/api/status")]
        return condition(seen[0])

    until(right, what, 60)
    return seen[0]
