"""What readers outside a group's work do with the partitions that they get: begin, and nothing else."""

from __future__ import annotations

from collections.abc import Mapping

from streams.log import TP, LogConsumer

__all__ = ["FromStart"]


class FromStart:
    """Begins each partition at its offset in ``starts``, or where its records begin if there is none or these are gone.

    ``starts`` are looked up whenever a partition is assigned; ``ranges`` are (earliest, end) of each as it was then.
    """

    def __init__(self, consumer: LogConsumer, starts: Mapping[TP, int] | None = None) -> None:
        self._consumer = consumer
        self._starts = {} if starts is None else starts
        self.ranges: dict[TP, tuple[int, int]] = {}

    def on_assign(self, partitions: list[TP]) -> Mapping[TP, int | None]:
        ranges = {tp: self._consumer.offset_range(tp) for tp in partitions}
        self.ranges |= ranges
        return {tp: max(earliest, self._starts.get(tp, 0)) for tp, (earliest, _) in ranges.items()}

    def on_revoke(self, partitions: list[TP]) -> None:
        """Nothing to give up."""

    def on_lost(self, partitions: list[TP]) -> None:
        """Nothing to give up."""
