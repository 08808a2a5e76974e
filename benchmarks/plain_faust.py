"""The same job as a plain Faust app, as its documentation teaches: one event at a time, JSON, dict state, topic.send.

Every event: transactions -> agent by card -> send to a topic keyed by terminal -> agent by terminal ->
`Booster.predict` -> send the score. State is one object per card and terminal in a dict, windows are cut by bisect.
What makes it fast is used: orjson, Faust's Cython streams, one LightGBM thread, sends that wait for nobody.
"""

from __future__ import annotations

import argparse
import math
import sys
import tempfile
from bisect import bisect_left, bisect_right
from collections import defaultdict
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import faust
import lightgbm
import numpy as np

from features.fraud import DEFAULT
from streams.topics import LABELS, TRANSACTIONS

__all__ = ["BY_TERMINAL", "GROUP", "SCORES", "make_app"]

GROUP = "plain-faust"
BY_TERMINAL = "plain-faust.by-terminal"
SCORES = "plain-faust.scores"
_DAY_MS = 86_400_000
_WINDOWS_MS = (_DAY_MS, 7 * _DAY_MS, 30 * _DAY_MS)
_DELAY_MS = 7 * _DAY_MS
_LATENESS_MS = 3_600_000
_NEVER = 2**62


class Card:
    """Times and amounts of one card, oldest first, at least those of the longest window."""

    __slots__ = ("amounts", "times")

    def __init__(self) -> None:
        self.times: list[int] = []
        self.amounts: list[float] = []

    def features(self, t: int, amount: float) -> dict[str, float]:
        """Adds the transaction; counts and means of the windows that end with it."""
        times, amounts = self.times, self.amounts
        place = bisect_right(times, t)
        times.insert(place, t)
        amounts.insert(place, amount)
        out: dict[str, float] = {}
        for window_ms, name in zip(_WINDOWS_MS, ("1d", "7d", "30d"), strict=True):
            begin = bisect_right(times, t - window_ms)
            count = place + 1 - begin
            out[f"card_count_{name}"] = float(count)
            out[f"card_mean_amount_{name}"] = math.fsum(amounts[begin : place + 1]) / count
        stale = bisect_right(times, times[-1] - _WINDOWS_MS[-1] - _LATENESS_MS)
        if stale > 100:
            del times[:stale], amounts[:stale]
        return out


class Terminal:
    """Times of one terminal's transactions, and (time, label time) of its frauds, oldest first."""

    __slots__ = ("frauds", "times")

    def __init__(self) -> None:
        self.times: list[int] = []
        self.frauds: list[tuple[int, int]] = []

    def features(self, t: int) -> dict[str, float]:
        """Counts and risks of the delayed windows; the transaction itself is added by `add`."""
        out: dict[str, float] = {}
        end = bisect_right(self.times, t - _DELAY_MS)
        frauds_end = bisect_right(self.frauds, (t - _DELAY_MS, _NEVER))
        for window_ms, name in zip(_WINDOWS_MS, ("1d", "7d", "30d"), strict=True):
            count = end - bisect_right(self.times, t - _DELAY_MS - window_ms)
            begin = bisect_right(self.frauds, (t - _DELAY_MS - window_ms, _NEVER))
            known = sum(label_time <= t for _, label_time in self.frauds[begin:frauds_end])
            out[f"terminal_count_{name}"] = float(count)
            out[f"terminal_risk_{name}"] = known / count if count else 0.0
        return out

    def add(self, t: int, label_time: int | None) -> None:
        """One more transaction; ``label_time`` where it is known as a fraud."""
        self.times.insert(bisect_right(self.times, t), t)
        if label_time is not None:
            self.fraud(t, label_time)
        stale = bisect_right(self.times, self.times[-1] - _DELAY_MS - _WINDOWS_MS[-1] - _LATENESS_MS)
        if stale > 100:
            oldest = self.times[stale]
            del self.times[:stale]
            del self.frauds[: bisect_left(self.frauds, (oldest, 0))]

    def fraud(self, t: int, label_time: int) -> None:
        """The transaction of time t is known as a fraud from ``label_time`` on."""
        entry = (t, label_time)
        self.frauds.insert(bisect_right(self.frauds, entry), entry)


def make_app(bootstrap: str, model_file: Path, model_label: str) -> faust.App:
    """The app; it prints ``ready`` once its partitions are assigned."""
    app = faust.App(
        GROUP,
        broker=f"kafka://{bootstrap}",
        store="memory://",
        web_enabled=False,
        autodiscover=False,
        datadir=tempfile.mkdtemp(prefix="plain-faust-"),
        topic_partitions=1,
        topic_disable_leader=True,
        stream_wait_empty=False,
        value_serializer="json",
        key_serializer="raw",
    )
    booster = lightgbm.Booster(model_file=str(model_file))
    names = DEFAULT.names
    transactions = app.topic(TRANSACTIONS)
    labels = app.topic(LABELS)
    by_terminal = app.topic(BY_TERMINAL)
    scores = app.topic(SCORES)
    cards: dict[Any, Card] = defaultdict(Card)
    terminals: dict[Any, Terminal] = defaultdict(Terminal)
    frauds: dict[Any, int] = {}
    seen: dict[Any, tuple[Any, int]] = {}

    @app.on_partitions_assigned.connect
    async def on_assigned(*_: Any, **__: Any) -> None:
        print("ready", flush=True)

    @app.agent(labels)
    async def on_label(stream: Any) -> None:
        async for label in stream:
            if label["is_fraud"]:
                transaction_id = label["transaction_id"]
                if transaction_id in seen:
                    terminal_id, t = seen[transaction_id]
                    terminals[terminal_id].fraud(t, label["label_time"])
                else:
                    frauds[transaction_id] = label["label_time"]

    @app.agent(transactions)
    async def on_transaction(stream: Any) -> None:
        async for event in stream.events():
            value = event.value
            features = cards[value["card_id"]].features(value["event_time"], value["amount"])
            source = f"{event.message.topic}/{event.message.partition}/{event.message.offset}"
            await by_terminal.send(
                key=str(value["terminal_id"]).encode(), value={**value, "features": features, "source": source}
            )

    @app.agent(by_terminal)
    async def on_row(stream: Any) -> None:
        newest = 0
        async for row in stream:
            t, transaction_id = row["event_time"], row["transaction_id"]
            terminal = terminals[row["terminal_id"]]
            when = datetime.fromtimestamp(t / 1000, UTC)
            features = {
                "amount": row["amount"],
                "is_weekend": float(when.weekday() >= 5),
                "is_night": float(when.hour <= 6),
                **row["features"],
                **terminal.features(t),
            }
            terminal.add(t, frauds.pop(transaction_id, None))
            seen[transaction_id] = (row["terminal_id"], t)
            newest = max(newest, t)
            vector = np.array([[features[name] for name in names]])
            raw = float(booster.predict(vector, raw_score=True, num_threads=1)[0])
            await scores.send(
                key=str(transaction_id).encode(),
                headers={"source": row["source"].encode()},
                value={
                    "transaction_id": transaction_id,
                    "event_time": t,
                    "card_id": row["card_id"],
                    "terminal_id": row["terminal_id"],
                    "amount": row["amount"],
                    "score": 1.0 / (1.0 + math.exp(-raw)),
                    "raw": raw,
                    "model": model_label,
                    "late": t < newest - _LATENESS_MS,
                    "reasons": [],
                    "features": features,
                    "extra": {},
                },
            )

    return app


def main() -> None:
    """Runs the app until it is told to end."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--bootstrap", required=True)
    parser.add_argument("--model", required=True, type=Path)
    parser.add_argument("--model-label", default="bench@1")
    args = parser.parse_args()
    app = make_app(args.bootstrap, args.model, args.model_label)
    # its spinner would write into our output
    worker = faust.Worker(app, loglevel="ERROR", redirect_stdouts=False, stdout=sys.stderr)
    worker.execute_from_commandline()


if __name__ == "__main__":
    main()
