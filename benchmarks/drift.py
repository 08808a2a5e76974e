"""How soon drift is noticed and how often it is cried for nothing: the monitor beside River's detectors as they come.

River's detectors watch each row's error (score at or above 0.5 against the label; KSWIN the loss of each 20th row, it
costs 174 us), with their default settings; `adwin_all` is ADWIN on the error, the score and every feature, what one
would do to watch as much as the monitor does. `always` fires in every period. All are judged on the same rows, those
after the monitor's reference, which is to the others' advantage: they have settled by then. An alarm before the first
change is false; the first one within 10,000 rows of a change is its detection, further ones repeat it.
"""

from __future__ import annotations

import argparse
import json
import os
import time
from collections.abc import Callable, Sequence
from itertools import pairwise
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np

from benchmarks.drift_streams import PERIOD, STREAMS, Stream
from benchmarks.machine import machine, versions
from features.block import FloatArray, Ids, IntArray
from monitoring.detectors import DETECTORS
from monitoring.monitor import Monitor
from monitoring.settings import DAY_MS, MonitorSettings
from monitoring.trained import Trained

__all__ = ["judge", "run"]

_HORIZON = 10_000
_REFERENCE = 28
_BEGIN = _REFERENCE * PERIOD
_BLOCK = 2_048
#: each 20th row for KSWIN
_THINNED = 20


def run(
    *,
    quick: bool = False,
    streams: Sequence[str] = tuple(STREAMS),
    detectors: Sequence[str] | None = None,
    costs: bool = True,
    data: Path | None = None,
    notify: Callable[[str], None] = lambda text: None,
) -> dict[str, Any]:
    """Measure ``detectors`` (default: all) on ``streams``. ``quick``: one seed instead of five, no changes in the fraud
    data. ``data``: the folder of the shared fraud data, in which nothing drifts; None: not measured. Returns ``results:
    [{stream, detector, runs, changes, detected, missed, delay_events, false_alarms, false_per_100k, repeats}]``,
    ``totals`` by detector, ``cost`` and ``fraud``."""
    rows: list[dict[str, Any]] = []
    measured = {"monitor": _monitor, **_rivals()}
    if detectors is not None:
        measured = {name: measured[name] for name in detectors}
    for name in streams:
        made = [STREAMS[name](seed) for seed in range(1 if quick else 5)]
        notify(f"{name}: {len(made)} streams of {len(made[0].x):,} rows")
        for detector, alarms_of in measured.items():
            judged = [judge(alarms_of(stream), stream.changes, len(stream.x)) for stream in made]
            rows.append({"stream": name, "detector": detector, "runs": len(made)} | _together(judged))
    return {
        "results": rows,
        "totals": [{"detector": d} | _totals([r for r in rows if r["detector"] == d]) for d in measured],
        "cost": cost() if costs else None,
        "fraud": None if data is None else fraud(data, quick, notify),
        "machine": machine(),
        "versions": versions(),
    }


def judge(alarms: IntArray, changes: Sequence[int], n: int, begin: int = _BEGIN) -> dict[str, Any]:
    """What ``alarms`` (k,), positions in n rows judged from ``begin`` on, are worth against ``changes``."""
    alarms = np.sort(alarms[alarms >= begin])
    quiet_until = changes[0] if changes else n
    false = int(np.count_nonzero(alarms < quiet_until))
    delays = []
    for start, stop in pairwise([*changes, n]):
        after = alarms[(alarms >= start) & (alarms < min(stop, start + _HORIZON))]
        if len(after):
            delays.append(int(after[0]) - start)
    return {
        "changes": len(changes),
        "delays": delays,
        "false": false,
        "quiet_rows": quiet_until - begin,
        "repeats": len(alarms) - false - len(delays),
    }


def _together(judged: Sequence[dict[str, Any]]) -> dict[str, Any]:
    delays = [delay for one in judged for delay in one["delays"]]
    changes, false, quiet = (sum(one[key] for one in judged) for key in ("changes", "false", "quiet_rows"))
    return {
        "changes": changes,
        "detected": len(delays),
        "missed": changes - len(delays),
        "delay_events": int(median(delays)) if delays else None,
        "false_alarms": false,
        "quiet_rows": quiet,
        "false_per_100k": round(1e5 * false / quiet, 2),
        "repeats": sum(one["repeats"] for one in judged),
    }


def _totals(rows: Sequence[dict[str, Any]]) -> dict[str, Any]:
    changes, detected, false, quiet, repeats = (
        sum(row[key] for row in rows) for key in ("changes", "detected", "false_alarms", "quiet_rows", "repeats")
    )
    delays = [row["delay_events"] for row in rows if row["delay_events"] is not None]
    return {
        "changes": changes,
        "missed": changes - detected,
        "delay_events": int(median(delays)) if delays else None,
        "false_alarms": false,
        "false_per_100k": round(1e5 * false / quiet, 2),
        "repeats": repeats,
    }


def _columns(stream: Stream) -> dict[str, Any]:
    n = len(stream.x)
    time_ms = np.arange(n, dtype=np.int64)  # one row a millisecond: an alert's event time is its row
    ids = Ids(ints=time_ms)
    return {
        "event_time": time_ms,
        "label_time": time_ms,
        "transaction_id": ids,
        "card_id": ids,
        "features": stream.x,
        "score": stream.score,
        "label": stream.label,
    }


def _monitor(stream: Stream) -> IntArray:
    """Positions of the monitor's alerts: one a month of 30 periods may be false."""
    names = tuple(f"x{j}" for j in range(stream.x.shape[1]))
    monitor = Monitor(MonitorSettings(features=names, period_rows=PERIOD, reference_periods=_REFERENCE))
    columns = _columns(stream)
    alerts = monitor.observe_scored(columns) + monitor.observe_labelled(columns)
    return np.array([alert.event_time for alert in alerts], np.int64)


def _rivals() -> dict[str, Callable[[Stream], IntArray]]:
    rivals: dict[str, Callable[[Stream], IntArray]] = {"always": _always, "adwin_all": _adwin_all}
    return rivals | {name: _of_errors(name) for name in DETECTORS}


def _always(stream: Stream) -> IntArray:
    return np.arange(PERIOD - 1, len(stream.x), PERIOD)


def _of_errors(name: str) -> Callable[[Stream], IntArray]:
    def alarms(stream: Stream) -> IntArray:
        wrong = (stream.score >= 0.5) != (stream.label == 1)
        if name != "kswin":
            return _river(name, wrong.astype(np.float64))
        p = np.clip(np.where(stream.label == 1, stream.score, 1 - stream.score), 1e-6, 1)
        return _river(name, -np.log(p)[::_THINNED]) * _THINNED

    return alarms


def _adwin_all(stream: Stream) -> IntArray:
    wrong = (stream.score >= 0.5) != (stream.label == 1)
    columns = [wrong.astype(np.float64), stream.score, *stream.x.T]
    return np.unique(np.concatenate([_river("adwin", column) for column in columns]))


def _river(name: str, values: FloatArray) -> IntArray:
    """Positions at which River's detector, as it comes, gives an alarm."""
    from river import drift
    from river.drift import binary

    made: dict[str, Any] = {
        "adwin": drift.ADWIN,
        "page_hinkley": drift.PageHinkley,
        "kswin": lambda: drift.KSWIN(seed=1),
        "ddm": binary.DDM,
        "eddm": binary.EDDM,
        "hddm_a": binary.HDDMA,
        "hddm_w": binary.HDDMW,
    }
    detector, positions = made[name](), []
    for i, value in enumerate((values == 1.0).tolist() if DETECTORS[name].errors else values.tolist()):
        detector.update(value)
        if detector.drift_detected:
            positions.append(i)
    return np.array(positions, np.int64)


def cost(features: int = 40, rows: int = 200_000) -> dict[str, Any]:
    """Microseconds of CPU per row with everything watched, reference learned before; the best of three rounds."""
    rng = np.random.default_rng(0)
    stream = Stream(rng.normal(size=(rows, features)), rng.beta(0.1, 8, rows), rng.integers(0, 2, rows))
    columns = _columns(stream) | {"segments": {"channel": Ids(ints=rng.integers(0, 5, rows))}}
    # 10,000 rows a day, two weeks of reference
    columns["event_time"] = columns["label_time"] = np.arange(rows, dtype=np.int64) * (DAY_MS // 10_000)
    names = tuple(f"x{j}" for j in range(features))
    settings = MonitorSettings(features=names, segments=("channel",), reference_periods=14, label_horizon_ms=1)
    from monitoring.learning import rows_of

    blocks = [rows_of(columns, slice(a, a + _BLOCK)) for a in range(0, rows, _BLOCK)]
    learned = len(blocks) * 9 // 10
    best = [np.inf, np.inf]
    monitor = Monitor(settings)
    for block in blocks[:learned]:
        monitor.observe_scored(block)
        monitor.observe_labelled(block)
    state = monitor.state()
    for _ in range(3):
        monitor = Monitor(settings)
        monitor.restore(state)
        for i, observe in enumerate((monitor.observe_scored, monitor.observe_labelled)):
            begin = time.thread_time()
            for block in blocks[learned:]:
                observe(block)
            seen = rows - learned * _BLOCK
            best[i] = min(best[i], (time.thread_time() - begin) / seen * 1e6)
    return {"features": features, "us_per_scored_row": round(best[0], 3), "us_per_labelled_row": round(best[1], 3)}


def fraud(folder: Path, quick: bool, notify: Callable[[str], None]) -> dict[str, Any]:
    """The shared fraud data, of which four weeks from the day on that all windows are warm are the reference, and the
    first of them what the package tells: its alarms, of which there should be none, and how long it takes where a
    change is put into it on day 100."""
    from models.histogram import reference

    columns, names, day = _fraud_columns(folder)
    week = (day >= 38) & (day < 45)
    trained = Trained.of(reference(columns["features"][week], names, columns["score"][week]), names)
    begin = int(columns["event_time"][0]) // DAY_MS * DAY_MS
    settings = MonitorSettings(features=names, start_ms=begin + 38 * DAY_MS)
    rows = len(day)
    kinds = ("none",) if quick else ("none", "amounts_x1.3", "terminal_risk_missing_5%", "frauds_move", "fraud_doubles")
    found = []
    for kind in kinds:
        notify(f"fraud data, {kind}: {rows:,} rows")
        changed = _changed(columns, names, day, kind)
        monitor = Monitor(settings, trained=trained)
        alerts = monitor.observe_scored(changed) + monitor.observe_labelled(changed)
        figures = monitor.figures()
        found.append(
            {
                "change": kind,
                "alerts": [
                    {
                        "day": (alert.event_time - begin) // DAY_MS,
                        "kind": alert.kind,
                        "subject": alert.subject,
                        "since_day": (alert.evidence["since"] - begin) // DAY_MS,
                        "strength": alert.evidence["strength"],
                        "measures": [watch["measure"] for watch in alert.evidence["watches"]],
                    }
                    for alert in alerts
                ],
                "strongest": max(figures[half]["strongest"] for half in ("scored", "labelled")),
                "days_judged": figures["scored"]["periods"] - settings.reference_periods - 1,
            }
        )
    return {"rows": rows, "results": found}


def _fraud_columns(folder: Path) -> tuple[dict[str, Any], tuple[str, ...], IntArray]:
    """Columns for the monitor, names of the features, and each row's day; scored by a model of days 10 to 25,
    calibrated on days 26 to 30."""
    import lightgbm
    import pyarrow.parquet as pq

    from models.calibrate import fit_platt

    expected = pq.read_table(folder / "fraud_expected.parquet")
    events = pq.read_table(folder / "fraud_transactions.parquet", columns=["transaction_id", "event_time", "card_id"])
    labels = pq.read_table(folder / "fraud_labels.parquet")
    names = tuple(name for name in expected.column_names if name != "transaction_id")
    x = np.column_stack([expected[name].to_numpy().astype(np.float64) for name in names])
    event_time, y = events["event_time"].to_numpy(), labels["is_fraud"].to_numpy().astype(np.int64)
    day = event_time // DAY_MS - event_time[0] // DAY_MS
    train, calibration = (day >= 10) & (day < 26), (day >= 26) & (day < 31)
    settings = {"objective": "binary", "learning_rate": 0.03, "num_leaves": 15, "min_child_samples": 50}
    settings |= {"seed": 1, "deterministic": True, "num_threads": 1, "verbosity": -1}
    data = lightgbm.Dataset(x[train], y[train], params={"verbosity": -1})
    raw = np.asarray(lightgbm.train(settings, data, 100).predict(x, raw_score=True, num_threads=1))
    score = fit_platt(raw[calibration], y[calibration]).apply(raw)
    ids = {name: Ids(ints=events[name].to_numpy()) for name in ("transaction_id", "card_id")}
    columns = {"event_time": event_time, "label_time": labels["label_time"].to_numpy(), "features": x, **ids}
    return columns | {"score": score, "label": y}, names, day


def _changed(columns: dict[str, Any], names: Sequence[str], day: IntArray, kind: str) -> dict[str, Any]:
    """The columns with a change from day 100 on."""
    later = np.flatnonzero(day >= 100)
    x, label = columns["features"], columns["label"]
    rng = np.random.default_rng(0)
    if kind == "amounts_x1.3":
        x = x.copy()
        for name in ("amount", "card_mean_amount_1d"):
            x[later, list(names).index(name)] *= 1.3
    elif kind == "terminal_risk_missing_5%":
        x = x.copy()
        x[later[rng.random(len(later)) < 0.05], list(names).index("terminal_risk_7d")] = np.nan
    elif kind == "frauds_move":
        # half of the frauds are others, which the model does not know
        label = label.copy()
        frauds = later[label[later] == 1]
        label[rng.choice(frauds, len(frauds) // 2, replace=False)] = 0
        label[rng.choice(later, len(frauds) // 2, replace=False)] = 1
    elif kind == "fraud_doubles":
        label = label.copy()
        label[rng.choice(later, int(label[later].sum()), replace=False)] = 1
    return columns | {"features": x, "label": label}


def default_data() -> Path | None:
    """The folder of the shared fraud data, if it is there."""
    beside = Path(__file__).resolve().parents[2] / "shared" / "data"
    folder = Path(os.environ.get("HEADRACE_DATA") or beside)
    return folder if (folder / "fraud_expected.parquet").exists() else None


def main() -> None:
    """Print the figures; the last line is one JSON object."""
    parser = argparse.ArgumentParser(description=__doc__, epilog="example: python -m benchmarks.drift --quick")
    parser.add_argument("--quick", action="store_true")
    print(json.dumps(run(quick=parser.parse_args().quick, data=default_data(), notify=print)))


if __name__ == "__main__":
    main()
