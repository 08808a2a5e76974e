"""Writes the golden checkpoint of the current format, once: `python -m tests.golden.make_checkpoints` at the root.

A golden file is never written again: what an old headrace wrote must stay loadable. Raise FORMAT_VERSION first.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np

from streams.checkpoint import FORMAT_VERSION, Arrays, CheckpointMeta, write_checkpoint

META = CheckpointMeta(
    group="headrace-fraud",
    stage="card",
    topic="transactions",
    topic_id="Zm9vYmFyYmF6cXV4MTIzNA",
    partition=3,
    offset=123_456,
    fingerprint="5d41402abc4b2a76",
    feature_set="fraud-default",
    feature_set_hash="9b74c9897bac770f",
    headrace_version="0.1.0",
    created_at="2026-11-23T09:30:00Z",
)


def golden_file(version: int) -> Path:
    """The golden checkpoint of a format."""
    return Path(__file__).with_name(f"checkpoint_v{version}.ckpt")


def golden_arrays() -> Arrays:
    """Every kind of array, one of them of rows, one empty."""
    rows = np.arange(600, dtype=np.uint64).reshape(200, 3) * np.uint64(0x9E3779B97F4A7C15)
    return {
        "rows": rows,
        "times": 1_600_000_000_000 + np.arange(50, dtype=np.int64) * 1000,
        "sums": np.sqrt(np.arange(40, dtype=np.float64)),
        "ratios": np.linspace(0, 1, 9, dtype=np.float32),
        "flags": np.arange(17) % 3 == 0,
        "counts": np.array([[-1, 2], [3, -4]], np.int16),
        "identity": np.frombuffer(b"headrace", np.uint8).copy(),
        "names": np.array([b"card", b"terminal"]),
        "scalar": np.array(7, np.int32),
        "nothing": np.zeros((0, 3), np.uint64),
    }


def main() -> None:
    with golden_file(FORMAT_VERSION).open("xb") as file:
        write_checkpoint(file, META, golden_arrays())


if __name__ == "__main__":
    main()
