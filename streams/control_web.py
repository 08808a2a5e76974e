"""Whether the control loop lives, and what it has done: /healthz and /metrics, on threads of their own.

Nothing here can be changed, and a request waits for nothing: a loop that hangs is told of.
"""

from __future__ import annotations

import json
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from importlib.metadata import version
from typing import TYPE_CHECKING, Any

from monitoring.metrics import Sample, exposition
from streams.errors import ConfigError
from streams.web_address import Address, host_of, is_loopback
from streams.web_figures import STALL_S, Health

if TYPE_CHECKING:
    from streams.control import Controller

__all__ = ["health", "samples", "served"]

_TEXT = "text/plain; version=0.0.4; charset=utf-8"
#: how long a client may take for its request
_REQUEST_S = 5.0


def health(loop: Controller) -> Health:
    """Not ok: no turn for longer than a turn takes, save while a model is trained, which has a time-out of its own."""
    case, silent_s = loop.state.case, loop.silent_s
    if case is not None and case.status == "building":
        return Health(True, "training", f"case {case.id}")
    if silent_s > STALL_S:
        return Health(False, "stalled", f"no turn for {silent_s:.0f} s: the broker or the registry does not answer")
    return Health(True, "ready" if loop.state.frozen is None else "frozen", loop.state.frozen or "")


def samples(loop: Controller) -> Iterator[Sample]:
    """By now; see `monitoring.metrics`."""
    state, now = loop.state, health(loop)
    yield Sample("info", 1, (version("headrace"), "headrace-control"))
    yield Sample("ready", int(now.ok))
    yield Sample("uptime_seconds", time.monotonic() - loop.began)
    for name, count in loop.counts.items():
        yield Sample(f"control_{name}_total", count)
    yield Sample("control_frozen", int(state.frozen is not None))
    yield Sample("control_rows_sampled_ratio", 0.5**state.kept.level)
    if state.champion:
        yield Sample("model_info", 1, ("", "champion", state.champion))
    for case in (state.case, state.probation):
        if case is not None:
            yield Sample("control_case", 1, (case.action, case.status))


@contextmanager
def served(loop: Controller, address: Address, *, remote: bool = False) -> Iterator[str]:
    """Answers at ``address`` meanwhile; gives the address of /metrics. ConfigError: nothing can listen there, or other
    machines could ask and that is not ``remote``, meant."""
    if not address.loopback and not remote:
        raise ConfigError(
            f"--web {address}: other machines may reach this address; listen at 127.0.0.1 and forward the port, or say "
            "--web-remote where that is meant"
        )

    class Handler(_Handler):
        controller, any_host = loop, remote

    class Server(ThreadingHTTPServer):
        daemon_threads = True
        address_family = socket.AF_INET6 if ":" in address.host else socket.AF_INET

    try:
        server = Server((address.host, address.port), Handler)
    except OSError as exc:
        raise ConfigError(
            f"--web {address}: cannot listen there: {exc.strerror}; give another port, or 0 for any free one"
        ) from exc
    thread = threading.Thread(target=server.serve_forever, name="headrace-control-web", daemon=True)
    thread.start()
    try:
        yield f"http://{Address(address.host, server.server_address[1])}/metrics"
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


class _Handler(BaseHTTPRequestHandler):
    controller: Controller
    any_host: bool
    timeout = _REQUEST_S

    def do_GET(self) -> None:
        """/metrics and /healthz."""
        # a page elsewhere may have its own name mean this machine (DNS rebinding)
        if not self.any_host and not is_loopback(host_of(self.headers.get("Host", ""))):
            self._answer(403, "ask by 127.0.0.1 or localhost, or run with --web-remote\n", _TEXT)
        elif self.path == "/metrics":
            self._answer(200, exposition(samples(self.controller), "control").decode(), _TEXT)
        elif self.path == "/healthz":
            found = health(self.controller)
            self._answer(200 if found.ok else 503, json.dumps(found._asdict()), "application/json")
        else:
            self._answer(404, "there are /metrics and /healthz\n", _TEXT)

    def _answer(self, status: int, text: str, kind: str) -> None:
        body = text.encode()
        self.send_response(status)
        headers = {"Content-Type": kind, "Content-Length": str(len(body)), "Cache-Control": "no-store"}
        for name, value in (headers | {"X-Content-Type-Options": "nosniff"}).items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: Any) -> None:  # noqa: A002 - the base class has it so
        """Requests are not logged."""
