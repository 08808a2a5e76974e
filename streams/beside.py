"""What runs beside a worker where its settings ask for it: the web server, and what hands on a monitor's alerts."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

from streams.config import Settings
from streams.log import connect
from streams.web_address import Address, peers

if TYPE_CHECKING:
    from streams.web import WebServer
    from streams.webhook import AlertOutlet
    from streams.worker import Worker

__all__ = ["Beside"]


class Beside:
    """Of a worker of pipeline ``of``, not yet running. ConfigError: settings that cannot be.

    `start`, `ready` and `close` once each, `leaving` before `close` where there is time.
    """

    def __init__(self, of: str, settings: Settings, worker: Worker, pipeline: Any) -> None:
        self._outlet: AlertOutlet | None = None
        self._web: WebServer | None = None
        self._figures: Any = None
        address = Address.parse(settings.web_address)
        log = connect(settings.log_url(), settings.kafka_config())
        if of == "monitor":
            from streams.webhook import AlertOutlet, Webhook, log_as_lines

            url, token = settings.secret("alerts_webhook"), settings.secret("alerts_webhook_token")
            webhook = Webhook(url, token, settings.alerts_webhook_timeout_ms / 1000) if url else None
            log_as_lines()
            self._outlet = AlertOutlet(log, settings.group, webhook)
        if address is not None:
            from streams.web import WebServer
            from streams.web_figures import Figures

            self._figures = Figures(of, settings.group, worker, pipeline)
            self._web = WebServer(
                self._figures,
                log,
                address,
                token=settings.secret("web_token"),
                remote=settings.web_remote,
                peers=peers(settings.web_peers),
                outlet=self._outlet,
            )

    def start(self, loop: asyncio.AbstractEventLoop) -> str:
        """On the worker's event loop, before it runs; returns the address of the page, empty where there is none."""
        url = "" if self._web is None else self._web.start(loop)
        if self._outlet is not None:
            self._outlet.start()
        return url

    def ready(self) -> None:
        """The worker is."""
        if self._figures is not None:
            self._figures.ready = True

    def leaving(self) -> None:
        """The worker is told to end: what takes long to end begins to."""
        if self._outlet is not None:
            self._outlet.leave()

    def close(self) -> None:
        """Waits for both to end."""
        if self._outlet is not None:
            self._outlet.close()
        if self._web is not None:
            self._web.close()
