"""A challenger is built in a process of its own: a training's memory and crashes are not the control loop's.

The job is a directory of plain files: ``job.json``, ``rows.npz`` and the champion's ``model.txt`` go in,
``result.json`` and the challenger's ``built.txt`` come out.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import cast

import numpy as np

from models.calibrate import Calibration
from models.errors import ModelError
from models.rebuild import Champion, Declined, Kind, LabelledRows, Rebuilt, rebuild
from streams.demo_children import child_command
from streams.errors import HeadraceError

__all__ = ["Stopped", "main", "rebuilt_apart"]

_POLL_S = 0.05
_ARRAYS = ("x", "y", "event_time_ms", "group")
#: scoring goes before training
_NICE = 10
_TOLD = "control: it was told to end while a model is trained; start it again, which trains anew"


class Stopped(HeadraceError):
    """The loop ends before the training has; it is begun again by the next one."""


def rebuilt_apart(
    rows: LabelledRows,
    since_ms: int,
    champion: Champion,
    kind: Kind,
    *,
    timeout_s: float = 3600.0,
    stopping: Callable[[], bool] = lambda: False,
) -> Rebuilt:
    """`models.rebuild.rebuild` in a process of its own. From the main thread. Declined: there is no challenger, also
    where the process failed or took too long. Stopped: the loop ends."""
    with tempfile.TemporaryDirectory(prefix="headrace-retrain-") as name:
        folder = Path(name)
        _write_job(folder, rows, since_ms, champion, kind)
        errors = folder / "stderr"
        with errors.open("wb") as file:
            command = child_command("streams.retrain", [name])
            # a session of its own: Ctrl-C and what else is sent to the group is for the loop, which ends it in order
            process = subprocess.Popen(
                command, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=file, start_new_session=True
            )
            try:
                _wait(process, timeout_s, stopping)
            finally:
                process.kill()
                process.wait()
        if process.returncode != 0:
            if stopping():
                raise Stopped(_TOLD)  # who told the loop to end may have ended the training as well
            last = errors.read_text("utf-8", "replace").strip().splitlines()[-1:] or ["no word of why"]
            raise Declined(f"the training ended with code {process.returncode}: {last[0]}")
        return _read_result(folder)


def _wait(process: subprocess.Popen[bytes], timeout_s: float, stopping: Callable[[], bool]) -> None:
    until = time.monotonic() + timeout_s
    while process.poll() is None:
        if stopping():
            raise Stopped(_TOLD)
        if time.monotonic() > until:
            raise Declined(f"the training took more than {timeout_s:g} s; raise control.timeout_s or lower rows_max")
        time.sleep(_POLL_S)


def _write_job(folder: Path, rows: LabelledRows, since_ms: int, champion: Champion, kind: Kind) -> None:
    with (folder / "rows.npz").open("wb") as file:
        np.savez(file, **{name: getattr(rows, name) for name in _ARRAYS})
    (folder / "model.txt").write_text(champion.model_text, "utf-8")
    job = {
        "features": rows.features,
        "since_ms": since_ms,
        "kind": kind,
        "calibration": champion.calibration.to_json(),
        "params": champion.params,
        "rounds": champion.rounds,
        "alpha": champion.alpha,
    }
    (folder / "job.json").write_text(json.dumps(job), "utf-8")


def _read_result(folder: Path) -> Rebuilt:
    found = json.loads((folder / "result.json").read_text("utf-8"))
    if "declined" in found:
        raise Declined(found["declined"])
    calibration = Calibration.from_json(found.pop("calibration"))
    return Rebuilt((folder / "built.txt").read_text("utf-8"), calibration, **found)


def main() -> int:
    """The child: does the job in the directory that is its only argument."""
    os.nice(_NICE)
    folder = Path(sys.argv[1])
    job = json.loads((folder / "job.json").read_text("utf-8"))
    with np.load(folder / "rows.npz", allow_pickle=False) as arrays:
        rows = LabelledRows(tuple(job["features"]), *(arrays[name] for name in _ARRAYS))
    calibration = Calibration.from_json(job["calibration"])
    text = (folder / "model.txt").read_text("utf-8")
    champion = Champion(text, calibration, job["params"], job["rounds"], job["alpha"])
    try:
        built = rebuild(rows, job["since_ms"], champion, cast(Kind, job["kind"]))
    except ModelError as error:
        result: dict[str, object] = {"declined": str(error)}
    else:
        (folder / "built.txt").write_text(built.model_text, "utf-8")
        result = asdict(built) | {"calibration": built.calibration.to_json()}
        del result["model_text"]
    (folder / "result.json").write_text(json.dumps(result), "utf-8")
    return 0
