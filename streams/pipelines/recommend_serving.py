"""Serving: what is known of all items, candidates from it, the model, the rules and what to serve where they fail.

The ladder, named in each record's ``rung``; a list is never empty, as its own event names an item:

    ranked      candidates that others' sessions name (co-visitation, sessions, paths), in the model's order
    candidates  the same in the order of their own strengths: no model
    category    nobody was ever seen with what the user looks at: what many look at in its category
    trending    not even that is known: what many look at now
    popular     nothing of that, what many looked at within a week
    repeats     no item is known here at all, as in a worker that could not read them yet: what the user saw before

A list that comes out short is filled from the rungs below. Where the monitor has found that it helps, a weight of each
candidate's source is added to its score before lists are ordered: the record's ``weights``.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np

from features.block import FloatArray, Ids, IntArray
from features.plan import StateError
from features.schema import ACTIONS
from features.shopping import FEATURES, SOURCES, Candidates, Contexts, ItemRecords, ItemView
from models.slot import Serving as Model
from streams.encode import decimal_keys, source_headers
from streams.log import OutBatch, RecordBatch
from streams.pipelines.recommend_lists import ListRules, choose, drawn, explores
from streams.pipelines.recommend_stages import UserRows, said_times
from streams.pipelines.recommend_withdrawn import Withdrawn
from streams.recommend_encode import RecommendationEncoder, Served
from streams.source_weights import ServedWeights
from streams.stage import Meters
from streams.topics import RECOMMENDATIONS, SOURCE_WEIGHTS

__all__ = ["Serving", "Trends"]

#: events whose candidates are ranked together: what bounds the memory of their features
_ROWS_TOGETHER = 128
#: item records come in large batches: their time is CPU time
_MANY_BYTES = 1 << 20
#: event time after which trends are looked at anew
_TRENDS_MS = 60_000
#: decayed looks within a day from which on an item is in fashion
_TRENDING_LOOKS = 1.0
_LOOKS_1D = FEATURES.index("looks_1d")
_PURCHASE = ACTIONS.index("purchase")
#: by number in `SOURCES`, whether other users' sessions name the candidate
_EVIDENCE = np.array([name not in ("own", "category", "trending") for name in SOURCES])
_OF_CATEGORY = SOURCES.index("category")
_POPULAR, _EXPLORED, _OWN = "popular", "exploration", "own"


class _Listed(NamedTuple):
    """A list before its items have names: the first ``len(at)`` are candidates, at these places of theirs; then
    ``more``, numbers of the view; an explored item takes a place at last."""

    at: IntArray
    more: IntArray
    explored: tuple[int, int] | None
    propensities: list[float] | None


class Trends:
    """What is trending among the items of a view, looked at anew once a minute of event time, or when twice as many
    items are known."""

    def __init__(self, view: ItemView) -> None:
        self._view = view
        self._looked_ms: int | None = None
        self._known = 0

    def look(self, now_ms: int) -> None:
        """To be called before candidates are taken."""
        known = len(self._view)
        if self._looked_ms is None or now_ms - self._looked_ms >= _TRENDS_MS or known >= 2 * self._known + 1:
            self._looked_ms, self._known = now_ms, known
            self._view.refresh(now_ms)


class Serving:
    """Lists for events, from the users' contexts and the view of the items and the weights of sources, which ``take``
    brings up to date."""

    def __init__(
        self,
        rules: ListRules,
        take: Callable[[], Sequence[RecordBatch]],
        meters: Meters,
        log_features: bool,
    ) -> None:
        self._rules, self._take, self._meters = rules, take, meters
        # when partitions are assigned, another thread catches up
        self._lock = threading.Lock()
        self._view = ItemView()
        self._withdrawn = Withdrawn()
        self._weights = ServedWeights()
        self._log_features = log_features
        self.encoder = RecommendationEncoder(FEATURES if log_features else None)
        self._trends = Trends(self._view)

    @property
    def known(self) -> int:
        """Items that something is known of."""
        return len(self._view)

    def catch_up(self, caught_up: Callable[[], bool], timeout_s: float) -> None:
        """Takes what comes of the items until that says that it is all, for so long at the most. On any thread."""
        deadline = time.monotonic() + timeout_s
        while not caught_up() and time.monotonic() < deadline:
            if not self.refresh():
                time.sleep(0.005)

    def refresh(self) -> bool:
        """Takes some of what has come of the items; whether there was any."""
        with self._lock:
            batches = self._take()
            if batches:
                with self._meters.part("view", _MANY_BYTES):
                    self._apply(batches)
        return bool(batches)

    def apply(self, batches: Sequence[RecordBatch]) -> None:
        """As `refresh`, of these records of items and weights."""
        with self._lock:
            self._apply(batches)

    def _apply(self, batches: Sequence[RecordBatch]) -> None:
        """What cannot be read is counted, and the others are none the worse."""
        weights = [batch for batch in batches if batch.tp.topic == SOURCE_WEIGHTS]
        if weights:
            self._meters.counts["weights_unreadable"] += self._weights.take(weights)
            batches = [batch for batch in batches if batch.tp.topic != SOURCE_WEIGHTS]
        newest, gone = self._withdrawn.take(batches)
        if gone:
            self._view.withdraw(_ids(gone))
        if not newest:
            return
        try:
            self._view.apply(ItemRecords.unpack(_ids(list(newest)), list(newest.values())))
        except StateError:
            for key, value in newest.items():
                try:
                    self._view.apply(ItemRecords.unpack(_ids([key]), [value]))
                except StateError:
                    self._meters.counts["items_unreadable"] += 1

    def unnoted(self) -> dict[bytes, int]:
        """See `Withdrawn.unnoted`."""
        with self._lock:
            return self._withdrawn.unnoted()

    def recommend(self, made: Sequence[UserRows], model: Model, nbytes: int) -> list[OutBatch]:
        """A record for each row, ranked by ``model``."""
        self.refresh()
        with self._lock:
            return [self._recommended(rows, model, nbytes) for rows in made]

    def _recommended(self, rows: UserRows, model: Model, nbytes: int) -> OutBatch:
        # at the time of the first: no list may be told when its user will click next
        self._trends.look(int(said_times(rows.block.part(0, 1))[0]))
        pool = self._view.published() if self._rules.explore else np.empty(0, np.int64)
        lists: list[Served] = []
        weights = self._weights.of(model.label)
        for start in range(0, len(rows.block), _ROWS_TOGETHER):
            some = np.arange(start, min(start + _ROWS_TOGETHER, len(rows.block)))
            with self._meters.part("candidates", nbytes):
                found = self._view.recommendable(rows.contexts, some, self._rules.candidates)
            with self._meters.part("rank", nbytes):
                scores = _scores(model, found)
            with self._meters.part("lists", nbytes):
                ordered = scores if weights is None else scores + weights[found.source]
                lists += self._lists(rows, some, found, scores, ordered, model, pool)
        return self._records(rows, lists, model, weights, nbytes)

    def _lists(
        self,
        made: UserRows,
        rows: IntArray,
        found: Candidates,
        scores: FloatArray,
        ordered: FloatArray,
        model: Model,
        pool: IntArray,
    ) -> list[Served]:
        """The lists of these rows by falling ``ordered`` (m,); what is explored is drawn from ``pool``."""
        rules, view = self._rules, self._view
        popular = view.popular(2 * rules.length)
        partition, offsets = made.block.partition, made.block.offsets[rows].tolist()
        listed: list[_Listed] = []
        for i, row in enumerate(rows.tolist()):
            part = slice(int(found.begin[i]), int(found.begin[i + 1]))
            numbers = found.numbers[part]
            bought = self._bought(made.contexts, row)
            blocked = np.isin(numbers, bought) if len(bought) else np.zeros(len(numbers), np.bool_)
            categories = view.categories(numbers) if rules.category_max else numbers
            at = choose(np.argsort(-ordered[part], kind="stable"), rules, blocked, categories)
            shown = numbers[at]
            more = np.empty(0, np.int64)
            if len(at) < rules.length:
                more = popular[~np.isin(popular, np.concatenate([shown, bought]))][: rules.length - len(at)]
            listed.append(_explore(rules, partition, offsets[i], at, np.concatenate([shown, more]), more, bought, pool))
        return self._named(made, rows, found, scores, listed, model)

    def _bought(self, contexts: Contexts, row: int) -> IntArray:
        """Numbers of the items that the user has bought, as far as that is remembered."""
        kept = int(contexts.kept[row])
        bought = contexts.actions[row, :kept] == _PURCHASE
        if not self._rules.exclude_bought or not bought.any():
            return np.empty(0, np.int64)
        return self._view.numbers_of(contexts.items[row, :kept][bought])

    def _named(
        self,
        made: UserRows,
        rows: IntArray,
        found: Candidates,
        scores: FloatArray,
        listed: Sequence[_Listed],
        model: Model,
    ) -> list[Served]:
        """The lists with the items' ids, looked up for all at once."""
        numbers = []
        for i, one in enumerate(listed):
            mine = np.concatenate([found.numbers[found.begin[i] + one.at], one.more])
            if one.explored is not None:
                mine[one.explored[0]] = one.explored[1]
            numbers.append(mine)
        ids = self._view.ids(np.concatenate(numbers)).to_list()
        served, begin = [], 0
        for i, (one, row) in enumerate(zip(listed, rows.tolist(), strict=True)):
            items = ids[begin : begin + len(numbers[i])]
            begin += len(items)
            if items:
                served.append(self._served(one, items, found, int(found.begin[i]) + one.at, scores, model))
            else:
                served.append(_repeats(made, row, self._rules.length, self._withdrawn))
        return served

    def _served(
        self,
        one: _Listed,
        items: list[int | str],
        found: Candidates,
        at: IntArray,
        scores: FloatArray,
        model: Model,
    ) -> Served:
        codes = found.source[at]
        sources = [SOURCES[code] for code in codes.tolist()] + [_POPULAR] * len(one.more)
        of = scores[at].tolist() + [float("nan")] * len(one.more)
        if _EVIDENCE[codes].any():
            rung = "candidates" if model.model is None else "ranked"
        elif (codes == _OF_CATEGORY).any():
            rung = "category"
        else:
            rung = "trending" if (found.x[at, _LOOKS_1D] >= _TRENDING_LOOKS).any() else "popular"
        features = None
        if self._log_features:
            features = np.full((len(items), found.x.shape[1]), np.nan)
            features[: len(at)] = found.x[at]
        if one.explored is not None:
            place = one.explored[0]
            sources[place], of[place] = _EXPLORED, float("nan")
            if features is not None:
                features[place] = np.nan
        return Served(rung, items, of, sources, one.propensities, features)

    def _records(
        self, made: UserRows, lists: Sequence[Served], model: Model, weights: FloatArray | None, nbytes: int
    ) -> OutBatch:
        block, counts = made.block, self._meters.counts
        with self._meters.part("encode", nbytes):
            values = self.encoder.encode(block, model.label, lists, weights)
            users = block.ids["user_id"]
            keys = decimal_keys(users.ints) if users.ints is not None else users.texts()
            sources = source_headers(block.topic, np.full(len(block), block.partition, np.int64), block.offsets)
        counts["recommended"] += len(block)
        for served in lists:
            counts[f"rung_{served.rung}"] += 1
        return OutBatch(RECOMMENDATIONS, values, keys, None, [{"source": source} for source in sources])


def _scores(model: Model, found: Candidates) -> FloatArray:
    """(m,) the model's raw scores, which order the candidates; without a model what they are by themselves."""
    if model.model is None or not len(found.x):
        return found.prior
    return model.score(found.x)[0]


def _explore(
    rules: ListRules,
    partition: int,
    offset: int,
    at: IntArray,
    shown: IntArray,
    more: IntArray,
    bought: IntArray,
    pool: IntArray,
) -> _Listed:
    """The list with what is explored in it, and how likely each item was to be in its place: one that was chosen,
    unless its place was drawn anew; one that was drawn, if its place was and it was."""
    if not rules.explore:
        return _Listed(at, more, None, None)
    length, others = len(shown), pool
    word = explores(rules, partition, offset)
    if word is not None or len(pool) <= length + len(bought):
        others = pool[~np.isin(pool, np.concatenate([shown, bought]))]
    if not length or not len(others):
        return _Listed(at, more, None, [1.0] * length)
    propensities = [1.0 - rules.explore / length] * length
    if word is None:
        return _Listed(at, more, None, propensities)
    place, pick = drawn(word, length, len(others))
    propensities[place] = rules.explore / length / len(others)
    return _Listed(at, more, (place, int(others[pick])), propensities)


def _repeats(made: UserRows, row: int, length: int, withdrawn: Withdrawn) -> Served:
    """What the user saw before, newest first, and the event's own item: all that is known where no item is."""
    contexts = made.contexts
    seen = contexts.names.ids(contexts.items[row, : int(contexts.kept[row])])
    # an id is the same item as an integer and as its text
    mine = {str(item): item for item in [*seen.to_list(), *made.block.ids["item_id"].part(row, row + 1).to_list()]}
    items = [item for text, item in mine.items() if text.encode("utf-8", "surrogatepass") not in withdrawn][:length]
    return Served("repeats", items, [float("nan")] * len(items), [_OWN] * len(items))


def _ids(keys: Sequence[bytes]) -> Ids:
    """Ids from the keys of records: the text of an integer is that integer, which is the same item."""
    ids: list[int | str] = []
    for key in keys:
        text = key.decode("utf-8", "surrogatepass")
        digits = text.removeprefix("-")
        number = digits.isascii() and digits.isdigit() and len(digits) < 20 and str(int(text)) == text
        ids.append(int(text) if number else text)
    return Ids.of(ids)
