"""The web server of a worker: a page, figures as JSON, metrics for Prometheus, health.

It has a thread and an event loop of its own, so that /healthz answers also while a stage hangs; once a second it asks
the worker's event loop for its counters. Reading is free to whoever reaches the address, which is this machine alone
unless told otherwise; what changes anything needs the token.
"""

from __future__ import annotations

import asyncio
import hmac
import logging
import math
import socket
import threading
import time
from collections import deque
from collections.abc import Awaitable, Callable, Coroutine, Mapping
from importlib.metadata import version
from importlib.resources import files
from itertools import pairwise
from typing import Any, TypeVar

import orjson
from aiohttp import web

from monitoring.metrics import Sample, exposition
from streams.errors import ConfigError
from streams.log import Log
from streams.web_address import Address, host_of, is_loopback
from streams.web_alerts import AlertBook
from streams.web_figures import FLOWS, Collected, Figures, Health, samples
from streams.web_scores import ScoreFigures
from streams.webhook import AlertOutlet

__all__ = ["WebServer"]

logger = logging.getLogger("headrace.web")

_T = TypeVar("_T")
_Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]

_TURN_S = 1.0
#: how long a request waits for the worker's event loop, then it gets what was known last
_ANSWER_S = 2.0
#: what a monitor knows takes it a while to put together: asked no more often
_DETAILS_S = 5.0
#: turns that are kept, and over how many rates are told
_HISTORY, _RATE_TURNS = 300, 10
_CLOSE_S = 5.0
_PAGE = {
    "/": ("index.html", "text/html"),
    "/app.js": ("app.js", "text/javascript"),
    "/style.css": ("style.css", "text/css"),
}
#: the page uses nothing but its own files, and shows what came from outside only as text
_HEADERS = {
    "Content-Security-Policy": "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; "
    "img-src 'self' data:; base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cache-Control": "no-store",
}


class WebServer:
    """Serves ``figures`` at ``address``, and the alerts in ``log``. `start` and `close` once each.

    ``token`` empty: no changing request is taken. ``remote``: other machines may ask, and by any name of the host.
    ``peers``: ports of other pipelines' pages on this host.
    """

    def __init__(
        self,
        figures: Figures,
        log: Log,
        address: Address,
        *,
        token: str = "",
        remote: bool = False,
        peers: Mapping[str, int] | None = None,
        outlet: AlertOutlet | None = None,
    ) -> None:
        if not address.loopback and not remote:
            raise ConfigError(
                f"--web {address}: other machines may reach this address, and all who do can read scores and metrics; "
                "listen at 127.0.0.1 and forward the port, or say --web-remote (web_remote = true) where that is meant"
            )
        self._figures, self._address, self._token, self._remote = figures, address, token, remote
        self._outlet, self._peers = outlet, dict(peers or {})
        self._alerts = AlertBook(log)
        self._scores = ScoreFigures()
        self._began = time.time()
        self._now: Collected | None = None
        self._details: tuple[float, dict[str, Any]] | None = None
        self._answered_at = time.monotonic()
        #: what is assigned since the last rebalance, and as it was in the last turn
        self._assigned: set[tuple[str, int, int]] = set()
        self._seen: set[tuple[str, int, int]] = set()
        self._rebalances = self._assignments = 0
        self._written: tuple[float, float] | None = None
        self._history: deque[dict[str, Any]] = deque(maxlen=_HISTORY)
        self._worker_loop: asyncio.AbstractEventLoop | None = None
        self._loop: asyncio.AbstractEventLoop | None = None
        self._stopping = asyncio.Event()
        self._thread = threading.Thread(target=self._run, name="headrace-web", daemon=True)
        self._socket: socket.socket | None = None

    def start(self, worker_loop: asyncio.AbstractEventLoop) -> str:
        """Listens from now on; returns the address of the page. ConfigError: nothing can listen there."""
        self._worker_loop = worker_loop
        family = socket.AF_INET6 if ":" in self._address.host else socket.AF_INET
        try:
            self._socket = socket.create_server((self._address.host, self._address.port), family=family)
        except OSError as exc:
            why = str(exc.strerror).partition(" (")[0]
            raise ConfigError(
                f"--web {self._address}: cannot listen there: {why}; give another port, or 0 for any free one"
            ) from exc
        self._loop = asyncio.new_event_loop()
        url = f"http://{Address(self._address.host, self._socket.getsockname()[1])}/"
        self._alerts.start()
        self._thread.start()
        return url

    def close(self) -> None:
        """Answers no more; waits for that, not for long."""
        if self._loop is not None and self._thread.is_alive():
            self._loop.call_soon_threadsafe(self._stopping.set)
            self._thread.join(_CLOSE_S)
        self._alerts.close()

    # -- on the thread --

    def _run(self) -> None:
        assert self._loop is not None and self._socket is not None
        try:
            self._loop.run_until_complete(self._serve())
        except Exception:
            logger.exception("the web server failed; the worker goes on without it")
        finally:
            self._socket.close()
            self._loop.close()

    async def _serve(self) -> None:
        app = web.Application(middlewares=[self._guarded], client_max_size=65_536)
        for path in _PAGE:
            app.router.add_get(path, self._page)
        for path, handler in (
            ("/metrics", self._metrics),
            ("/healthz", self._healthz),
            ("/api/status", self._status),
            ("/api/alerts", self._alert_list),
        ):
            app.router.add_get(path, handler)
        app.router.add_post("/api/pause", self._pause)
        app.router.add_post("/api/resume", self._resume)
        runner = web.AppRunner(app, access_log=None, handle_signals=False, shutdown_timeout=1.0)
        await runner.setup()
        assert self._socket is not None
        await web.SockSite(runner, self._socket).start()
        turning = asyncio.create_task(self._turns())
        await self._stopping.wait()
        turning.cancel()
        await runner.cleanup()

    @web.middleware
    async def _guarded(self, request: web.Request, handler: _Handler) -> web.StreamResponse:
        """Who may ask: by a name of this machine, lest a page elsewhere has its own name mean us (DNS rebinding); and
        for changes, with the token."""
        if not self._remote and not is_loopback(host_of(request.host)):
            answer: web.StreamResponse = _refused("ask by 127.0.0.1 or localhost, or run with --web-remote")
        elif request.method not in ("GET", "HEAD") and not self._may_change(request):
            answer = _refused("a changing request needs the header Authorization: Bearer TOKEN, with the web_token")
        else:
            try:
                answer = await handler(request)
            except web.HTTPException as exc:
                answer = _json({"error": exc.reason}, exc.status)
        answer.headers.update(_HEADERS)
        return answer

    def _may_change(self, request: web.Request) -> bool:
        given = request.headers.get("Authorization", "")
        # bytes that are no UTF-8 come as surrogates, in a header as in a setting
        wanted = f"Bearer {self._token}".encode("utf-8", "surrogateescape")
        return bool(self._token) and hmac.compare_digest(given.encode("utf-8", "surrogateescape"), wanted)

    async def _turns(self) -> None:
        """Once a second: the counters, for rates and the last minutes."""
        while True:
            began = time.monotonic()
            self._scores.take(self._figures.tap.drain())
            try:
                self._turn(await self._on_worker(lambda: self._figures.collect()))
            except TimeoutError:
                pass  # health says so
            except Exception:
                logger.exception("figures for the web page")
            await asyncio.sleep(max(0.05, _TURN_S - (time.monotonic() - began)))

    async def _on_worker(self, call: Callable[[], _T]) -> _T:
        """The result of ``call`` on the worker's event loop. TimeoutError: it does not come to that."""
        loop = self._worker_loop
        if loop is None or loop.is_closed():
            raise TimeoutError

        async def ask() -> _T:
            return call()

        asked: Coroutine[Any, Any, _T] = ask()
        result = await asyncio.wait_for(asyncio.wrap_future(asyncio.run_coroutine_threadsafe(asked, loop)), _ANSWER_S)
        self._answered_at = time.monotonic()
        return result

    def _turn(self, now: Collected) -> None:
        self._now = now
        assigned = {(p.topic, p.partition, p.epoch) for p in now.partitions}
        # a rebalance tells of partitions one by one: it is over when nothing has changed for a turn
        steady, self._seen = assigned == self._seen, assigned
        if steady and assigned != self._assigned:
            self._rebalances += 1
            self._assignments += len(assigned - self._assigned)
            self._assigned = assigned
        written = now.checkpoints.get("written", 0)
        if written and (self._written is None or written != self._written[1]):
            self._written = (now.at_s, written)
        latency = self._scores.recent_latency()
        into, out = (now.counts.get(name, 0) for name in FLOWS[self._figures.of])
        self._history.append(
            {
                "at_s": now.at_s,
                "in": into,
                "out": out,
                "p50": latency["latency_ms_p50"],
                "p99": latency["latency_ms_p99"],
                "lag": sum(lag["records"] for lag in now.lag.values()),
            }
        )

    def _rate(self, name: str, turns: int = _RATE_TURNS) -> float:
        points = list(self._history)[-turns - 1 :]
        seconds = points[-1]["at_s"] - points[0]["at_s"] if points else 0.0
        return (points[-1][name] - points[0][name]) / seconds if seconds else 0.0

    def _health(self) -> Health:
        return self._figures.health(time.monotonic() - self._answered_at)

    async def _known_details(self) -> dict[str, Any] | None:
        """What a monitor knows, a few seconds old at the most where the worker answers."""
        if not hasattr(self._figures.pipeline, "details"):
            return None
        if self._details is None or time.monotonic() - self._details[0] > _DETAILS_S:
            try:
                found = await self._on_worker(self._figures.pipeline.details)
                self._details = (time.monotonic(), found)
            except TimeoutError:
                pass
        return None if self._details is None else self._details[1]

    # -- requests --

    async def _page(self, request: web.Request) -> web.Response:
        name, kind = _PAGE[request.path]
        text = (files("monitoring") / "dashboard" / name).read_text(encoding="utf-8")
        return web.Response(text=text, content_type=kind, charset="utf-8")

    async def _healthz(self, request: web.Request) -> web.Response:
        health = self._health()
        return _json(health._asdict(), 200 if health.ok else 503)

    async def _metrics(self, request: web.Request) -> web.Response:
        now, details = self._now, await self._known_details()
        found: list[Sample] = []
        if now is not None:
            found += samples(self._figures, now, details, self._health())
        found += self._own_samples()
        text = exposition(found, self._figures.of)
        return web.Response(body=text, headers={"Content-Type": "text/plain; version=0.0.4; charset=utf-8"})

    def _own_samples(self) -> list[Sample]:
        found = [
            Sample("uptime_seconds", time.time() - self._began),
            Sample("events_per_second", self._rate("in"), ("in",)),
            Sample("events_per_second", self._rate("out"), ("out",)),
            Sample("partition_assignments_total", self._assignments),
            Sample("rebalances_total", self._rebalances),
        ]
        if self._figures.taps_latency:
            found.append(Sample("score_latency_seconds", self._scores.latency))
        if self._figures.taps_scores:
            found.append(Sample("scores", self._scores.scores))
        if self._written is not None:
            found.append(Sample("checkpoint_age_seconds", time.monotonic() - self._written[0]))
        found += [Sample("alerts", count, of) for of, count in self._alerts.counts.items()]
        if self._outlet is not None:
            found += self._outlet.samples()
        return found

    async def _status(self, request: web.Request) -> web.Response:
        now, figures, history = self._now, self._figures, list(self._history)
        into, out = FLOWS[figures.of]
        status: dict[str, Any] = {
            "pipeline": figures.of,
            "group": figures.group,
            "version": version("headrace"),
            "peers": self._peers,
            "now_ms": int(time.time() * 1000),
            "uptime_s": time.time() - self._began,
            "health": self._health()._asdict(),
            "flow": {"in": into, "out": out},
            "events_per_s": {"in": self._rate("in"), "out": self._rate("out")},
            "history": _rates(history),
            "alerts": [{"kind": of[0], "severity": of[1], "count": n} for of, n in self._alerts.counts.items()],
        }
        if now is not None:
            status |= {
                "counts": now.counts,
                "lag": now.lag,
                "models": now.models,
                "partitions": [p._asdict() for p in now.partitions],
                "checkpoints": {**now.checkpoints, "age_s": self._written and time.monotonic() - self._written[0]},
                "commits": now.commits,
                "recovery": now.recovery,
                "quality": now.quality,
                "seconds": now.seconds,
                "rebalances": self._rebalances,
            }
        scores = self._scores
        if figures.taps_latency:
            status["latency_ms"] = scores.recent_latency()
        if figures.taps_scores:
            status["scores"] = {"histogram": scores.scores.counts[:-1], "high": scores.high()}
        status["monitor"] = await self._known_details()
        return _json(status)

    async def _alert_list(self, request: web.Request) -> web.Response:
        return _json({"alerts": self._alerts.newest()})

    async def _pause(self, request: web.Request) -> web.Response:
        return self._flow(stop=True)

    async def _resume(self, request: web.Request) -> web.Response:
        return self._flow(stop=False)

    def _flow(self, *, stop: bool) -> web.Response:
        reader = self._figures.worker.reader
        if reader is None:
            return _json({"error": "the worker is not in its group yet"}, 409)
        if stop:
            reader.stop_flow()
        else:
            reader.resume_flow()
        logger.warning("told by the web to %s", "take no more records" if stop else "take records again")
        return _json({"paused": stop})


def _rates(history: list[dict[str, Any]]) -> dict[str, list[float | None]]:
    """By second: events per second in and out, latencies, records that wait."""
    out: dict[str, list[float | None]] = {"in": [], "out": [], "p50": [], "p99": [], "lag": []}
    for before, point in pairwise(history):
        seconds = max(1e-3, point["at_s"] - before["at_s"])
        for name in ("in", "out"):
            out[name].append(round((point[name] - before[name]) / seconds, 1))
        for name in ("p50", "p99", "lag"):
            out[name].append(point[name])
    return out


def _refused(why: str) -> web.Response:
    return _json({"error": why}, 403)


def _json(value: Any, status: int = 200) -> web.Response:
    text = orjson.dumps(value, default=_plain, option=orjson.OPT_NON_STR_KEYS)
    return web.Response(body=text, status=status, content_type="application/json")


def _plain(value: Any) -> Any:
    item = getattr(value, "item", None)
    if item is None:
        raise TypeError(f"{type(value).__name__} is no JSON")
    plain = item()
    return None if isinstance(plain, float) and math.isnan(plain) else plain
