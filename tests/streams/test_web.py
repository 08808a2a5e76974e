"""The web server beside a worker: what it says, whom it answers, and that it says so when the worker hangs."""

from __future__ import annotations

import argparse
import re
import signal
import socket
import subprocess
import threading
import time
import tomllib
from importlib.resources import files
from itertools import pairwise
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import orjson
import pytest
from prometheus_client.parser import text_string_to_metric_families
from recommend_logs import ShopFed, interaction, shop_pipeline
from web_worker import ask, served, until_status
from workers import send, until

from features.block import Block, Ids
from monitoring.metrics import LATENCY_BOUNDS_S, METRICS, SCORE_BOUNDS, Sample
from streams import web_alerts, web_figures
from streams.cli.run_all import pages_of, web_words
from streams.config import load_settings
from streams.demo_children import child_command
from streams.errors import ConfigError
from streams.log import TP, LogUnavailable, connect
from streams.reader import BlockReader
from streams.topics import ALERTS
from streams.web import WebServer
from streams.web_address import Address, is_loopback, peers
from streams.web_alerts import AlertBook
from streams.web_figures import Collected, Figures, Health, PartitionNow, samples
from streams.web_scores import Drained, ScoreFigures, ScoreTap, TappedEncoder

FIGURES = {"value": 0.4, "threshold": 0.1, "evidence": {}, "action": "none"}


def metrics_of(text: bytes) -> dict[str, float]:
    """Sums over all labels."""
    found: dict[str, float] = {}
    for family in text_string_to_metric_families(text.decode()):
        for sample in family.samples:
            found[sample.name] = found.get(sample.name, 0.0) + sample.value
    return found


def scored_block(scores: list[float], sent_ms: int) -> tuple[Block, dict[str, Any]]:
    n = len(scores)
    numbers = np.arange(n, dtype=np.int64)
    ids = {name: Ids(ints=numbers) for name in ("transaction_id", "card_id", "terminal_id")}
    columns = {"event_time": np.full(n, 1_600_000_000_000), "amount": np.full(n, 2.5)}
    block = Block("t", 0, n, numbers, np.full(n, sent_ms), ids, columns)
    more = {"features": np.ones((n, 1)), "late": np.zeros(n, bool), "model": "m@1", "score": np.array(scores)}
    return block, more | {"raw": np.array(scores)}


def test_the_page_its_files_and_the_figures() -> None:
    with served() as it:
        send(connect(it.figures.worker._log.url), "transactions", [b"x"] * 100)
        status = until_status(it, lambda s: s.get("counts", {}).get("scored") == 100, "the counters")
        assert status["pipeline"] == "fraud" and status["health"] == {"ok": True, "state": "ready", "reason": ""}
        assert sum(p["next_offset"] for p in status["partitions"]) == 100
        assert status["quality"] == {"transactions": {"amount": {"out_of_range": 3}}}
        found = metrics_of(it.get("/metrics")[1])
        assert found["headrace_received_total"] == found["headrace_scored_total"] == 100
        until(lambda: metrics_of(it.get("/metrics")[1]).get("headrace_commit_seconds", 0) > 0, "a commit", 60)
        assert found["headrace_next_offset"] == 100 and found["headrace_partitions_assigned"] == 4
        assert found["headrace_ready"] == 1 and found["headrace_quality_findings_total"] == 3
        page = it.get("/")[1].decode()
        for name in re.findall(r'(?:src|href)="([a-z]+\.(?:js|css))"', page):
            assert it.get(f"/{name}")[0] == 200
        assert "://" not in page, "nothing from elsewhere"
        assert it.get("/../pyproject.toml")[0] == 404 and it.get("/api/nothing")[0] == 404
        until_status(it, lambda s: len(s["history"]["in"]) > 1, "two turns")


def test_a_worker_that_hangs_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(web_figures, "STALL_S", 0.3)
    hang = threading.Event()

    def stage(_tp: object, _batch: object) -> None:
        assert hang.wait(60)

    with served(before=stage) as it:
        try:
            until(lambda: it.get("/healthz")[0] == 200, "to be ready")
            send(connect(it.figures.worker._log.url), "transactions", [b"x"] * 4)
            until(lambda: it.get("/healthz")[0] == 503, "the stall to be seen", 60)
            assert it.json("/healthz")["state"] == "stalled"
            assert it.get("/metrics")[0] == 200, "what was known last"
        finally:
            hang.set()
        until(lambda: it.get("/healthz")[0] == 200, "to be well again", 60)


def test_health_by_state() -> None:
    with served() as it:
        until(lambda: it.figures.health(0.0).ok, "to be ready")
        it.figures.ready = False
        assert it.figures.health(0.0).state == "starting"
        it.figures.ready = True
        assert it.figures.health(1e6) == Health(False, "stalled", "the event loop has not answered for 1000000 s")
        reader = it.worker.reader
        assert reader is not None
        with reader.assignment.cond:
            next(iter(reader.assignment.partitions.values())).recovering = True
        assert "1 of 4 partitions" in it.figures.health(0.0).reason


def test_only_who_has_the_token_changes_anything() -> None:
    with served(token="sesame") as it:
        for headers in (
            {},
            {"Authorization": "Bearer wrong"},
            {"Authorization": "sesame"},
            {"Authorization": "Bearer sesam\xff"},
        ):
            assert it.get("/api/pause", method="POST", headers=headers)[0] == 403
        assert it.get("/healthz")[0] == 200
        assert it.get("/api/pause")[0] == 405, "reading changes nothing"
        right = {"Authorization": "Bearer sesame"}
        assert it.get("/api/pause", method="POST", headers=right) == (200, b'{"paused":true}')
        until(lambda: it.json("/healthz")["state"] == "paused", "the pause", 60)
        send(connect(it.figures.worker._log.url), "transactions", [b"x"] * 8)
        assert it.get("/api/resume", method="POST", headers=right)[0] == 200
        until_status(it, lambda s: s["counts"]["scored"] == 8, "what came in the pause")
        assert it.get("/healthz")[0] == 200


def test_without_a_token_nobody_changes_anything() -> None:
    with served() as it:
        for given in ("Bearer ", "Bearer None", "Bearer"):
            assert it.get("/api/pause", method="POST", headers={"Authorization": given})[0] == 403


def test_a_name_of_somebody_else_s_is_refused() -> None:
    with served() as it:
        for host in ("evil.example", "evil.example:80", "127.0.0.1.evil.example"):
            assert it.get("/api/status", headers={"Host": host})[0] == 403
        for host in ("localhost", "127.0.0.1:1", "[::1]:8600", "127.5.5.5"):
            assert it.get("/api/status", headers={"Host": host})[0] == 200
    with served(remote=True) as it:
        assert it.get("/healthz", headers={"Host": "headrace.example"})[0] == 200


def test_an_address_that_others_reach_has_to_be_meant() -> None:
    log = connect("memory://nothing")
    with pytest.raises(ConfigError, match=r"--web 0\.0\.0\.0:0: other machines .* --web-remote"):
        WebServer(Figures("monitor", "g", None, None), log, Address("0.0.0.0", 0))  # type: ignore[arg-type]


def test_a_port_that_is_taken() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        address = Address("127.0.0.1", taken.getsockname()[1])
        server = WebServer(Figures("monitor", "g", None, None), connect("memory://nothing"), address)  # type: ignore[arg-type]
        with pytest.raises(ConfigError, match="cannot listen there: Address already in use; give another port"):
            server.start(None)  # type: ignore[arg-type]


def test_alerts_in_the_topic_each_once(monkeypatch: pytest.MonkeyPatch) -> None:
    alerts = [
        {"alert_id": f"{i}", "event_time": 10 * i, "kind": kind, "severity": "warning", "subject": "<b>", **FIGURES}
        for i, kind in enumerate(["input_drift", "score_drift", "input_drift"])
    ]
    with served(name="alerts-each-once") as it:
        log = connect("memory://alerts-each-once")
        values = [*map(orjson.dumps, [*alerts, alerts[0]]), b"no json", b"[]", b'{"alert_id":"x","event_time":"y"}']
        values.append(orjson.dumps(alerts[2] | {"alert_id": 2}))  # of the same time, and no alert
        send(log, ALERTS, values, partitions=2)
        until(lambda: len(it.json("/api/alerts")["alerts"]) == 3, "the alerts", 60)
        assert [alert["alert_id"] for alert in it.json("/api/alerts")["alerts"]] == ["2", "1", "0"]
        send(log, ALERTS, [orjson.dumps(alerts[1] | {"alert_id": "3"})], partitions=2)
        counted = until_status(it, lambda s: sum(of["count"] for of in s["alerts"]) == 4, "the fourth")["alerts"]
        assert {of["kind"]: of["count"] for of in counted} == {"input_drift": 2, "score_drift": 2}
        assert metrics_of(it.get("/metrics")[1])["headrace_alerts"] == 4
        send(log, ALERTS, [orjson.dumps(alerts[1] | {"severity": "critical"})], partitions=2)
        critical = {"kind": "score_drift", "severity": "critical", "count": 1}
        counted = until_status(it, lambda s: critical in s["alerts"], "the alert to be critical")["alerts"]
        assert sum(of["count"] for of in counted) == 4
        assert b'headrace_alerts{kind="score_drift",pipeline="fraud",severity="warning"} 1.0' in it.get("/metrics")[1]


def test_what_is_known_of_alerts_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(web_alerts, "_KNOWN", 10)
    book = AlertBook(connect("memory://bounded"))
    of = {"kind": "score_drift", "subject": "score", **FIGURES}
    for i in range(1000):
        severity = "critical" if i % 4 == 3 else "warning"
        book._take(orjson.dumps({"alert_id": f"{i // 2}", "event_time": i, "severity": severity, **of}))
    book._take(orjson.dumps({"alert_id": "499", "event_time": 999, "severity": "warning", "action": "update", **of}))
    assert book.counts == {("score_drift", "warning"): 250, ("score_drift", "critical"): 250}
    assert len(book._known) == 10 and len(book._alerts) <= 400
    assert book.newest(1)[0]["severity"] == "critical"


def test_closing_does_not_wait_for_a_log_that_does_not_answer(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(web_alerts, "_CLOSE_S", 0.01)
    asked, answer = threading.Event(), threading.Event()
    log = connect("memory://silent")

    def admin() -> Any:
        asked.set()
        assert answer.wait(60)
        raise LogUnavailable("no broker")

    monkeypatch.setattr(log, "admin", admin)
    book = AlertBook(log)
    book.start()
    assert asked.wait(60)
    closing = threading.Thread(target=book.close, daemon=True)
    closing.start()
    closing.join(30)
    closed = not closing.is_alive()
    answer.set()
    assert closed


def test_who_asks_whether_the_flow_is_stopped_holds_the_lock_over_the_partitions() -> None:
    host: Any = SimpleNamespace(recover=None, flush=None)
    reader = BlockReader(connect("memory://flow").consumer("g"), {}, host)
    reader.stop_flow()
    held: list[bool] = []

    def somebody_else() -> None:
        got = reader.assignment.cond.acquire(blocking=False)
        held.append(not got)
        if got:
            reader.assignment.cond.release()

    class Watched(dict[Any, Any]):
        def values(self) -> Any:
            other = threading.Thread(target=somebody_else)
            other.start()
            other.join(60)
            return super().values()

    reader._partitions = Watched({TP("t", 0): SimpleNamespace(paused=True)})
    assert reader.flow_is_stopped and held == [True]


def test_lists_are_timed_as_they_are_encoded() -> None:
    fed, tap, figures = ShopFed(shop_pipeline()), ScoreTap(), ScoreFigures()
    Figures("recommend", "g", None, fed.pipeline, tap)  # type: ignore[arg-type]
    [listed] = fed.feed([interaction(1)])
    assert listed["features"] is None and listed["items"], "encoded as before"
    figures.take(tap.drain())
    assert figures.recent_latency()["latency_ms_p50"] is not None and sum(figures.latency.counts) == 1
    assert sum(figures.scores.counts) == 0 and figures.high() == []


def test_scores_are_counted_as_they_are_encoded() -> None:
    tap, figures = ScoreTap(), ScoreFigures()
    encoder = TappedEncoder(("amount",), tap)
    rng = np.random.default_rng(1)
    scores = rng.random((5, 200))
    scores[0, 0] = np.nan
    sent = int(time.time() * 1000) - 4_000
    values = []
    for row in scores:
        block, more = scored_block(row.tolist(), sent)
        values += encoder.encode(block, **more)
    drained = tap.drain()
    assert len(drained.blocks) == 5 and tap.drain().blocks == []
    figures.take(drained)
    known = scores[np.isfinite(scores)]
    assert figures.scores.counts == [
        *(int(np.count_nonzero((known > a) & (known <= b))) for a, b in pairwise((-1.0, *SCORE_BOUNDS))),
        0,
    ]
    assert figures.scores.sum == pytest.approx(known.sum())
    assert sum(figures.latency.counts) == 1000 and sum(figures.latency.counts[:11]) == 0, "none faster than 2 s"
    assert len(figures.latency.counts) == len(LATENCY_BOUNDS_S) + 1
    assert figures.recent_latency()["latency_ms_p50"] > 3_900
    high = [orjson.loads(value) for value in values if (orjson.loads(value)["score"] or 0) >= 0.5][-50:]
    for record in high:
        del record["features"]
    assert figures.high() == high[::-1]


def test_latencies_of_long_ago_are_not_told_as_recent() -> None:
    figures = ScoreFigures()
    now = time.time()
    figures.take(Drained([(now, np.array([int(1000 * now) - 5000, 0]), np.array([0.1, 0.2]))], []))
    assert figures.recent_latency()["count"] == 1, "a record without a timestamp has no latency"
    for _ in range(10):
        figures.take(Drained([], []))
    assert figures.recent_latency() == {"count": 0} | dict.fromkeys(list(figures.recent_latency())[1:])
    assert sum(figures.latency.counts) == 1


def test_what_a_monitor_and_a_canary_have_to_say_is_declared() -> None:
    """Every sample that can be made is of a metric that there is, with its labels."""
    half = {"learning": False, "strongest": 0.5, "psi": {"amount": 0.1, "other": None}}
    details = {
        "join": {"joined": 3},
        "maturity": [{"age_ms": 60_000, "labelled": 0.5}, {"age_ms": 600_000, "labelled": None}],
        "watched": {"fraud.by-transaction/1": {"m@1": {"scored": half, "labelled": {
            "learning": True, "metrics": {"auc": {"value": 0.9, "reference": None, "interval": [0.8, 0.95]}}}}}},
    }  # fmt: skip
    now = Collected(
        at_s=0.0,
        counts={"received": 3, "rung_ranked": 2, "keys_in_two_partitions": 0, "unheard_of": 1},
        lag={"card": {"records": 1, "seconds": 0.5}},
        partitions=[PartitionNow("fraud.by-terminal", 2, 1, 10, 8, 1, 4, True, {"champion": "m@1", "canary": "n@1"})],
        models={"champion": "m@1", "canary": "n@1", "share": 0.1},
        seconds={"score": 1.0},
        checkpoints={"written": 2, "took_s": 0.5, "pause_ms": 4.0, "pause_ms_p50": 2.0, "pause_ms_p99": 4.0},
        commits={"latency_ms_p50": 12.0, "latency_ms_p99": None},
        recovery={"ready_s": 1.5},
        quality={"transactions": {"amount": {"missing": 2}}},
    )
    by_name = {metric.name: metric for metric in METRICS}
    found = list(samples(Figures("monitor", "g", None, None), now, details, Health(True, "ready")))  # type: ignore[arg-type]
    assert all(len(sample.labels) == len(by_name[sample.name].labels) for sample in found)
    assert Sample("lists_total", 2, ("ranked",)) in found
    assert Sample("model_info", 1, ("2", "canary", "n@1")) in found
    assert Sample("commit_seconds", 0.012, ("0.5",)) in found
    assert Sample("partition_lag_records", 4, ("fraud.by-terminal", "2")) in found
    assert Sample("psi", 0.1, ("m@1", "1", "amount")) in found
    assert Sample("performance", 0.9, ("m@1", "1", "auc", "now")) in found
    assert [s for s in found if s.name == "label_maturity_ratio"] == [Sample("label_maturity_ratio", 0.5, ("60",))]


@pytest.mark.parametrize(
    ("text", "host", "port"),
    [
        ("127.0.0.1:8600", "127.0.0.1", 8600),
        ("8600", "127.0.0.1", 8600),
        (":8600", "127.0.0.1", 8600),
        ("0", "127.0.0.1", 0),
        ("[::1]:80", "::1", 80),
        ("0.0.0.0:80", "0.0.0.0", 80),
        ("host.example:80", "host.example", 80),
    ],
)
def test_addresses(text: str, host: str, port: int) -> None:
    assert Address.parse(text) == Address(host, port)
    assert Address.parse(str(Address(host, port))) == Address(host, port)


@pytest.mark.parametrize("text", ["host", "host:", "1.2.3.4:99999", "http://x:1", "::1:80", "-1", "a b:1:2"])
def test_what_is_no_address(text: str) -> None:
    with pytest.raises(ConfigError, match=r"setting web_address: .* is no address to listen at; give HOST:PORT"):
        load_settings(overrides={"web_address": text})


def test_loopback() -> None:
    assert all(map(is_loopback, ["127.0.0.1", "127.9.9.9", "::1", "[::1]", "localhost", "LOCALHOST"]))
    assert not any(map(is_loopback, ["0.0.0.0", "::", "10.0.0.1", "localhost.example", "127.0.0.1.example", ""]))


def test_sections_of_the_configuration_and_its_secrets(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "headrace.toml"
    (tmp_path / "token").write_text("from-a-file\n")
    file.write_text(
        f'[web]\naddress = ":1"\ntoken = "${{file:{tmp_path}/token}}"\n[alerts]\nwebhook = "${{env:HOOK}}"\n'
        'webhook_token = "in-clear"\n'
    )
    settings = load_settings(file, {})
    assert settings.web_address == ":1" and settings.secret("web_token") == "from-a-file"
    assert "in-clear" not in repr(settings) and "HOOK" not in repr(settings)
    with pytest.raises(ConfigError, match="setting alerts_webhook: environment variable HOOK is not set"):
        settings.secret("alerts_webhook")
    monkeypatch.setenv("HOOK", "https://hooks.example/secret")
    assert settings.secret("alerts_webhook") == "https://hooks.example/secret"
    file.write_text('[web]\nadress = ":1"\n')
    with pytest.raises(ConfigError, match="setting web_adress: not known"):
        load_settings(file, {})


def test_each_pipeline_has_a_port_of_its_own() -> None:

    def pages(web: str | None) -> list[str]:
        args = argparse.Namespace(web=web, config=None)
        return [str(page) for page in pages_of(args, ["fraud", "monitor", "recommend"]).values()]

    assert pages("8600") == ["127.0.0.1:8600", "127.0.0.1:8601", "127.0.0.1:8602"]
    assert pages("[::1]:0") == ["[::1]:0"] * 3
    assert pages(None) == []
    with pytest.raises(ConfigError, match="65534: each of 3 pipelines has a port of its own"):
        pages("65534")
    assert peers("fraud=8600,monitor=8601") == {"fraud": 8600, "monitor": 8601}
    with pytest.raises(ConfigError, match="does not name pages"):
        peers("fraud:8600")


def test_words_for_a_child() -> None:
    remote, local = argparse.Namespace(web_remote=True), argparse.Namespace(web_remote=None)
    assert web_words(Address("0.0.0.0", 8601), remote) == ["--web", "0.0.0.0:8601", "--web-remote"]
    assert web_words(Address("127.0.0.1", 8601), local) == ["--web", "127.0.0.1:8601"]
    assert web_words(None, remote) == []


def test_run_serves_its_page_until_it_ends() -> None:
    words = ["run", "--pipeline", "monitor", "--bootstrap", "memory://web", "--web", "0", "--json"]
    worker = subprocess.Popen(child_command("streams.cli.main", words), stdout=subprocess.PIPE, text=True)
    try:
        assert worker.stdout is not None
        first, second = worker.stdout.readline(), worker.stdout.readline()
        match = re.fullmatch(r"web (http://127\.0\.0\.1:\d+)/\n", first)
        assert match is not None, first
        assert second == "ready\n"
        until(lambda: ask(match[1] + "/healthz")[0] == 200, "to be ready", 60)
        status = orjson.loads(ask(match[1] + "/api/status")[1])
        assert status["pipeline"] == "monitor" and status["monitor"]["maturity"] is not None
        assert b"headrace_alerts_waiting" in ask(match[1] + "/metrics")[1]
        worker.send_signal(signal.SIGTERM)
        rest, _ = worker.communicate(timeout=100)
        assert worker.returncode == 0 and orjson.loads(rest.splitlines()[-1])["received"] == 0
    finally:
        worker.kill()
        worker.communicate()


def test_no_score_is_missing_where_blocks_come_while_others_are_counted() -> None:
    tap, figures, n = ScoreTap(), ScoreFigures(), 3_000
    at, score = np.array([1]), np.array([0.9])

    def fill() -> None:
        for _ in range(n):
            tap.take(at, score, [b'{"score":0.9}'])

    filling = threading.Thread(target=fill)
    filling.start()
    while filling.is_alive():
        figures.take(tap.drain())
    filling.join()
    figures.take(tap.drain())
    assert sum(figures.scores.counts) == sum(figures.latency.counts) == n
    assert len(figures.high()) == 50


def test_the_page_is_packaged() -> None:
    project = tomllib.loads((Path(__file__).resolve().parent.parent.parent / "pyproject.toml").read_text())
    assert project["tool"]["setuptools"]["package-data"]["monitoring"] == ["dashboard/*"]
    names = {path.name for path in (files("monitoring") / "dashboard").iterdir()}
    assert names == {"index.html", "app.js", "style.css"}
