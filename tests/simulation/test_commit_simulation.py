"""Thousands of seeded schedules of crashes, rebalances, zombies and outages against the real commit protocol.

HEADRACE_SIM_SEED=1234 pytest tests/simulation -s -k promise  # one schedule again, with all that happened
HEADRACE_SIM_SCHEDULES=100000 pytest tests/simulation --timeout 0
"""

from __future__ import annotations

import logging
import os
from collections import Counter
from collections.abc import Iterator

import pytest
from sim_canaries import CANARIES
from sim_worker import Protocol
from sim_world import Violation, World

#: of each mode
SCHEDULES = int(os.environ.get("HEADRACE_SIM_SCHEDULES", "1200"))
SEED = os.environ.get("HEADRACE_SIM_SEED")
SEEDS = range(SCHEDULES) if SEED is None else [int(SEED)]
#: in so many every canary is found, or the schedules have become too tame
CANARY_SEEDS = range(1200)
MODES = {"at_least_once": False, "exactly_once": True}
#: places of the protocol where workers must have crashed, or the schedules prove little
CRASH_AT = {
    "both": {"poll", "lock", "waiting", "loaded", "publish", "send", "leaving"},
    "at_least_once": {"flush", "flushing", "flushed", "commit-offsets", "offsets-sent", "offsets-committed"},
    "exactly_once": {
        *("begin", "commit-transaction", "delivering", "offsets-added", "transaction-committed"),
        *("abort", "aborted"),
    },
}
#: what else must have happened
MET = {
    "both": {"commit refused", "partitions lost", "state loaded", "half-written"},
    "at_least_once": {"row again", "output again", "delivery-failed"},
    "exactly_once": {"committed", "aborted", "transaction-fenced", "transaction expired"},
}
#: what is printed of a schedule that failed
_EVENTS = 150


@pytest.fixture(autouse=True)
def quiet() -> Iterator[None]:
    """What workers log of their faults would fill the report of a test that fails."""
    logger = logging.getLogger("headrace")
    before = logger.level
    logger.setLevel(logging.CRITICAL + 1)
    yield
    logger.setLevel(before)


def violation(
    seed: int, exactly_once: bool, protocol: Protocol | None = None, watch: bool = True, keep: bool = False
) -> tuple[World, Violation | None]:
    """The world after the schedule, and the promise that was broken in it."""
    world = World(seed, exactly_once=exactly_once, protocol=protocol, watch=watch, keep=keep)
    try:
        world.run()
    except Violation as found:
        return world, found
    except Exception as exc:
        exc.add_note(f"HEADRACE_SIM_SEED={seed}, exactly_once={exactly_once}")
        raise
    return world, None


@pytest.mark.parametrize("mode", MODES)
def test_no_schedule_breaks_a_promise(mode: str) -> None:
    crashes: Counter[str] = Counter()
    met: Counter[str] = Counter()
    for seed in SEEDS:
        world, found = violation(seed, MODES[mode], keep=SEED is not None)
        crashes += world.crashes
        met += world.met + Counter({"half-written": world.files.refused})
        if found is not None:
            again, _ = violation(seed, MODES[mode], keep=True)
            print("\n".join(again.events[-_EVENTS:]))
            again_with = f"HEADRACE_SIM_SEED={seed} pytest tests/simulation -s -k 'promise and {mode}'"
            pytest.fail(f"{mode}: {found}\nagain: {again_with}")
    if SEED is not None:
        print("\n".join(world.events))
    if len(SEEDS) >= 1000:
        assert not (CRASH_AT["both"] | CRASH_AT[mode]) - set(crashes), f"no crash there: {crashes}"
        assert not (MET["both"] | MET[mode]) - set(met), f"never met: {met}"
        print(f"{mode}: {len(SEEDS)} schedules; crashes {dict(crashes)}; met {dict(met)}")


@pytest.mark.parametrize(
    ("name", "mode"), [(n, mode) for n, canary in CANARIES.items() for mode in MODES if MODES[mode] in canary.modes]
)
def test_every_canary_is_caught(name: str, mode: str) -> None:
    canary = CANARIES[name]
    for seed in CANARY_SEEDS:
        _, found = violation(seed, MODES[mode], canary.protocol, watch=canary.watched)
        if found is not None:
            print(f"{name}, {mode}: seed {seed}: {found}")
            assert found.promise in canary.promises
            return
    pytest.fail(f"{name}: not found in {len(CANARY_SEEDS)} schedules")


@pytest.mark.parametrize("mode", MODES)
def test_a_seed_gives_the_same_schedule_again(mode: str) -> None:
    for seed in range(5):
        (first, _), (second, _) = (violation(seed, MODES[mode], keep=True) for _ in range(2))
        assert first.events == second.events
        assert first.events, "something happened"
