"""`headrace demo --pipeline recommend` on the log in this process, and what it shows."""

from __future__ import annotations

import io
import json
import signal
import threading
from collections.abc import Iterator

import orjson
import pytest
from rich.console import Console

from streams.both_demo import BothDemo
from streams.cli.main import main
from streams.demo_plan import DemoSettings
from streams.demo_screen import Steps
from streams.livescreen import LiveScreen
from streams.liveview import DemoSnapshot
from streams.memory import MemoryLog
from streams.shop_demo import ShopDemo
from streams.shop_demo_lists import ListReader
from streams.shop_demo_screen import ShopScreen
from streams.shop_simulator import ShopChunk

pytestmark = pytest.mark.timeout(300)


@pytest.fixture(autouse=True)
def keep_signals() -> Iterator[None]:
    """The command sets handlers, which pytest's own must survive."""
    numbers = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
    before = {number: signal.getsignal(number) for number in numbers}
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


def test_every_click_gets_its_list_and_the_books_agree(capsys: pytest.CaptureFixture[str]) -> None:
    words = ["demo", "--pipeline", "recommend", "--memory", "--rate", "40", "--seconds", "3", "--json"]
    assert main(words) == 0
    out = capsys.readouterr().out
    figures = json.loads(out.splitlines()[-1])
    assert figures["ok"] and figures["problems"] == [] and figures["backend"] == "memory"
    assert figures["received"] == figures["scored"] + figures["dead_letters"] + figures["duplicates"] > 40
    assert sum(figures["rungs"].values()) == figures["scored"] and figures["latency_ms_p50"] > 0
    assert figures["worker"]["recommended"] == figures["scored"] + figures["history"]
    assert figures["rungs"]["ranked"] > 0 and figures["hit_rate"] > 0.05
    assert "all accounted for" in out and "model: done" in out and "recommend@1: LambdaRank" in out


def event(i: int, user: int, item: int) -> bytes:
    return orjson.dumps({"event_id": i, "user_id": user, "item_id": item, "action": "view", "category": "hats"})


def test_one_user_is_followed_as_the_list_changes() -> None:
    lists = ListReader(MemoryLog())
    lists.go_live()
    lists.sending(ShopChunk(0.0, 0, [b"1", b"2"], [event(0, 1, 5), b"{", event(1, 2, 6)]))
    followed = lists.followed
    assert followed is not None and followed.user == 1 and list(followed.steps) == [("view hats 5", False)]
    lists._last[1] = frozenset([7])
    lists.sending(ShopChunk(0.0, 0, [b"1"], [event(2, 1, 7)]))
    assert list(followed.steps)[-1] == ("view hats 7", True) and (lists.asked, lists.hits) == (1, 1)
    followed.items, followed.rung = [{"item_id": 9, "score": None, "source": "trending"}], "trending"
    for terminal in (False, True):
        out = io.StringIO()
        screen = ShopScreen(Console(file=out, force_terminal=terminal, width=100), Steps(("kafka",)))
        screen.lists, screen.live_since = lists, 0.0
        with screen.on():
            screen.draw()
        assert "view hats 7" in out.getvalue() and "trending" in out.getvalue()


@pytest.mark.parametrize(("height", "shown"), [(50, True), (24, False)])
def test_beside_the_card_business_the_list_is_shown_where_there_is_room(height: int, shown: bool) -> None:
    out = io.StringIO()
    console = Console(file=out, force_terminal=True, width=100, height=height)
    lists = ListReader(MemoryLog())
    lists.go_live()
    lists.sending(ShopChunk(0.0, 0, [b"1"], [event(0, 1, 5)]))
    shop = ShopScreen(console, Steps(("model",)), "shop ")
    shop.lists, shop.live_since = lists, 0.0
    with shop.on():
        shop.draw()
    assert out.getvalue() == "", "the screen is another's"
    with LiveScreen(console) as screen:
        screen.update(DemoSnapshot(live=True), shop.below())
    assert "recommendations" in out.getvalue() and "no list yet" in out.getvalue()
    assert ("view hats 5" in out.getvalue()) == shown


def test_what_goes_wrong_in_the_shop_is_told_beside_the_rest(monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(self: ShopDemo) -> None:
        raise RuntimeError("no shop today")

    monkeypatch.setattr(ShopDemo, "run_on", fails)
    both = BothDemo(DemoSettings(seconds=1.0), 100.0, Console(quiet=True), threading.Event())
    shop = both._shop
    shop.start()
    assert shop.end() == ["shop: RuntimeError: no shop today"] == shop.end()
    assert shop.is_live, "nobody waits for it any more"
    figures = both.figures()["recommendations"]
    assert figures["scored"] == 0 and not figures["ok"] and figures["problems"] == shop.end()
