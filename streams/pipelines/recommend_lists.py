"""From scored candidates to the list that is served: rules of the shop, and a little exploration.

Pure: which list explores, and what, is a hash of where the event is in the log.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import xxhash

from features.block import BoolArray, IntArray

__all__ = ["Explored", "ListRules", "choose", "drawn", "explores"]

_PLACE = struct.Struct("<qqq")
_TWO_64 = float(1 << 64)


@dataclass(frozen=True, slots=True)
class ListRules:
    """What the shop wants of a list. ``candidates`` are ranked for one; ``category_max`` 0: no bound; ``explore`` is
    the share of lists in which one place is drawn anew."""

    length: int = 20
    candidates: int = 100
    exclude_bought: bool = True
    category_max: int = 0
    explore: float = 0.0
    explore_seed: int = 1


class Explored(NamedTuple):
    """The place of the list that is drawn anew, and which of ``pool`` items it gets."""

    place: int
    pick: int


def choose(order: IntArray, rules: ListRules, blocked: BoolArray, categories: IntArray) -> IntArray:
    """(k,) the candidates that make the list, k <= ``rules.length``, of ``order`` (m,), best first.

    ``blocked`` (m,) by candidate: not to be shown; yet where all are, all count, since an empty list helps nobody.
    ``categories`` (m,) by candidate, 0 for none: of each at most ``category_max`` come, more only where there is
    nothing else to fill the list with.
    """
    allowed = order[~blocked[order]]
    if len(allowed) == 0:
        allowed = order
    if not rules.category_max or len(allowed) == 0:
        return allowed[: rules.length]
    of = categories[allowed]
    by_category = np.argsort(of, kind="stable")
    sorted_of = of[by_category]
    rank = np.empty(len(of), np.int64)
    rank[by_category] = np.arange(len(of)) - np.searchsorted(sorted_of, sorted_of)
    surplus = (rank >= rules.category_max) & (of != 0)
    # those within the bound first, in their order; then, to fill the list, the others in theirs
    first = np.concatenate([allowed[~surplus], allowed[surplus]])[: rules.length]
    place = np.empty(len(blocked), np.int64)
    place[order] = np.arange(len(order))
    listed: IntArray = first[np.argsort(place[first], kind="stable")]
    return listed


def explores(rules: ListRules, partition: int, offset: int) -> int | None:
    """Whether the list of the event at this place of the log explores: 64 bits to draw with, or None."""
    word = xxhash.xxh3_128_intdigest(_PLACE.pack(rules.explore_seed, partition, offset))
    return word & 0xFFFF_FFFF_FFFF_FFFF if (word >> 64) / _TWO_64 < rules.explore else None


def drawn(word: int, length: int, pool: int) -> Explored:
    """One of ``length`` places and one of ``pool`` items, both above 0, each pair as likely as any other."""
    return Explored(*divmod(word % (length * pool), pool))
