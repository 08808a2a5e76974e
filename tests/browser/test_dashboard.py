"""The web page in a headless chromium: it shows what the worker says, as text, on wide and narrow screens."""

from __future__ import annotations

import asyncio
import time

import numpy as np
import orjson
import pytest
from devtools import CHROMIUM, Page, browser
from web_worker import Served, served
from workers import send

from features.block import Block, Ids
from streams.log import connect
from streams.topics import ALERTS

NASTY = "<img src=x onerror=alert(1)>"
ALERT = {
    "alert_id": "00ff",
    "event_time": 1_600_000_000_000,
    "kind": "input_drift",
    "subject": NASTY,
    "severity": "critical",
    "value": 0.41,
    "threshold": 0.12,
    "evidence": {
        "summary": f"{NASTY}: psi is 0.41",
        "since": 1_599_990_000_000,
        "watches": [{"measure": "psi", "subject": NASTY, "periods": 1, "value": 0.4, "expected": None, "threshold": 0}],
        "distribution": {"subject": "amount", "then": [0.5, 0.5, 0.0], "now": [0.1, None, 0.9]},
        "examples": [{"transaction_id": NASTY, "score": None}],
    },
    "action": "none",
}  # fmt: skip
TEXT = "document.body.innerText"

pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="no chromium here to show the page: apt-get install chromium")


def encode_some(it: Served) -> None:
    n = 3
    ids = {"transaction_id": Ids(mixed=["t1", NASTY, 7]), "card_id": Ids(mixed=[NASTY, "c2", 9])}
    ids["terminal_id"] = Ids(ints=np.arange(n))
    columns = {"event_time": np.full(n, 1_600_000_000_000), "amount": np.array([1.0, 2.5, np.nan])}
    sent = np.full(n, int(time.time() * 1000) - 40)
    reasons = [orjson.dumps([{"feature": NASTY, "value": None, "contribution": -0.25}])] * n
    it.pipeline.encoder.encode(
        Block("t", 0, n, np.arange(n), sent, ids, columns),
        features=np.ones((n, 1)),
        late=np.zeros(n, bool),
        model="m@1",
        score=np.array([0.93, 0.2, 0.71]),
        raw=np.zeros(n),
        reasons=reasons,
    )


async def look(it: Served) -> None:
    async with browser() as page:
        await page.open(f"{it.url}/#00ff")
        await page.until("document.body.dataset.drawn !== undefined")
        await page.until(f"{TEXT}.includes('60') && {TEXT}.includes('0.930') && {TEXT}.includes('input drift')")
        text = await page.value(TEXT)
        assert "headrace fraud" in text and "ready" in text
        assert text.count(NASTY) >= 5 and await page.value("document.images.length") == 0, "text stays text"
        assert await page.value("document.querySelector('#alert-list details').open"), "the address names this alert"
        assert await page.value("document.querySelectorAll('#histogram .bars i').length") == 20
        assert await page.value("document.querySelectorAll('.twin i').length") == 6
        await fails_and_recovers(page)
        await page.until("document.querySelector('#chart-rate path').getAttribute('d').length > 5")
        grounds = set()
        for width, scheme in ((1280, "light"), (1280, "dark"), (360, "light"), (768, "dark")):
            await page.look(width, scheme)
            await page.until(f"window.innerWidth === {width}")
            assert await page.value("document.documentElement.scrollWidth <= window.innerWidth"), width
            grounds.add(await page.value("getComputedStyle(document.body).backgroundColor"))
        assert len(grounds) == 2, "light and dark differ"
        assert page.problems == []
        await asyncio.to_thread(it.on_loop, lambda: setattr(it.figures, "ready", False))
        await page.until("document.querySelector('#state').innerText === 'starting'")
        assert "no partitions are assigned yet" in await page.value(TEXT)


async def fails_and_recovers(page: Page) -> None:
    """Alerts that cannot be told of for a moment, or are not drawn, are shown a moment later."""
    await page.value("alertsAt = 0, alertsShown = '', document.querySelector('#alert-list').replaceChildren()")
    await page.value(
        "window.answers = window.fetch, window.fetch = (path, ...more) => path !== 'api/alerts'"
        " ? answers(path, ...more) : Promise.resolve(new Response('{\"alerts\":[]}', { status: 500 }))"
    )
    await page.until(f"{TEXT}.includes('api/alerts says 500')")
    assert await page.value("alertsShown") == ""
    await page.value("window.fetch = answers")
    await page.until("document.querySelectorAll('#alert-list details').length === 1")


def test_the_page_in_a_browser() -> None:
    with served(name="browser") as it:
        log = connect("memory://browser")
        send(log, ALERTS, [orjson.dumps(ALERT)], 1)
        send(log, "transactions", [b"x"] * 60)
        it.on_loop(lambda: encode_some(it))
        asyncio.run(look(it))
