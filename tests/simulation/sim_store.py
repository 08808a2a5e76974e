"""A model of the store of checkpoints, below the real rules of which one may be used and which are pruned."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

from streams.checkpoint import Checkpoint, CheckpointError, CheckpointMeta, Expected
from streams.checkpoint_store import CheckpointStore, Series, checkpoint_name

GROUP = "group"


class SimFiles:
    """Checkpoints by name; a state of None is a file that was only half written."""

    url = "simulated:"

    def __init__(self) -> None:
        #: half files that were looked at
        self.refused = 0
        self.states: dict[Series, dict[int, dict[str, Any] | None]] = {}
        self._names: dict[str, tuple[Series, int]] = {}

    def series(self, expected: Expected) -> Series:
        return Series(expected.stage, expected.topic_id, expected.partition)

    def put(self, expected: Expected, offset: int, state: dict[str, Any] | None) -> None:
        """A whole file replaces one of its name; half a file has none that was whole before."""
        series = self.series(expected)
        files = self.states.setdefault(series, {})
        if state is not None or offset not in files:
            files[offset] = state
        self._names[checkpoint_name(GROUP, series, offset)] = series, offset

    def delete(self, name: str) -> None:
        series, offset = self._names[name]
        self.states[series].pop(offset, None)

    def sweep(self, folder: str, older_than_s: float) -> int:
        return 0


class SimStore(CheckpointStore):
    """The real `newest` and `prune` over files of the model."""

    def __init__(self, files: SimFiles, group: str) -> None:
        super().__init__(files, group)  # type: ignore[arg-type]
        self._files = files

    def offsets(self, series: Series) -> list[int]:
        return sorted(self._files.states.get(series, {}))

    def _read(self, name: str, offset: int, expected: Expected) -> Checkpoint:
        state = self._files.states[self._files.series(expected)][offset]
        if state is None:
            self._files.refused += 1
            raise CheckpointError(name, "corrupt", "it ends early")
        meta = CheckpointMeta(
            **asdict(expected),
            offset=offset,
            feature_set="",
            feature_set_hash="",
            headrace_version="",
            created_at="",
        )
        return Checkpoint(meta, state)
