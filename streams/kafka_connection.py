"""How our Kafka clients meet the broker: their settings, whether it is there, and requests that wait for it.

librdkafka settings pass through from the configuration: keys as in its CONFIGURATION.md. Settings that only
one kind of client knows are written with a prefix: ``consumer.session.timeout.ms``, ``producer.linger.ms``.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Mapping
from typing import Any, TypeVar

from confluent_kafka import KafkaError, KafkaException
from confluent_kafka.admin import AdminClient

from streams.errors import ConfigError, FatalError

__all__ = ["BrokerWatch", "Contact", "client_settings", "config_error", "retry"]

_T = TypeVar("_T")

logger = logging.getLogger("headrace.kafka")


def _not_chatter(record: logging.LogRecord) -> bool:
    """librdkafka warns of settings of the other kind of client and of "experimental" ones at every start, and of each
    connection that fails, many a second, of which `BrokerWatch` tells."""
    text = record.getMessage()
    failed = text.startswith("FAIL") and ("Connect to" in text or "SSL" in text)
    return not (text.startswith("CONFWARN") or failed)


logger.addFilter(_not_chatter)


_COMMON_DEFAULTS: dict[str, Any] = {
    "reconnect.backoff.ms": 100,
    "reconnect.backoff.max.ms": 2_000,
    "log.connection.close": False,
}
#: a broker that answers others for so long, but not a client, shall not be waited for by that client
_DEAF_S = 10.0
_ASK_INTERVAL_S = 1.0
_ASK_S = 0.5
#: Errors of a request that say "not now": the client goes on by itself.
_TRANSIENT = {
    KafkaError._ALL_BROKERS_DOWN,
    KafkaError._TRANSPORT,
    KafkaError._RESOLVE,
    KafkaError._TIMED_OUT,
    KafkaError._WAIT_COORD,
    KafkaError.COORDINATOR_LOAD_IN_PROGRESS,
    KafkaError.COORDINATOR_NOT_AVAILABLE,
    KafkaError.NOT_COORDINATOR,
    KafkaError.LEADER_NOT_AVAILABLE,
    KafkaError.NOT_LEADER_FOR_PARTITION,
    KafkaError.REQUEST_TIMED_OUT,
    KafkaError.NETWORK_EXCEPTION,
    KafkaError.UNSTABLE_OFFSET_COMMIT,
    # "no leaders found", of partitions that were made just now
    KafkaError._NOENT,
    # after a broker's restart, by what the client last knew of it
    KafkaError.FENCED_LEADER_EPOCH,
    KafkaError.UNKNOWN_LEADER_EPOCH,
}
#: Nobody answers at the broker's address.
_AWAY = {KafkaError._ALL_BROKERS_DOWN, KafkaError._TRANSPORT, KafkaError._RESOLVE}
#: The broker does not let us in, or we do not trust it: no time heals that.
_REFUSED = {KafkaError._SSL, KafkaError._AUTHENTICATION, KafkaError.SASL_AUTHENTICATION_FAILED}


class BrokerWatch:
    """Says once that the broker is away and once that it is back, however often the clients of a log report it."""

    def __init__(self, bootstrap: str, config: Mapping[str, Any]) -> None:
        self.bootstrap = bootstrap
        self._config = config
        #: what a fresh client was answered last, and when
        self._answered = False
        self._asked_at = 0.0
        self.away_since: float | None = None
        #: why the broker and we do not come together, until they do
        self.refused: str | None = None
        #: whether the broker ever answered: only before is a TLS handshake that it breaks off a wrong setting
        self.known = False
        #: whether a consumer polls, who asks the broker before it is said to be away: a client that was not polled
        #: for a while reports what has long passed
        self.asks = False
        self.suspected: str | None = None

    def on_error(self, error: KafkaError) -> None:
        plaintext = error.code() == KafkaError._TRANSPORT and "PLAINTEXT" in error.str() and not self.known
        # TLS 1.3 ends the handshake before the broker has looked at our certificate: its no comes as a lost connection
        alert = error.code() == KafkaError._TRANSPORT and "SSL alert" in error.str()
        if error.code() in _AWAY and not plaintext and not alert:
            if error.code() == KafkaError._TRANSPORT or self.refused is not None:
                return  # one connection of several may report it; or why is known better
            if self.asks:
                self.suspected = error.str()
            else:
                self.away(error.str())
        elif plaintext or alert or error.code() in _REFUSED:
            if self.refused is None:
                logger.error("broker %s and this client do not come together: %s", self.bootstrap, error.str())
            self.refused = error.str()
        elif error.fatal():
            logger.error("fatal client error: %s", error)
        else:
            logger.warning("%s", error)

    def away(self, reason: str) -> None:
        self.suspected = None
        if self.away_since is None:
            self.away_since = time.monotonic()
            logger.warning("broker %s is away (%s): waiting for it", self.bootstrap, reason)

    def answers(self) -> bool:
        """Whether the broker is there for a client that has never lost it.

        A client that lost its brokers is not asked itself: one that hears of "no brokers", as one that just starts
        says, while it looks for them, can forget them all for ever (librdkafka's issue 5301). Asks once a second,
        however many want to know.
        """
        if time.monotonic() - self._asked_at >= _ASK_INTERVAL_S:
            self._answered = self._ask()
            self._asked_at = time.monotonic()
        return self._answered

    def _ask(self) -> bool:
        settings = client_settings(self._config, {}, "admin", self)
        settings["error_cb"] = lambda _error: None
        try:
            client = AdminClient(settings, logger=logger)
            return bool(client.list_topics(timeout=_ASK_S).brokers)
        except KafkaException:
            return False

    def seen(self) -> None:
        self.known = True
        self.refused = self.suspected = None
        if self.away_since is not None:
            seconds = time.monotonic() - self.away_since
            self.away_since = None
            logger.warning("broker %s is back after %.1f s: going on", self.bootstrap, seconds)


class Contact:
    """Whether one client finds its way back to a broker that it lost; see `BrokerWatch.answers` why it might not."""

    def __init__(self, watch: BrokerWatch) -> None:
        self._watch = watch
        self._lost = False
        #: since when the broker answers others
        self._there_since: float | None = None

    def on_error(self, error: KafkaError) -> None:
        """The client's error callback."""
        if error.code() == KafkaError._ALL_BROKERS_DOWN:
            self._lost = True
            self._there_since = None
        self._watch.on_error(error)

    def is_stuck(self, ask: Callable[[], Any]) -> bool:
        """Whether the broker has been there for a while but not for this client; to be called whenever it has heard
        nothing, it looks only after the client lost its brokers. ``ask`` is a metadata request by
        the client."""
        if not self._lost:
            return False
        if not self._watch.answers():
            self._there_since = None
            return False
        self._watch.seen()
        now = time.monotonic()
        if self._there_since is None:
            self._there_since = now
        if now - self._there_since < _DEAF_S:
            return False
        try:
            self._lost = not ask().brokers
        except KafkaException:
            return True
        return self._lost


def client_settings(
    config: Mapping[str, Any], defaults: Mapping[str, Any], role: str, watch: BrokerWatch
) -> dict[str, Any]:
    """The settings of one client: ours, then the defaults of its ``role``, then what the configuration says."""
    merged: dict[str, Any] = {"bootstrap.servers": watch.bootstrap, **_COMMON_DEFAULTS, **defaults}
    merged["error_cb"] = watch.on_error
    for key, value in config.items():
        prefix, _, rest = key.partition(".")
        if prefix in ("consumer", "producer", "admin"):
            if prefix == role:
                merged[rest] = value
        else:
            merged[key] = value
    return merged


def config_error(error: KafkaException | ValueError, role: str) -> ConfigError:
    """What to tell a person whose settings the client refuses."""
    return ConfigError(
        f"Kafka {role} settings: {error}. Look the key up in librdkafka's CONFIGURATION.md, "
        f"or prefix it with consumer. / producer. when only one kind of client knows it."
    )


def retry(
    call: Callable[[], _T],
    what: str,
    watch: BrokerWatch,
    timeout_s: float = 300.0,
    hear: Callable[[], object] = lambda: None,
) -> _T:
    """A request to a broker that may be away: tried again, with a line in the log.

    ``hear`` lets the client tell ``watch`` why, where nothing else polls it.
    """
    deadline = time.monotonic() + timeout_s
    pause_s = 0.2
    while True:
        try:
            answer = call()
            watch.seen()
            return answer
        except KafkaException as exc:
            error = exc.args[0]
            hear()
            if watch.refused is not None:
                raise FatalError(
                    "kafka-refused",
                    f"could not {what}: {watch.refused}. Check security.protocol, the certificates and the credentials "
                    f"in [kafka] against the listener {watch.bootstrap}.",
                ) from exc
            if error.code() not in _TRANSIENT:
                raise FatalError("kafka-request", f"could not {what}: {error.str()} ({error.name()})") from exc
            if time.monotonic() > deadline:
                raise FatalError(
                    "kafka-away", f"could not {what} for {timeout_s:.0f} s: {error.str()}. Is {watch.bootstrap} up?"
                ) from exc
            if error.code() in _AWAY:
                watch.away(error.str())
            logger.warning("could not %s yet: %s; trying again", what, error.str())
            time.sleep(pause_s)
            pause_s = min(2 * pause_s, 5.0)
