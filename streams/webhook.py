"""Alerts handed on: each as one JSON line in the log, and to a webhook where there is one. At least once.

A consumer of the topic ``alerts`` with a group of its own, ``GROUP-outlet``, which commits an alert behind its
delivery: what a worker could not deliver waits in the log for the next. The first of a group begins at the earliest
alert there is. The monitor never waits: it writes to the topic, and this has a thread and a client of its own.

A record of an alert that says nothing new of its severity or of what was done about it, a member more, is left out. A
delivery is a POST of the alert's JSON with the header ``Idempotency-Key``, ``ALERT_ID/SEVERITY/ACTION``, each percent
encoded: what was delivered just before a crash comes again with the same key. 2xx is delivered; 400, 413, 415 and 422
say that this alert is not wanted as it is: it is left out, with an error in the log. Anything else is tried again,
after 1, 2, 4, .. up to 300 seconds or as ``Retry-After`` says, for as long as it takes; meanwhile later alerts wait, in
the topic.
"""

from __future__ import annotations

import hashlib
import http.client
import logging
import random
import sys
import time
import urllib.error
import urllib.request
from collections import Counter, OrderedDict, deque
from collections.abc import Callable, Mapping
from importlib.metadata import version
from typing import Any, NamedTuple
from urllib.parse import quote, urlsplit

import orjson

from monitoring.metrics import Sample
from streams.errors import ConfigError
from streams.log import TP, CommitFailed, Log, LogConsumer, LogUnavailable
from streams.topic_thread import TopicThread
from streams.topics import ALERTS
from streams.web_address import is_loopback, webhook_url

__all__ = ["AlertOutlet", "NotDelivered", "Webhook", "log_as_lines"]

logger = logging.getLogger("headrace.webhook")
#: of the alerts themselves; see `log_as_lines`
lines = logging.getLogger("headrace.alerts")

#: alerts in hand at most; the others stay in the topic
_IN_HAND = 100
_POLL_S = 0.2
#: deliveries between two polls take no longer, or one more
_TURN_S = 5.0
_BACKOFF_S, _BACKOFF_MAX_S = 1.0, 300.0
_UNWANTED = (400, 413, 415, 422)
#: keys of what was delivered: what the monitor sent twice is delivered once
_REMEMBERED = 1000
#: receivers keep keys in columns of such a width
_KEY_MAX = 255
#: until the topic is looked for again, and after an error of the log
_AGAIN_S = 5.0
_CLOSE_S = 15.0


def log_as_lines() -> None:
    """Alerts come on stderr as JSON alone, one line each, from now on."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(logging.Formatter("%(message)s"))
    lines.handlers[:] = [handler]
    lines.propagate = False


class NotDelivered(Exception):
    """To be tried again, after ``wait_s`` where the receiver has said so. The text names no secret."""

    def __init__(self, reason: str, wait_s: float | None = None) -> None:
        super().__init__(reason)
        self.wait_s = wait_s


class _NoRedirect(urllib.request.HTTPRedirectHandler):
    """The token is for the address that was given, and a redirected POST would become a GET."""

    def redirect_request(self, *_unused: Any) -> None:
        return None


class Webhook:
    """``url`` may be a secret as well (chat systems have theirs in the path): only its scheme and host are told."""

    def __init__(self, url: str, token: str = "", timeout_s: float = 10.0) -> None:
        try:
            webhook_url(url)
        except ConfigError as exc:
            raise ConfigError(f"setting alerts_webhook: {exc}") from exc
        parts = urlsplit(url)
        host = parts.hostname or ""
        if token and parts.scheme == "http" and not is_loopback(host):
            raise ConfigError(
                "setting alerts_webhook: http would send the token readable for all on the way; give an https address"
            )
        if any(ord(c) < 33 or ord(c) > 126 for c in token):
            raise ConfigError(
                "setting alerts_webhook_token: not printable ASCII without spaces; look at where it is kept"
            )
        self.name = f"{parts.scheme}://{host}" + (f":{parts.port}" if parts.port else "")
        self._url, self._token, self._timeout_s = url, token, timeout_s
        proxies = [urllib.request.ProxyHandler({})] if is_loopback(host) else []
        self._opener = urllib.request.build_opener(_NoRedirect, *proxies)

    def __repr__(self) -> str:
        return f"Webhook({self.name!r})"

    def post(self, value: bytes, key: str) -> bool:
        """Delivers an alert under this key, printable ASCII; False: the receiver does not want it as it is.
        NotDelivered: to be tried again."""
        headers = {
            "Content-Type": "application/json",
            "Idempotency-Key": key,
            "User-Agent": f"headrace/{version('headrace')}",
        }
        if self._token:
            headers["Authorization"] = f"Bearer {self._token}"
        request = urllib.request.Request(self._url, value, headers, method="POST")
        try:
            with self._opener.open(request, timeout=self._timeout_s):
                return True
        except urllib.error.HTTPError as exc:
            with exc:
                if exc.code in _UNWANTED:
                    logger.error("%s does not want alert %s: %d %s", self.name, key, exc.code, exc.reason)
                    return False
                raise NotDelivered(f"{exc.code} {exc.reason}", _seconds(exc.headers.get("Retry-After"))) from None
        except http.client.HTTPException as exc:
            # its text may hold the path of the address, or what the receiver has sent
            raise NotDelivered(type(exc).__name__) from None
        except OSError as exc:
            reason = getattr(exc, "reason", exc)
            raise NotDelivered(f"{type(exc).__name__}: {reason}") from None


def _seconds(text: str | None) -> float | None:
    return float(text) if text is not None and text.isdecimal() else None


def _key(alert: Mapping[str, Any]) -> str:
    """Of what an alert says: printable ASCII; of one too long its SHA-256. KeyError, TypeError: it has no id."""
    said = (alert["alert_id"], alert.get("severity", ""), alert.get("action", "none"))
    key = "/".join(quote(str(part), safe="") for part in said)
    return key if len(key) <= _KEY_MAX else hashlib.sha256(key.encode()).hexdigest()


class _InHand(NamedTuple):
    tp: TP
    offset: int
    value: bytes


class AlertOutlet(TopicThread):
    """Hands on the alerts of ``log``, as a member of group ``GROUP-outlet``. `start` and `close` once each."""

    def __init__(
        self,
        log: Log,
        group: str,
        webhook: Webhook | None = None,
        *,
        backoff_s: float = _BACKOFF_S,
        again_s: float = _AGAIN_S,
        clock_s: Callable[[], float] = time.monotonic,
    ) -> None:
        what = "alerts are not handed on"
        super().__init__(
            log, ALERTS, name="headrace-alerts", what=what, logger=logger, again_s=again_s, close_s=_CLOSE_S
        )
        self._group, self._webhook = f"{group}-outlet", webhook
        self._backoff_s, self._clock_s = backoff_s, clock_s
        self._in_hand: deque[_InHand] = deque()
        #: of each partition, the first offset that is not handed on, where that is not committed
        self._done: dict[TP, int] = {}
        self._delivered: OrderedDict[str, None] = OrderedDict()
        self._counts: Counter[str] = Counter()
        self._consumer: LogConsumer | None = None
        #: attempts at the first in hand that have failed, and when it is tried again
        self._failed, self._again_at = 0, 0.0
        self._logged: tuple[TP, int] | None = None
        #: the partitions that are paused; None while all flow
        self._paused: set[TP] | None = None

    def samples(self) -> list[Sample]:
        """For `monitoring.metrics.exposition`."""
        counts = dict(self._counts)
        outcomes = ("logged", "delivered", "refused")
        found = [Sample("alerts_delivered_total", counts.get(outcome, 0), (outcome,)) for outcome in outcomes]
        found.append(Sample("alerts_retries_total", counts.get("retries", 0)))
        return [*found, Sample("alerts_waiting", len(self._in_hand))]

    # -- on the thread --

    def _follow(self) -> None:
        consumer = self._consumer = self._log.consumer(self._group)
        try:
            consumer.subscribe([ALERTS], self)
            while not self._stop.is_set():
                self._take(consumer)
                self._hand_on()
                self._commit(consumer)
        finally:
            self._in_hand.clear()
            self._done.clear()
            self._paused = None
            consumer.close()

    def _take(self, consumer: LogConsumer) -> None:
        """Polls always, for the membership; while something is in hand nothing more is taken, but what a partition that
        is assigned in this very poll may have, as far as there is room."""
        if self._in_hand:
            self._paused = self._paused or set()
            flowing = consumer.assignment() - self._paused
            if flowing:
                consumer.pause(list(flowing))
                self._paused |= flowing
        elif self._paused is not None:
            consumer.resume(list(consumer.assignment()))
            self._paused = None
        for batch in consumer.poll(_POLL_S, max(1, _IN_HAND - len(self._in_hand))):
            self._in_hand += [
                _InHand(batch.tp, offset, value)
                for offset, value in zip(batch.offsets, batch.values, strict=True)
                if value is not None
            ]

    def _hand_on(self) -> None:
        """All that is in hand, until the first that has to be tried again later, or it is time to poll again."""
        until_s = time.monotonic() + _TURN_S
        while self._in_hand and not self._stop.is_set() and self._clock_s() >= self._again_at:
            if time.monotonic() > until_s:
                return
            first = self._in_hand[0]
            if not self._deliver(first):
                return
            self._in_hand.popleft()
            self._done[first.tp] = first.offset + 1
            self._failed, self._again_at = 0, 0.0

    def _deliver(self, alert: _InHand) -> bool:
        """Whether this alert is done with."""
        try:
            known: Any = orjson.loads(alert.value)
            key = _key(known)
            line = orjson.dumps({"event": "alert", "logged_at": int(time.time() * 1000), **known}).decode()
        except (orjson.JSONDecodeError, KeyError, TypeError):
            logger.error("%s/%d offset %d is no alert: left out", *alert.tp, alert.offset)
            return True
        if key in self._delivered:
            return True
        if self._logged != (alert.tp, alert.offset):
            lines.warning("%s", line)
            self._logged = (alert.tp, alert.offset)
            self._counts["logged"] += 1
        if self._webhook is not None:
            try:
                self._counts["delivered" if self._webhook.post(alert.value, key) else "refused"] += 1
            except NotDelivered as exc:
                self._postpone(self._webhook, key, exc)
                return False
        self._delivered[key] = None
        while len(self._delivered) > _REMEMBERED:
            self._delivered.popitem(last=False)
        return True

    def _postpone(self, webhook: Webhook, key: str, exc: NotDelivered) -> None:
        wait_s = min(_BACKOFF_MAX_S, self._backoff_s * 2 ** min(self._failed, 20))
        # not all workers at the same moment
        wait_s = max(wait_s * random.uniform(0.75, 1.0), min(exc.wait_s or 0.0, _BACKOFF_MAX_S))
        self._failed += 1
        self._counts["retries"] += 1
        self._again_at = self._clock_s() + wait_s
        logger.warning("%s, alert %s, attempt %d: %s; again in %.0f s", webhook.name, key, self._failed, exc, wait_s)

    def _commit(self, consumer: LogConsumer) -> None:
        if not self._done:
            return
        done, self._done = self._done, {}
        try:
            consumer.commit(done)
        except (CommitFailed, LogUnavailable) as exc:
            logger.warning("alerts up to %s are handed on, and may be again: %s", dict(done), exc)

    def on_assign(self, partitions: list[TP]) -> Mapping[TP, int | None]:
        # an error here would leave the partitions unread: the log is asked until it answers
        while not self._stop.is_set():
            try:
                return self._starts(partitions)
            except LogUnavailable as exc:
                logger.warning("alerts are not handed on: %s; tried again", exc)
                self._stop.wait(_POLL_S)
        return dict.fromkeys(partitions, 0)

    def _starts(self, partitions: list[TP]) -> dict[TP, int]:
        assert self._consumer is not None
        committed = self._consumer.committed(partitions)
        earliest = {tp: self._consumer.offset_range(tp)[0] for tp in partitions}
        return {tp: max(committed[tp] or 0, earliest[tp]) for tp in partitions}

    def on_revoke(self, partitions: list[TP]) -> None:
        """What is handed on is committed; what is not, the next owner hands on."""
        if self._consumer is not None:
            self._commit(self._consumer)
        self.on_lost(partitions)

    def on_lost(self, partitions: list[TP]) -> None:
        self._in_hand = deque(alert for alert in self._in_hand if alert.tp not in partitions)
        self._done = {tp: offset for tp, offset in self._done.items() if tp not in partitions}
        if self._paused is not None:
            self._paused.difference_update(partitions)
        self._failed, self._again_at = 0, 0.0
