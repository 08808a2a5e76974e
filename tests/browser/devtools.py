"""A headless chromium, spoken to by its DevTools protocol."""

from __future__ import annotations

import asyncio
import itertools
import re
import shutil
import tempfile
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import aiohttp

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)


class Page:
    """``problems`` are errors that the page's script has thrown, and what the browser refused or could not load."""

    def __init__(self, socket: aiohttp.ClientWebSocketResponse) -> None:
        self._socket, self._numbers = socket, itertools.count(1)
        self._answers: dict[int, asyncio.Future[Any]] = {}
        self.session = ""
        self.problems: list[str] = []

    async def listen(self) -> None:
        async for message in self._socket:
            found = message.json()
            if "id" in found:
                self._answers.pop(found["id"]).set_result(found)
            elif found["method"] == "Runtime.exceptionThrown":
                self.problems.append(str(found["params"]["exceptionDetails"]))
            elif found["method"] == "Log.entryAdded" and found["params"]["entry"]["level"] == "error":
                self.problems.append(str(found["params"]["entry"]))

    async def call(self, method: str, **params: Any) -> Any:
        number = next(self._numbers)
        self._answers[number] = asyncio.get_running_loop().create_future()
        of = {"sessionId": self.session} if self.session else {}
        answer = self._answers[number]
        await self._socket.send_json({"id": number, "method": method, "params": params, **of})
        found = await asyncio.wait_for(answer, 60)
        assert "error" not in found, found
        return found["result"]

    async def value(self, expression: str) -> Any:
        found = await self.call("Runtime.evaluate", expression=expression, returnByValue=True)
        assert "exceptionDetails" not in found, found
        return found["result"].get("value")

    async def until(self, expression: str) -> None:
        """Waits until it is true on the page."""
        for _ in range(1200):
            found = await self.call("Runtime.evaluate", expression=expression, returnByValue=True)
            if found["result"].get("value") is True:  # not an exception, as long as the page is being made
                return
            await asyncio.sleep(0.05)
        raise AssertionError(f"never true: {expression}; problems: {self.problems}")

    async def look(self, width: int, scheme: str) -> None:
        """As on a screen so wide, in a light or dark scheme."""
        await self.call(
            "Emulation.setDeviceMetricsOverride", width=width, height=900, deviceScaleFactor=1, mobile=False
        )
        await self.call("Emulation.setEmulatedMedia", features=[{"name": "prefers-color-scheme", "value": scheme}])

    async def open(self, url: str) -> None:
        self.session = ""
        target = (await self.call("Target.createTarget", url="about:blank"))["targetId"]
        self.session = (await self.call("Target.attachToTarget", targetId=target, flatten=True))["sessionId"]
        for domain in ("Page", "Runtime", "Log"):
            await self.call(f"{domain}.enable")
        await self.call("Page.navigate", url=url)


@asynccontextmanager
async def browser() -> AsyncIterator[Page]:
    """A browser with a profile of its own, which is gone afterwards."""
    assert CHROMIUM is not None
    profile = tempfile.mkdtemp(prefix="headrace-browser-")
    words = ["--headless=new", "--no-sandbox", "--disable-gpu", "--no-first-run", "--no-proxy-server"]
    process = await asyncio.create_subprocess_exec(
        CHROMIUM,
        *words,
        "--remote-debugging-port=0",
        f"--user-data-dir={profile}",
        "about:blank",
        stdout=asyncio.subprocess.DEVNULL,
        stderr=asyncio.subprocess.PIPE,
    )
    try:
        assert process.stderr is not None
        match = None
        while match is None:
            line = await asyncio.wait_for(process.stderr.readline(), 60)
            assert line, "chromium has ended"
            match = re.search(rb"ws://\S+", line)
        async with aiohttp.ClientSession() as session, session.ws_connect(match[0].decode(), max_msg_size=0) as socket:
            page = Page(socket)
            listening = asyncio.create_task(page.listen())
            yield page
            await page.call("Browser.close") if not page.session else None
            listening.cancel()
    finally:
        if process.returncode is None:
            process.terminate()
        await process.wait()
        shutil.rmtree(Path(profile), ignore_errors=True)
