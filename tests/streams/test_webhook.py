"""Alerts handed on: each at least once, in order, across restarts, whatever the receiver does, and no secret told."""

from __future__ import annotations

import http.client
import http.server
import json
import logging
import threading
import uuid
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import orjson
import pytest
from workers import committed, send, until

from streams.errors import ConfigError
from streams.log import TP, Log, LogConsumer, connect
from streams.topics import ALERTS, topic_infos
from streams.webhook import AlertOutlet, NotDelivered, Webhook, log_as_lines
from streams.worker import ensure_topics

SECRET_PATH, TOKEN = "hook-e7c1d0", "token-5f0a9b"


class Receiver(http.server.ThreadingHTTPServer):
    """Answers with ``codes`` in their order, then with 200; ``got`` are (path, headers, body) of all requests."""

    def __init__(self, codes: list[int], headers: Mapping[str, str] | None = None) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.codes, self.answer_headers = codes, dict(headers or {})
        self.got: list[tuple[str, dict[str, str], Any]] = []
        self.may_answer = threading.Event()
        self.may_answer.set()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}/{SECRET_PATH}"

    @property
    def ids(self) -> list[str]:
        return [body["alert_id"] for _, _, body in self.got]


class _Handler(http.server.BaseHTTPRequestHandler):
    server: Receiver

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["Content-Length"]))
        self.server.got.append((self.path, dict(self.headers), orjson.loads(body)))
        self.server.may_answer.wait(30)
        self.send_response(self.server.codes.pop(0) if self.server.codes else 200)
        for name, value in self.server.answer_headers.items():
            self.send_header(name, value)
        self.send_header("Content-Length", "0")
        self.end_headers()

    def log_message(self, *_words: object) -> None:
        pass


@contextmanager
def receiver(codes: list[int] | None = None, headers: Mapping[str, str] | None = None) -> Iterator[Receiver]:
    server = Receiver(codes or [], headers)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    try:
        yield server
    finally:
        server.may_answer.set()
        server.shutdown()
        server.server_close()
        thread.join(30)


@pytest.fixture
def log() -> Log:
    log = connect(f"memory://{uuid.uuid4().hex}")
    ensure_topics(log, topic_infos([ALERTS], 1))
    return log


@contextmanager
def outlet(log: Log, webhook: Webhook | None, **more: Any) -> Iterator[AlertOutlet]:
    it = AlertOutlet(log, "g", webhook, backoff_s=0.01, **more)
    it.start()
    try:
        yield it
    finally:
        it.close()


def alert(name: object, severity: str = "warning", action: str = "none", **more: Any) -> bytes:
    of = {"alert_id": name, "event_time": 1, "kind": "input_drift", "evidence": {"since": 0}}
    return orjson.dumps(of | {"severity": severity, "action": action} | more)


def counts(it: AlertOutlet) -> dict[str, float]:
    found = {"/".join((sample.name, *sample.labels)): sample.value for sample in it.samples()}
    names = {"logged": "alerts_delivered_total/logged", "delivered": "alerts_delivered_total/delivered"}
    names |= {"refused": "alerts_delivered_total/refused", "retries": "alerts_retries_total"}
    return {short: float(found[name]) for short, name in names.items() if isinstance(found[name], int)}


def done(log: Log) -> int | None:
    return committed(log, "g-outlet", ALERTS, 1)[0]


def lines_of(caplog: pytest.LogCaptureFixture) -> list[dict[str, Any]]:
    return [json.loads(r.getMessage()) for r in caplog.records if r.name == "headrace.alerts"]


@pytest.fixture(autouse=True)
def _lines_are_captured(monkeypatch: pytest.MonkeyPatch) -> None:
    lines = logging.getLogger("headrace.alerts")
    monkeypatch.setattr(lines, "propagate", True)
    monkeypatch.setattr(lines, "handlers", [])


def test_each_alert_is_posted_once_and_logged_as_a_line(log: Log, caplog: pytest.LogCaptureFixture) -> None:
    with receiver() as there:
        webhook = Webhook(there.url, TOKEN)
        with outlet(log, webhook) as it:
            send(log, ALERTS, [alert("a"), alert("b"), alert("a")], 1)
            until(lambda: done(log) == 3, "the commit")
            assert counts(it) == {"logged": 2, "delivered": 2, "refused": 0, "retries": 0}
        assert there.ids == ["a", "b"], "what the monitor sent twice is one alert"
        path, headers, body = there.got[0]
        assert path == f"/{SECRET_PATH}" and body == orjson.loads(alert("a"))
        assert headers["Authorization"] == f"Bearer {TOKEN}" and headers["Idempotency-Key"] == "a/warning/none"
        assert headers["Content-Type"] == "application/json"
        with outlet(log, webhook) as it:  # a restarted worker
            send(log, ALERTS, [alert("c")], 1)
            until(lambda: done(log) == 4, "the commit")
        assert there.ids == ["a", "b", "c"]
    lines = lines_of(caplog)
    assert [line["alert_id"] for line in lines] == ["a", "b", "c"]
    assert lines[0]["event"] == "alert" and lines[0]["evidence"] == {"since": 0}
    assert SECRET_PATH not in caplog.text and TOKEN not in caplog.text


def test_what_fails_is_tried_again_and_later_ones_wait(log: Log, caplog: pytest.LogCaptureFixture) -> None:
    with receiver([503, 500, 404, 429]) as there, outlet(log, Webhook(there.url, TOKEN)) as it:
        send(log, ALERTS, [alert("a"), alert("b")], 1)
        until(lambda: done(log) == 2, "both to be delivered", 60)
        assert there.ids == ["a"] * 5 + ["b"]
        assert counts(it) == {"logged": 2, "delivered": 2, "refused": 0, "retries": 4}
    assert len(lines_of(caplog)) == 2, "an alert is logged once, however often it is tried"
    assert "attempt 4: 429" in caplog.text
    assert SECRET_PATH not in caplog.text and TOKEN not in caplog.text


def test_what_could_not_be_delivered_waits_for_the_next_worker(log: Log) -> None:
    with receiver([503] * 1000) as there:
        with outlet(log, Webhook(there.url)) as it:
            send(log, ALERTS, [alert("a"), alert("b")], 1)
            until(lambda: counts(it)["retries"] >= 2, "two attempts")
            assert not done(log), "nothing counts as handed on"
        there.codes.clear()
        there.got.clear()
        with outlet(log, Webhook(there.url)):
            until(lambda: done(log) == 2, "the delivery")
        assert there.ids == ["a", "b"]


def test_an_alert_that_is_not_wanted_keeps_no_other_waiting(log: Log, caplog: pytest.LogCaptureFixture) -> None:
    with receiver([422]) as there, outlet(log, Webhook(there.url)) as it:
        send(log, ALERTS, [alert("a"), b"no json", b"[1]", alert("b")], 1)
        until(lambda: done(log) == 4, "all to be done with")
        assert there.ids == ["a", "b"]
        assert counts(it) == {"logged": 2, "delivered": 1, "refused": 1, "retries": 0}
    assert "does not want alert a/warning/none: 422" in caplog.text and "offset 1 is no alert" in caplog.text


def test_the_receiver_may_say_when(log: Log) -> None:
    now = [0.0]
    with receiver([503], {"Retry-After": "100"}) as there:
        it = AlertOutlet(log, "g", Webhook(there.url), backoff_s=0.01, clock_s=lambda: now[0])
        it.start()
        try:
            send(log, ALERTS, [alert("a")], 1)
            until(lambda: counts(it)["retries"] == 1, "the first attempt")
            now[0] = 99.0
            with pytest.raises(AssertionError, match="timed out"):
                until(lambda: len(there.got) > 1, "nothing", 0.6)
            now[0] = 100.5
            until(lambda: done(log) == 1, "the second attempt")
        finally:
            it.close()


def test_what_is_new_about_an_alert_is_handed_on(log: Log, caplog: pytest.LogCaptureFixture) -> None:
    told = [
        ("warning", "none"),
        ("warning", "none"),
        ("critical", "none"),
        ("critical", "update: m@2"),
        ("critical", "none"),
    ]
    with receiver() as there, outlet(log, Webhook(there.url)):
        send(log, ALERTS, [alert("a", *said, value=i) for i, said in enumerate(told)], 1)
        until(lambda: done(log) == 5, "all to be done with")
        assert [body["value"] for _, _, body in there.got] == [0, 2, 3]
        keys = [headers["Idempotency-Key"] for _, headers, _ in there.got]
        assert keys == ["a/warning/none", "a/critical/none", "a/critical/update%3A%20m%402"]
    assert [line["value"] for line in lines_of(caplog)] == [0, 2, 3]


def test_an_alert_with_any_id_keeps_no_other_waiting(log: Log) -> None:
    deep: Any = []
    for _ in range(300):  # JSON that can be read and not written again
        deep = [deep]
    nested = alert("n").replace(b'{"since":0}', str(deep).encode())
    with receiver() as there, outlet(log, Webhook(there.url)):
        send(log, ALERTS, [alert("\u00fc\r\nX: y\u4e16"), alert(7), nested, alert("x" * 9000), alert("z")], 1)
        until(lambda: done(log) == 5, "all to be done with")
        keys = [headers["Idempotency-Key"] for _, headers, _ in there.got]
        assert keys[:2] == ["%C3%BC%0D%0AX%3A%20y%E4%B8%96/warning/none", "7/warning/none"]
        assert len(keys[2]) == 64 and keys[3] == "z/warning/none"


def test_partitions_that_come_while_the_receiver_is_down_wait_as_well() -> None:
    log = connect(f"memory://{uuid.uuid4().hex}")
    ensure_topics(log, topic_infos([ALERTS], 2))
    send(log, ALERTS, [alert(f"{i}") for i in range(600)], 2)
    it = AlertOutlet(log, "g", Webhook("http://127.0.0.1:9/"), clock_s=lambda: 0.0)
    it._again_at = 1.0  # it delivers nothing
    consumer = it._consumer = log.consumer("g-outlet")
    other = log.consumer("g-outlet")
    consumer.subscribe([ALERTS], it)
    other.subscribe([ALERTS], _Nobody())

    def partitions_of(member: LogConsumer) -> int:
        other.poll(0.0, 1)
        it._take(consumer)
        return len(member.assignment())

    until(lambda: partitions_of(other) == 1, "two members")
    until(lambda: partitions_of(consumer) == 1 and len(it._in_hand) >= 100, "a full hand")
    other.close()
    until(lambda: (it._take(consumer), len(consumer.assignment()))[1] == 2, "the other's partition")
    for _ in range(5):
        it._take(consumer)
    assert len(it._in_hand) <= 101
    flowing: set[int] = set()
    for _ in range(5):
        it._in_hand.clear()
        it._take(consumer)
        flowing |= {each.tp.partition for each in it._in_hand}
    assert flowing == {0, 1}
    consumer.close()


class _Nobody:
    def on_assign(self, partitions: list[TP]) -> dict[TP, int | None]:
        return dict.fromkeys(partitions, 0)

    def on_revoke(self, partitions: list[TP]) -> None:
        pass

    def on_lost(self, partitions: list[TP]) -> None:
        pass


def test_without_a_webhook_alerts_are_logged(log: Log, caplog: pytest.LogCaptureFixture) -> None:
    with outlet(log, None) as it:
        send(log, ALERTS, [alert("a")], 1)
        until(lambda: done(log) == 1, "the commit")
        assert counts(it) == {"logged": 1, "delivered": 0, "refused": 0, "retries": 0}
    assert [line["alert_id"] for line in lines_of(caplog)] == ["a"]


def test_two_workers_share_the_alerts() -> None:
    log = connect(f"memory://{uuid.uuid4().hex}")
    ensure_topics(log, topic_infos([ALERTS], 4))
    names = [f"{i}" for i in range(40)]
    with receiver() as there, outlet(log, Webhook(there.url)), outlet(log, Webhook(there.url)):
        send(log, ALERTS, [alert(name) for name in names], 4)
        until(lambda: set(there.ids) == set(names), "all alerts", 60)
        until(lambda: sum(at or 0 for at in committed(log, "g-outlet", ALERTS).values()) == 40, "the commits", 60)


def test_the_topic_may_come_later() -> None:
    log = connect(f"memory://{uuid.uuid4().hex}")
    it = AlertOutlet(log, "g", None, again_s=0.01)
    it.start()
    try:
        ensure_topics(log, topic_infos([ALERTS], 1))
        send(log, ALERTS, [alert("a")], 1)
        until(lambda: done(log) == 1, "the commit")
    finally:
        it.close()


def test_a_redirect_is_not_followed() -> None:
    with receiver() as elsewhere, receiver([307, 302], {"Location": elsewhere.url}) as there:
        for _ in range(2):
            with pytest.raises(NotDelivered, match=r"30[27]"):
                Webhook(there.url, TOKEN).post(alert("a"), "a")
        assert elsewhere.got == []


def test_a_broken_answer_tells_no_secret(monkeypatch: pytest.MonkeyPatch) -> None:
    webhook = Webhook(f"https://hooks.example/{SECRET_PATH}")

    def broken(*_words: object, **_more: object) -> None:
        raise http.client.InvalidURL(f"URL can't contain control characters. '/{SECRET_PATH} x'")

    monkeypatch.setattr(webhook._opener, "open", broken)
    with pytest.raises(NotDelivered, match=r"^InvalidURL$"):
        webhook.post(alert("a"), "a")


def test_nobody_there() -> None:
    with receiver() as gone:
        url = gone.url
    with pytest.raises(NotDelivered, match="Connection refused") as caught:
        Webhook(url, timeout_s=5).post(alert("a"), "a")
    assert SECRET_PATH not in str(caught.value)


def test_a_receiver_that_does_not_answer() -> None:
    with receiver() as there:
        there.may_answer.clear()
        with pytest.raises(NotDelivered, match="timed out"):
            Webhook(there.url, timeout_s=0.2).post(alert("a"), "a")


@pytest.mark.parametrize(
    ("url", "token", "why"),
    [
        ("ftp://example.com/", "", "not an http or https address"),
        ("https://", "", "not an http or https address"),
        ("https://example.com:x/", "", "not an http or https address"),
        (f"https://example.com/{SECRET_PATH} x", "", "not printable ASCII"),
        (f"https://example.com/{SECRET_PATH}\x7f", "", "not printable ASCII"),
        (f"https://example.com/{SECRET_PATH}ü", "", "not printable ASCII"),
        (f"https://example..com/{SECRET_PATH}", "", "not an http or https address"),
        ("https://user:word@example.com/", "", "a user and password in the address would be logged"),
        ("http://example.com/", TOKEN, "http would send the token readable for all"),
        ("https://example.com/", "two\nlines", "not printable ASCII"),
    ],
)
def test_settings_that_cannot_be(url: str, token: str, why: str) -> None:
    with pytest.raises(ConfigError, match=f"setting alerts_webhook.*: {why}") as caught:
        Webhook(url, token)
    assert not any(secret in str(caught.value) for secret in (TOKEN, "word@", SECRET_PATH))


def test_a_webhook_does_not_show_its_secrets() -> None:
    webhook = Webhook(f"https://hooks.example:8443/{SECRET_PATH}", TOKEN)
    assert repr(webhook) == "Webhook('https://hooks.example:8443')"


def test_lines_are_json_alone(capsys: pytest.CaptureFixture[str]) -> None:
    log_as_lines()
    logging.getLogger("headrace.alerts").warning("%s", '{"event":"alert"}')
    assert capsys.readouterr().err == '{"event":"alert"}\n'
