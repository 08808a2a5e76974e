"""A thread that works on a topic: from when the topic is there, and again after an error of the log."""

from __future__ import annotations

import logging
import threading
from abc import ABC, abstractmethod

from streams.errors import HeadraceError
from streams.log import Log, LogUnavailable

__all__ = ["TopicThread"]


class TopicThread(ABC):
    """`start` and `close` once each. ``what`` begins the line in ``logger`` for an error; a try follows the one before
    after ``again_s``.

    Where the log does not answer, a client of it may wait for minutes: `close` waits for ``close_s`` at most, and the
    thread is a daemon.
    """

    def __init__(
        self, log: Log, topic: str, *, name: str, what: str, logger: logging.Logger, again_s: float, close_s: float
    ) -> None:
        self._log, self._topic = log, topic
        self._what, self._logger = what, logger
        self._again_s, self._close_s = again_s, close_s
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name=name, daemon=True)

    def start(self) -> None:
        """Begins, as soon as the topic is there."""
        self._thread.start()

    def leave(self) -> None:
        """Begins nothing more; `close` waits for what is under way."""
        self._stop.set()

    def close(self) -> None:
        """Finishes what is under way, and ends."""
        self.leave()
        if self._thread.is_alive():
            self._thread.join(self._close_s)

    @abstractmethod
    def _follow(self) -> None:
        """The work, until ``_stop``."""

    def _run(self) -> None:
        while not self._stop.is_set():
            try:
                if self._there():
                    self._follow()
            except (HeadraceError, LogUnavailable) as exc:
                self._logger.warning("%s: %s; tried again", self._what, exc)
            except Exception:
                self._logger.exception("%s; tried again", self._what)
            self._stop.wait(self._again_s)

    def _there(self) -> bool:
        admin = self._log.admin()
        try:
            return self._topic in admin.topics([self._topic])
        finally:
            admin.close()
