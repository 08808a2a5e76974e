"""What a monitor is told: the features and segments it watches, its period, and how often it may be wrong."""

from __future__ import annotations

from dataclasses import dataclass

__all__ = ["DAY_MS", "MonitorError", "MonitorSettings"]

DAY_MS = 86_400_000


class MonitorError(ValueError):
    """A setting, a reference or a column that a monitor cannot work with: names it, its value, why, and the remedy."""


@dataclass(frozen=True, slots=True)
class MonitorSettings:
    """Settings of one `monitoring.monitor.Monitor`, which watches the scores of one model.

    ``features``: names of the columns of the matrix, in its order. ``segments``: names of the fields whose values are
    watched apart. Statistics close at multiples of ``period_ms`` of event time, ``lateness_ms`` after it at the
    latest, or, where ``period_rows`` is given, after so many rows. A row's label is mature ``label_horizon_ms`` after
    its event: periods of labelled rows close then. ``windows``: over how many periods each statistic is taken.
    ``false_alarms_per_30d``: how many alerts are expected of a world that does not change, over all watches (by
    rows: in ``periods_per_month`` periods). Where no reference is given, the first ``reference_periods`` whole periods
    from ``start_ms`` (event time) on are the reference. ``threshold``: scores at or above it are acted on.
    ``psi_min``, ``rate_min`` and ``loss_min``: changes below them are not worth an alert, however certain; they are the
    PSI, the difference of a rate, and the loss of a performance figure relative to its reference. ``detectors`` of
    River look at the means of periods, ``error_detectors`` at the errors (action against label) of the first 500
    labelled rows of each (DDM and EDDM have no bound of their false alarms: with rare errors they give many).
    """

    features: tuple[str, ...]
    segments: tuple[str, ...] = ()
    period_ms: int = DAY_MS
    period_rows: int | None = None
    lateness_ms: int = 3_600_000
    label_horizon_ms: int = 7 * DAY_MS
    windows: tuple[int, ...] = (1, 7)
    reference_periods: int = 28
    start_ms: int | None = None
    threshold: float = 0.5
    false_alarms_per_30d: float = 1.0
    periods_per_month: int = 30
    rows_min: int = 200
    psi_min: float = 0.02
    rate_min: float = 0.01
    loss_min: float = 0.1
    release: float = 0.7
    quiet_periods: int = 3
    detectors: tuple[str, ...] = ("page_hinkley",)
    error_detectors: tuple[str, ...] = ("hddm_a",)

    def __post_init__(self) -> None:
        positive = ("period_ms", "label_horizon_ms", "periods_per_month", "rows_min", "quiet_periods")
        for name in positive:
            if getattr(self, name) < 1:
                raise MonitorError(f"{name}: {getattr(self, name)} is not positive; give at least 1")
        if self.period_rows is not None and self.period_rows < 1:
            raise MonitorError(
                f"period_rows: {self.period_rows} is not positive; give at least 1, or none for event time"
            )
        if not self.features or len(set(self.features)) < len(self.features):
            raise MonitorError(
                f"features: {self.features} are none or not distinct; name each column of the matrix once"
            )
        if not self.windows or min(self.windows) < 1 or list(self.windows) != sorted(set(self.windows)):
            raise MonitorError(f"windows: {self.windows} must be rising numbers of periods, the first at least 1")
        if self.reference_periods < 2 * self.windows[-1] or self.reference_periods < 8:
            raise MonitorError(
                f"reference_periods: {self.reference_periods} is too few to tell how windows of {self.windows[-1]} "
                "periods differ by chance; give at least 8 and twice the longest window"
            )
        if not self.false_alarms_per_30d > 0:
            raise MonitorError(
                f"false_alarms_per_30d: {self.false_alarms_per_30d}; nothing is certain, give a number above 0"
            )

    @property
    def period(self) -> str:
        """The length of a period, with its unit."""
        return f"{self.period_rows} rows" if self.period_rows else f"{self.period_ms} ms"

    @property
    def months_per_period(self) -> float:
        """The length of one period, in months of 30 days."""
        return 1 / self.periods_per_month if self.period_rows else self.period_ms / (30 * DAY_MS)
