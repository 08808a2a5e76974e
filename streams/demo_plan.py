"""What `headrace demo` runs: the size and the times of its world, and the settings of its worker."""

from __future__ import annotations

import json
import math
from dataclasses import dataclass
from pathlib import Path

from features.schema import TIME_MS_MIN
from streams.errors import ConfigError
from streams.simulator import DAY_MS, World, midnight
from streams.simulator_stream import Imperfections

__all__ = [
    "HISTORY_DAYS",
    "RECENT_DAYS",
    "SLICES_AT_ONCE",
    "TEST_DAYS",
    "TRAIN_DAYS",
    "DemoSettings",
    "Plan",
    "faults",
    "make_plan",
    "write_config",
]

HISTORY_DAYS = 75
#: what the worker must have read for its windows to be full: 30 days, 7 more of delay, one to spare
RECENT_DAYS = 38
#: training begins where the windows are full enough, ends where the test's labels are known
TRAIN_DAYS, TEST_DAYS = (26, 54), (61, 68)

_ROWS_PER_DAY = (1_000, 3_000)
_DAY_S = 86_400
_HOUR_MS = 3_600_000
#: of the history, see `Plan`
SLICES_AT_ONCE = 2
#: divisors of a day, so that the history's end is a slice's too
_SLICES_MS = tuple(hours * _HOUR_MS for hours in (6, 8, 12, 24))
#: partitions may be apart by so much of the clock before a row counts as late
_SKEW_S = 1.5


@dataclass(frozen=True, slots=True)
class DemoSettings:
    """What the command line says; ``seconds`` None means until Ctrl-C, ``rate`` is transactions per second."""

    seconds: float | None = 30.0
    rate: float = 1_000.0
    seed: int = 1
    memory: bool = False

    def __post_init__(self) -> None:
        if self.seconds is not None and not 0 < self.seconds < math.inf:
            raise ConfigError(f"--seconds {self.seconds}: not above 0; give the length of the live part, or --forever")
        if not 1 <= self.rate <= 100_000:
            raise ConfigError(f"--rate {self.rate:g}: not in 1..100,000; give transactions per second")
        if self.seed < 0:
            raise ConfigError(f"--seed {self.seed}: below 0; give 0 or more")


@dataclass(frozen=True, slots=True)
class Plan:
    """The world of a demo. Its history is days 0..`HISTORY_DAYS`, the live part follows.

    The world's clock runs fast. What the worker takes for late follows it: in arrival order a row is late if another
    partition is ahead of it by more than ``allowed_lateness_ms``, and a pause of the machine's is hours there. History
    is sent in slices of ``slice_ms``, `SLICES_AT_ONCE` of them on their way at most, so that none
    of it is late.
    """

    world: World
    slice_ms: int
    faults: Imperfections

    @property
    def allowed_lateness_ms(self) -> int:
        """The worker's setting."""
        return SLICES_AT_ONCE * self.slice_ms

    @property
    def recent_from(self) -> int:
        """First day that the worker reads."""
        return HISTORY_DAYS - RECENT_DAYS


def make_plan(settings: DemoSettings, now_ms: int) -> Plan:
    """A world of 1,000 to 3,000 transactions a day, more above 3,000 a second, that ends in the past (rule 11).

    Small enough for a start in seconds; its clock runs so fast that the live part shows days.

    Without an end, or with one far off, it begins in 2000; when its time has caught up with ours it goes on at the
    pace of life.
    """
    fewest, most = _ROWS_PER_DAY
    rows_per_day = max(fewest, min(3 * settings.rate, most), settings.rate)
    speed_up = _DAY_S * settings.rate / rows_per_day
    first = midnight(TIME_MS_MIN, -1)
    start_ms = first
    if settings.seconds is not None:
        live_days = math.ceil(1.2 * settings.seconds * speed_up / _DAY_S) + 2
        start_ms = max(first, midnight(now_ms, HISTORY_DAYS + live_days))
    world = World.for_pace(settings.seed, start_ms=start_ms, rate=settings.rate, speed_up=speed_up)
    skew_ms = 1000 * _SKEW_S * speed_up
    slice_ms = next((ms for ms in _SLICES_MS if SLICES_AT_ONCE * ms >= skew_ms), _SLICES_MS[-1])
    return Plan(world, slice_ms, faults())


def faults() -> Imperfections:
    """A few of each, as in life: unreadable, sent twice, hours late."""
    return Imperfections(malformed=0.002, duplicates=0.003, late=0.003, late_ms_max=DAY_MS)


def write_config(path: Path, plan: Plan, models: Path, bootstrap: str) -> None:
    """The worker's headrace.toml."""
    settings = {
        "checkpoints": str(path.with_name("checkpoints")) if bootstrap.startswith("headrace://") else "none",
        "bootstrap": bootstrap.removeprefix("headrace://") or "memory://demo",
        "models": str(models),
        "allowed_lateness_ms": plan.allowed_lateness_ms,
    }
    # JSON's texts and integers are TOML's too
    path.write_text("".join(f"{name} = {json.dumps(value)}\n" for name, value in settings.items()))
