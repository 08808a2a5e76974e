"""The packages of a registry that a worker has loaded, each once, and what the registry wants to score."""

from __future__ import annotations

import logging
import threading
from collections.abc import Collection, Sequence
from dataclasses import dataclass, field

from models.errors import ModelError
from models.explain_policy import ReasonsPolicy
from models.lineup import CanaryBounds, CanaryGuard, Lineup
from models.package import read_manifest
from models.registry import Registry
from models.serving import Serving, prepared
from streams.model_events import LineupRef, ModelRef

__all__ = ["ModelShelf", "News"]

logger = logging.getLogger("headrace.models")

_OF_ANOTHER = "of another pipeline"
_CHAMPION_ONLY = "nothing but the champion ranks lists here: promote it, or clear the alias"


@dataclass(frozen=True, slots=True)
class News:
    """``lineup`` None: the registry wants what is there already. ``refused``: packages, and why not."""

    refs: LineupRef
    lineup: Lineup | None = None
    refused: Sequence[tuple[str, str]] = ()


@dataclass(slots=True)
class ModelShelf:
    """``features`` and ``schema_hash`` are those of the matrices that are scored. Called from several threads."""

    registry: Registry
    features: Sequence[str]
    schema_hash: str
    policy: ReasonsPolicy
    bounds: CanaryBounds = field(default_factory=CanaryBounds)
    #: for who goes on without a model where there is none, and has no use for a shadow or canary: these are refused
    champion_only: bool = False
    #: schema hashes of other pipelines, whose packages may be in the same registry: they are passed over
    others: Collection[str] = ()
    _servings: dict[ModelRef, Serving] = field(default_factory=dict)
    _lineups: dict[LineupRef, Lineup] = field(default_factory=dict)
    #: what the registry said last, to be followed when it changes; None: it is to be followed in any case
    _seen: object = None
    #: by alias, why what the registry wants was refused
    _refused: dict[str, str] = field(default_factory=dict)
    _wanted: LineupRef = field(default_factory=lambda: LineupRef(None))
    #: packages that are being loaded, and not wanted yet
    _pinned: set[ModelRef] = field(default_factory=set)
    _lock: threading.RLock = field(default_factory=threading.RLock)

    def first(self) -> tuple[LineupRef, Lineup]:
        """What a worker begins with. ModelError, unless ``champion_only``: the registry has no champion, or one that
        cannot be used."""
        if not self.champion_only:
            champion = self._ref("champion")
            self.load(champion)
            self._wanted = LineupRef(champion)
        news = self.news(self._wanted)
        for model, reason in news.refused:
            logger.error("model %s is refused: %s", model, reason)
        return news.refs, self.lineup(news.refs)

    def news(self, now: LineupRef) -> News:
        """What the registry wants, if it has changed since the last call. What cannot be loaded is refused, and what is
        of another pipeline passed over: the champion of ``now`` stays, a shadow or canary is left out. What could not
        be read is tried again by the next call; ``refused`` says each reason once."""
        try:
            seen = (self.registry.aliases(), self.registry.canary)
        except (ModelError, OSError) as error:
            refused = [] if str(error) == self._seen else [("registry", str(error))]
            self._seen = str(error)
            return News(now, refused=refused)
        if seen == self._seen:
            return News(now)
        self._seen = seen
        refused = []
        aliases, canary = seen
        found: dict[str, ModelRef | None] = {"champion": now.champion, "shadow": None, "canary": None}
        for alias in found:
            reason = None
            if alias in aliases and self._of_another(alias):
                if self._refused.get(alias) != _OF_ANOTHER:
                    self._refused[alias] = _OF_ANOTHER
                    logger.info("%s %s is of another pipeline: it is passed over here", alias, aliases[alias])
                continue
            if self.champion_only and alias != "champion" and alias in aliases:
                reason = _CHAMPION_ONLY
            elif alias in aliases:
                loaded, reason = self._tried(alias)
                found[alias] = loaded or found[alias]
            if reason is None:
                self._refused.pop(alias, None)
            elif reason != self._refused.get(alias):
                self._refused[alias] = reason
                refused.append((aliases[alias], reason))
        share = canary[1] if canary is not None and found["canary"] is not None else 0.0
        refs = LineupRef(found["champion"], found["shadow"], found["canary"], share)
        with self._lock:
            self._wanted, self._pinned = refs, set()
        return News(refs, None if refs == now else self.lineup(refs), refused)

    def _of_another(self, alias: str) -> bool:
        """Whether the alias points at a package of another pipeline. What cannot be read is said when it is loaded."""
        try:
            return read_manifest(self.registry.resolve(alias)).schema_hash in self.others
        except (ModelError, OSError):
            return False

    def _tried(self, alias: str) -> tuple[ModelRef | None, str | None]:
        """The package of an alias, loaded, or why not; one that could not be read is tried again soon."""
        ref: ModelRef | None = None
        try:
            ref = self._ref(alias)
            with self._lock:
                self._pinned.add(ref)
            self.load(ref)
        except Exception as error:
            if ref is None or isinstance(error, OSError) or isinstance(error.__cause__, OSError):
                self._seen = None
            if isinstance(error, ModelError | OSError):
                return None, str(error)
            logger.exception("%s: an error of ours", alias)
            return None, repr(error)
        return ref, None

    def load(self, ref: ModelRef) -> Serving:
        """The package, verified and warm. ModelError: it is not there any more, or not as it was."""
        with self._lock:
            serving = self._servings.get(ref)
        if serving is not None:
            return serving
        found = self.registry.fingerprint(ref.model)
        if found != ref.sha256:
            raise ModelError(
                f"{ref.model} in {self.registry.root} has a manifest of sha256 {found}, not {ref.sha256}: the package "
                "was changed"
            )
        serving = prepared(self.registry.get(ref.model, self.features, self.schema_hash), self.policy)
        with self._lock:
            return self._servings.setdefault(ref, serving)

    def lineup(self, refs: LineupRef) -> Lineup:
        """The lineup of loaded packages, always the same one."""
        with self._lock:
            if refs not in self._lineups:
                self._lineups[refs] = Lineup(
                    Serving(None, None, self.policy) if refs.champion is None else self._servings[refs.champion],
                    None if refs.shadow is None else self._servings[refs.shadow],
                    None if refs.canary is None else self._servings[refs.canary],
                    refs.share,
                    None if refs.canary is None else CanaryGuard(self.bounds),
                    # so that each canary has other cards
                    0 if refs.canary is None else int(refs.canary.sha256[:16], 16),
                )
            return self._lineups[refs]

    def keep(self, refs: Collection[ModelRef]) -> None:
        """Drops all packages but these and those that the registry wants."""
        with self._lock:
            wanted = {*refs, *self._wanted.models, *self._pinned}
            self._servings = {ref: serving for ref, serving in self._servings.items() if ref in wanted}
            self._lineups = {one: lineup for one, lineup in self._lineups.items() if wanted.issuperset(one.models)}

    def predictor(self, ref: ModelRef) -> str:
        """Which predictor serves a loaded package, and why."""
        model = self.load(ref).model
        return "" if model is None else model.choice.reason

    def end_canary(self, model: str, reason: str) -> bool:
        """The registry's canary, if it is this one, ends; whether it was."""
        return self.registry.clear("canary", reason, expected=model) is not None

    def _ref(self, alias: str) -> ModelRef:
        path = self.registry.resolve(alias)
        label = f"{path.parent.name}@{path.name}"
        return ModelRef(label, self.registry.fingerprint(label))
