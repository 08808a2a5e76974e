"""Records of ``model-events``, and the schedule that those of one partition make: which models score which offsets.

The protocol of a model swap (rule 8), in numbered steps:

1. Everything about one partition of a group has one key, so it is in one partition of ``model-events``, in one order,
   the same for whoever reads it. What a record says counts once its writer has *read it back*.
2. A worker that is given the partition writes ``assigned`` with a holder id of its own and reads it back: it then knows
   every record before its own, and from there on only its own swaps count. A swap written later by a former holder,
   which has not noticed yet that it is none any more, is void for all readers, itself included. Where the group has
   taken the partition away meanwhile, the worker writes ``left`` and goes no further. Where it reads that another
   holder has come, it lets no batch begin any more; if its group still says after a while that the partition is its
   own, the other was wrong (its ``assigned`` came late), and it takes steps 2 to 4 again with a new holder id.
3. It knows a floor: below it the former holder may have sent scores that are not committed, so no other models may
   score there. ``left`` of the former holder names it, who had committed all that it had sent; without one, the former
   holder crashed, and the floor is the end of the partition's log. The floor is never below the committed offset.
4. If the registry's lineup is another than the one in force at the floor, the worker writes a ``swap`` at the floor and
   reads it back before any record is scored. It loads the models that the schedule names between the committed
   offset and the floor; one that the registry does not have, or has with other content, ends the worker with a reason.
5. When the registry changes, the worker loads, verifies and warms the models on a thread of its own. A package that is
   refused changes nothing: ``refused`` says why. Then, for each partition that it holds, it picks the end of the last
   batch that a stage has begun, and from then on lets no batch begin that goes beyond.
6. It writes ``swap`` with that offset. When it is read back, batches may begin again; one that holds the offset is cut
   there, so the new models score from the offset on, the old ones below. No record waits longer than for that.
7. A crash anywhere: the next holder replays from the committed offset by the schedule as read, so what it sends again
   has the bytes that were sent. A swap that was not read back by its writer has scored nothing: whether it got
   into the log or not, no score tells.
8. A worker that gives the partition up writes ``left`` with the offset below which all is sent and committed, where it
   has sent nothing beyond, or the floor where that is higher.

In force at an offset is the last swap at or below it; a swap takes the place of those at its offset and above. Offsets
below the first swap follow the first. The topic is kept for ever: it grows by some records for each start or change.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import orjson

from streams.log import TP

__all__ = ["LineupRef", "ModelRef", "Schedule", "partition_key", "read_event", "swap_event"]


class ModelRef(NamedTuple):
    """A package: "name@version" and the sha256 of its manifest, which has those of its files."""

    model: str
    sha256: str


@dataclass(frozen=True, slots=True)
class LineupRef:
    """Which packages score: the champion; ``share`` of the keys the canary in its place; the shadow beside them."""

    champion: ModelRef | None
    shadow: ModelRef | None = None
    canary: ModelRef | None = None
    share: float = 0.0

    @property
    def models(self) -> list[ModelRef]:
        """All of them."""
        return [ref for ref in (self.champion, self.shadow, self.canary) if ref is not None]

    def to_json(self) -> dict[str, Any]:
        """The fields of a swap event."""
        canary = None if self.canary is None else {**self.canary._asdict(), "share": self.share}
        return {
            "model": None if self.champion is None else self.champion.model,
            "sha256": None if self.champion is None else self.champion.sha256,
            "shadow": None if self.shadow is None else self.shadow._asdict(),
            "canary": canary,
        }

    @classmethod
    def from_json(cls, event: Mapping[str, Any]) -> LineupRef:
        """The inverse of `to_json`; KeyError, TypeError or ValueError on anything else."""
        shadow, canary = event["shadow"], event["canary"]
        share = 0.0 if canary is None else canary["share"]
        if not isinstance(share, float | int) or not 0.0 <= share <= 1.0:
            raise ValueError(f"a canary's share of {share!r}")
        return cls(
            None if event["model"] is None else _ref_of(event),
            None if shadow is None else _ref_of(shadow),
            None if canary is None else _ref_of(canary),
            float(share),
        )


def _ref_of(found: Mapping[str, Any]) -> ModelRef:
    model, sha256 = found["model"], found["sha256"]
    if not isinstance(model, str) or not isinstance(sha256, str):
        raise TypeError(f"model {model!r} with sha256 {sha256!r}")
    return ModelRef(model, sha256)


def partition_key(group: str, tp: TP) -> bytes:
    """The key of all records about a partition of a group."""
    return f"{group}/{tp.topic}/{tp.partition}".encode()


def swap_event(group: str, tp: TP, holder: str, offset: int, lineup: LineupRef) -> dict[str, Any]:
    """A swap at ``offset``; what it changed follows from the swap before it."""
    where = {"group": group, "topic": tp.topic, "partition": tp.partition, "offset": offset, "holder": holder}
    return {"event": "swap", **where, **lineup.to_json()}


def read_event(value: bytes | None) -> dict[str, Any] | None:
    """The record's object; None where it is none of ours."""
    try:
        event = orjson.loads(value or b"")
    except ValueError:
        return None
    return event if isinstance(event, dict) and isinstance(event.get("event"), str) else None


@dataclass(slots=True)
class Schedule:
    """What the records about one partition say, as far as they were read."""

    #: who may swap; None: nobody has been here
    holder: str | None = None
    #: swaps by rising offset
    swaps: list[tuple[int, LineupRef]] = field(default_factory=list)
    #: where the present holder has left
    left: int | None = None
    #: what the holder before it has done: nothing (it was never there), left at an offset, or crashed (None)
    before: int | None = 0

    def apply(self, event: Mapping[str, Any]) -> bool:
        """Reads the next record about the partition; returns whether it counted. KeyError, TypeError or ValueError: it
        would count, being the present holder's, and cannot be read."""
        kind, holder = event["event"], event["holder"]
        if kind == "assigned":
            self.before = 0 if self.holder is None else self.left
            self.holder, self.left = holder, None
            return True
        if holder != self.holder or self.left is not None or kind not in ("left", "swap"):
            return False
        offset = event["offset"]
        if not isinstance(offset, int):
            raise TypeError(f"an offset of {offset!r}")
        if kind == "left":
            self.left = offset
        else:
            lineup = LineupRef.from_json(event)
            self.swaps = [(at, one) for at, one in self.swaps if at < offset]
            self.swaps.append((offset, lineup))
        return True

    def copy(self) -> Schedule:
        """As it is now."""
        return Schedule(self.holder, list(self.swaps), self.left, self.before)

    def floor(self, live_from: int, end: int) -> int:
        """The lowest offset at which the holder, which reads from ``live_from`` on of a log that ends at ``end``, may
        swap."""
        return max(live_from, end if self.before is None else self.before)

    def at(self, offset: int) -> LineupRef | None:
        """The lineup in force at ``offset``; None where nobody has decided yet."""
        found = self.since(offset)
        return found[0][1] if found else None

    def since(self, offset: int) -> list[tuple[int, LineupRef]]:
        """The swaps in force at ``offset`` or later, by rising offset."""
        first = max((i for i, (at, _) in enumerate(self.swaps) if at <= offset), default=0)
        return self.swaps[first:]
