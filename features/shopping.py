"""Recommendations: from interactions to candidates and the features of each (user, item) pair.

The parts, in the order of the path; all are pure, keep arrays, and save to and load from plain named arrays:

``UserState.process(block) -> Contexts``
    Stage by user. ``block`` has ids ``user_id, item_id`` (optional ``session_id``; ``<name>_present`` says where an
    optional id is given), columns ``event_time`` and ``action`` (place in `features.schema.ACTIONS`). A `Contexts` has
    one row per event: the user's last items, the newest first, this event's included. What is not kept of an event is
    only what comes later, so a context never knows the next click.
``Contexts.moves() -> Moves``
    What the item stage is to be told, ordered by source row: ``rows`` (m,) the event's row in the block, ``place``
    (m,) its number among the event's rows, below `FAN`; ``item_id`` (Ids, the key of ``interactions.by-item``) and
    int64 columns ``event_time, action, lag, other, session``. An event sends its own row (lag 0), and for each of the
    `LAGS` items before it in the session a row to either of the two: ``other`` was seen ``lag`` clicks after the row's
    item (before, where negative). Late events send nothing.
``ItemState.process(block)``
    Stage by item, from blocks with id ``item_id``, those int64 columns, and of the own rows, where given, ids
    ``category`` (with ``category_present``) and column ``price`` (NaN where absent). Updates only.
``ItemState.changed() -> ItemRecords`` and ``ItemState.records() -> ItemRecords``
    What is to be published on ``items``: the items touched since the last call, or all. ``ItemRecords.ids`` are the
    keys, ``pack() -> list[bytes]`` one value per item, ``ItemRecords.unpack(ids, values)`` the reverse.
``ItemView.apply(records)``
    The read side: joins records of all partitions, in any order (the newest of an item wins); deterministic.
    ``ItemView.refresh(now_ms)`` now and then: what is trending.
``ItemView.recommendable(contexts, rows, n) -> Candidates``
    For each of the contexts ``rows`` at most ``n`` candidates, the best first, with float64 features ``x`` (m, d) in
    the order of `FEATURES`, ``source`` (m,) int8 into `SOURCES`, and ``prior`` (m,), a score for use without a model.
    ``ItemView.ids(candidates.numbers)`` are their ids.

Ids are compared as 64-bit codes (`codes_of`): integers are their own, texts the fold of their 128-bit key.
"""

from __future__ import annotations

import hashlib
import json

import numpy as np

from features.block import Block, Ids
from features.shopping_items import HALF_LIVES_MS, ItemRecords, ItemState
from features.shopping_kernels import LAGS
from features.shopping_serve import FEATURES, SOURCES
from features.shopping_state import codes_of
from features.shopping_users import FAN, Contexts, Moves, UserState
from features.shopping_view import Candidates, ItemView

__all__ = [
    "FAN",
    "FEATURES",
    "LAGS",
    "SCHEMA_HASH",
    "SOURCES",
    "Candidates",
    "Contexts",
    "ItemRecords",
    "ItemState",
    "ItemView",
    "Moves",
    "UserState",
    "codes_of",
    "warm",
]

#: raised whenever a feature comes to mean something else
_VERSION = 2

#: names what the features of a pair mean, as a model package says what it was trained on
SCHEMA_HASH = hashlib.sha256(json.dumps(["shopping", _VERSION, FEATURES, HALF_LIVES_MS]).encode()).hexdigest()


def warm() -> None:
    """Compiles every kernel, by a tiny run of all parts: to be called before subscribing."""
    n = 4
    numbers = np.arange(n, dtype=np.int64)
    ids = {"user_id": Ids(ints=numbers // 2), "item_id": Ids(ints=numbers)}
    block = Block("warm", 0, n, numbers, numbers, ids, {"event_time": numbers, "action": numbers})
    users, items, view = UserState(), ItemState(), ItemView(sessions=2)
    contexts = users.process(block)
    moves = contexts.moves()
    items.process(Block("warm", 0, n, moves.rows, moves.rows, {"item_id": moves.item_id}, {**moves.columns}))
    view.apply(items.changed())
    view.refresh(n)
    view.recommendable(contexts, numbers, n)
    UserState.from_arrays(users.to_arrays()).process(block)
    ItemState.from_arrays(items.to_arrays())
