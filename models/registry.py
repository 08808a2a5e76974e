"""A directory of model packages: ``<root>/<name>/<version>/``, ``<root>/aliases.json`` and ``<root>/history.jsonl``."""

from __future__ import annotations

import fcntl
import hashlib
import json
import math
import os
import re
import shutil
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import TextIO

from models.errors import ModelError
from models.package import Draft, LoadedModel, Manifest, load_package, read_manifest, write_files
from models.predictor import PredictorKind

__all__ = ["ALIASES", "REFERENCES", "Change", "Entry", "Registry", "check_name"]

#: what `Registry.set_alias` sets
ALIASES = ("champion", "challenger", "shadow")
#: every name that stands for a package
REFERENCES = (*ALIASES, "canary")
#: in aliases.json beside these: the share of keys that the canary scores, and the number of the last change
_SHARE, _CHANGE = "canary_share", "change"
_NAME = re.compile(r"[a-z0-9][a-z0-9_.-]{0,63}")


@dataclass(frozen=True, slots=True)
class Entry:
    """One package of a registry and the aliases that point to it."""

    manifest: Manifest
    path: Path
    aliases: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Change:
    """A line of history.jsonl: ``alias`` pointed at ``before`` and points at ``model`` since ``at`` (ISO 8601, UTC).

    ``action`` is what was asked for: add, promote, challenger, shadow, canary, clear or rollback.
    """

    change: int
    at: str
    action: str
    alias: str
    model: str | None
    before: str | None
    share: float | None = None
    reason: str = ""


class Registry:
    """Packages by name and version. Versions are 1, 2, ... per name and never change once added.

    Every change is one rename, so a reader sees the state before or after it; writers of several processes
    take turns by a file lock. A change is first appended to history.jsonl; lines numbered higher than aliases.json says
    are of a writer that died before its rename: they never were.
    """

    def __init__(self, root: str | os.PathLike[str], predictor: PredictorKind = "auto") -> None:
        """``predictor``: which one its packages are loaded with."""
        self.root = Path(root)
        self._predictor = predictor

    def add(self, draft: Draft, alias: str | None = None) -> Manifest:
        """Store ``draft`` as the next version of its name, then point ``alias`` at it."""
        check_name(draft.name)
        _check_alias(alias)
        with self._locked():
            home = self.root / draft.name
            home.mkdir(parents=True, exist_ok=True)
            version = max(self._versions(draft.name), default=0) + 1
            scratch = Path(tempfile.mkdtemp(prefix=f".{version}-", dir=home))
            try:
                manifest = write_files(scratch, draft, version)
                scratch.chmod(0o755)
                scratch.rename(home / str(version))
            except BaseException:
                shutil.rmtree(scratch, ignore_errors=True)
                raise
            if alias is not None:
                self._point("add", alias, manifest.label)
        return manifest

    def entries(self) -> list[Entry]:
        """Every package, by name and version."""
        aliases = self.aliases()
        found = []
        for label in self._labels():
            path = self.root / label.replace("@", "/")
            pointing = tuple(alias for alias, target in aliases.items() if target == label)
            found.append(Entry(read_manifest(path), path, pointing))
        return found

    def aliases(self) -> dict[str, str]:
        """alias, or canary -> "name@version"."""
        return {alias: label for alias, label in self._pointers().items() if alias in REFERENCES}

    @property
    def canary(self) -> tuple[str, float] | None:
        """ "name@version" of the canary and the share of keys that it scores. ModelError: there is no such share."""
        pointers = self._pointers()
        if "canary" not in pointers:
            return None
        text = pointers.get(_SHARE, "nothing")
        try:
            share = float(text)
        except ValueError:
            share = math.nan
        if not 0.0 < share <= 0.5:
            raise ModelError(
                f"{self.root / 'aliases.json'} {_SHARE}: {text} is not above 0 and at most 0.5; set the canary again "
                "with `headrace models canary`, or clear it"
            )
        return pointers["canary"], share

    @property
    def previous(self) -> str | None:
        """ "name@version" of the champion that `rollback` goes back to."""
        champions = self._champions()
        return champions[-2] if len(champions) > 1 else None

    def history(self) -> list[Change]:
        """Every change of an alias, oldest first."""
        last = int(self._pointers().get(_CHANGE, 0))
        return [change for change in self._written() if change.change <= last]

    def _written(self) -> list[Change]:
        """The lines of history.jsonl; a last one that is cut off is of a change that never was."""
        path = self.root / "history.jsonl"
        try:
            lines = path.read_text("utf-8").splitlines()
        except FileNotFoundError:
            return []
        found: list[Change] = []
        for i, line in enumerate(lines):
            try:
                found.append(Change(**json.loads(line)))
            except (ValueError, TypeError) as error:
                if i < len(lines) - 1:
                    raise ModelError(f"{path} line {i + 1}: cannot be read ({error}); restore the file") from error
        return found

    def _champions(self) -> list[str]:
        """The present champion, last, and those before it that a roll-back goes back to one by one."""
        champions: list[str] = []
        for change in self.history():
            if change.alias == "champion" and change.model is not None:
                if change.action == "rollback":
                    del champions[-2:]
                elif change.before is not None and not champions:
                    champions.append(change.before)
                champions.append(change.model)
        return champions

    def _pointers(self) -> dict[str, str]:
        """aliases.json."""
        path = self.root / "aliases.json"
        try:
            found = json.loads(path.read_text("utf-8"))
        except FileNotFoundError:
            return {}
        except ValueError as error:
            raise ModelError(
                f"{path}: not JSON ({error}); restore it, or delete it and set the aliases again"
            ) from error
        if not isinstance(found, dict) or not all(isinstance(target, str) for target in found.values()):
            raise ModelError(f"{path}: not an object of texts; delete it and set the aliases again")
        return found

    def resolve(self, reference: str) -> Path:
        """The package directory of an alias or "name@version"; ModelError naming what there is."""
        label = self.aliases().get(reference) if reference in REFERENCES else reference
        name, _, version = (label or "").partition("@")
        path = self.root / name / version
        if _NAME.fullmatch(name) and version.isdigit() and path.is_dir():
            return path
        have = ", ".join(self._labels())
        raise ModelError(
            f"model: {reference!r} is not in {self.root} (there: {have or 'nothing'}); "
            "use an alias that is set or name@version, or add one with `headrace models add`"
        )

    def get(
        self,
        reference: str,
        features: Sequence[str] | None = None,
        schema_hash: str | None = None,
        categories: Mapping[str, Mapping[str, int]] | None = None,
    ) -> LoadedModel:
        """Load and verify a package, see `load_package`."""
        return load_package(self.resolve(reference), features, schema_hash, categories, self._predictor)

    def fingerprint(self, reference: str) -> str:
        """The sha256 of a package's manifest, which has those of its files; ModelError as of `resolve`."""
        path = self.resolve(reference) / "manifest.json"
        try:
            return hashlib.sha256(path.read_bytes()).hexdigest()
        except OSError as error:
            raise ModelError(f"{path}: cannot be read ({error}); package the model again") from error

    def set_alias(self, alias: str, reference: str, reason: str = "", expected: str | None = None) -> str:
        """Point ``alias`` at a package; returns its "name@version". A shadow or canary that becomes champion ends.
        ModelError: with ``expected``, where it points at another one by now."""
        _check_alias(alias)
        with self._locked():
            before = self._pointers().get(alias)
            if expected not in (None, before):
                raise ModelError(f"{alias}: it is {before or 'nothing'} by now, not {expected}; nothing is changed")
            label = read_manifest(self.resolve(reference)).label
            self._point("promote" if alias == "champion" else alias, alias, label, reason=reason)
        return label

    def set_canary(self, reference: str, share: float) -> str:
        """Let a package score so large a share of the keys in the champion's place; returns its "name@version"."""
        if not 0.0 < share <= 0.5:
            raise ModelError(f"canary share: {share:g} is not above 0 and at most 0.5; give a share such as 0.05")
        with self._locked():
            label = read_manifest(self.resolve(reference)).label
            if label == self._pointers().get("champion"):
                raise ModelError(f"canary: {label} is the champion; give another version")
            self._point("canary", "canary", label, share=share)
        return label

    def clear(self, alias: str, reason: str = "", expected: str | None = None) -> str | None:
        """Point ``alias``, not the champion, at nothing; returns what it pointed at, None where that was nothing or,
        with ``expected``, another package."""
        if alias == "champion" or alias not in REFERENCES:
            raise ModelError(f"alias: {alias!r} cannot be cleared; use one of {', '.join(REFERENCES[1:])}")
        with self._locked():
            before = self._pointers().get(alias)
            if before is None or expected not in (None, before):
                return None
            self._point("clear", alias, None, reason=reason)
        return before

    def rollback(
        self,
        features: Sequence[str] | None = None,
        schema_hash: str | None = None,
        reason: str = "",
        expected: str | None = None,
        to: str | None = None,
    ) -> str:
        """Make the champion before the present one champion again, once it is verified as by `get`; returns its
        "name@version". Again: the one before that. ModelError: with ``expected``, where another one is champion; with
        ``to``, where another one was champion before."""
        with self._locked():
            present = self._pointers().get("champion")
            if expected not in (None, present):
                raise ModelError(
                    f"rollback: champion is {present or 'nothing'} by now, not {expected}; nothing is changed"
                )
            label = self.previous
            if label is None:
                raise ModelError(
                    f"rollback: no champion before the present one is remembered in {self.root}; "
                    "choose a version with `headrace models promote NAME@VERSION`"
                )
            if to not in (None, label):
                raise ModelError(
                    f"rollback: a person changed the champion: before {present} it is {label} by now, not {to}; "
                    "nothing is changed"
                )
            self.get(label, features, schema_hash)
            self._point("rollback", "champion", label, reason=reason)
        return label

    def _point(
        self, action: str, alias: str, label: str | None, *, share: float | None = None, reason: str = ""
    ) -> None:
        """Point one alias at a package, or at nothing, and write that down; the lock is held."""
        pointers = self._pointers()
        before = pointers.get(alias)
        if before == label and (alias != "canary" or float(pointers[_SHARE]) == share):
            return
        last = int(pointers.get(_CHANGE, 0))
        at = datetime.now(UTC).isoformat(timespec="milliseconds")
        changes = [Change(last + 1, at, action, alias, label, before, share, reason)]
        if alias == "champion":
            for other in ("shadow", "canary"):
                if pointers.get(other) == label:
                    why = f"{label} is champion"
                    changes.append(Change(last + 1 + len(changes), at, "clear", other, None, label, None, why))
        for change in changes:
            pointers.pop(change.alias, None)
            if change.alias == "canary":
                pointers.pop(_SHARE, None)
            if change.model is not None:
                pointers[change.alias] = change.model
            if change.share is not None:
                pointers[_SHARE] = repr(change.share)
        self._append(changes, last)
        self._write(pointers | {_CHANGE: str(changes[-1].change)})

    def _append(self, changes: Sequence[Change], last: int) -> None:
        """Add lines to history.jsonl behind change ``last``; the lock is held."""
        path = self.root / "history.jsonl"
        text = path.read_text("utf-8") if path.exists() else ""
        kept = [change for change in self._written() if change.change <= last]
        lines = "".join(json.dumps(asdict(change)) + "\n" for change in changes)
        before = "".join(json.dumps(asdict(change)) + "\n" for change in kept)
        if before == text:
            with path.open("a", encoding="utf-8") as file:
                _put(file, lines)
        else:  # a writer died: what it left goes
            self._replace(path, before + lines)

    def _write(self, pointers: dict[str, str]) -> None:
        """Write aliases.json; the lock is held."""
        self._replace(self.root / "aliases.json", json.dumps(pointers, indent=1, sort_keys=True))

    def _replace(self, path: Path, text: str) -> None:
        """Write the file beside and rename; the lock is held."""
        scratch = self.root / f".{path.name}.{os.getpid()}"
        with scratch.open("w", encoding="utf-8") as file:
            _put(file, text)
        scratch.replace(path)

    def _labels(self) -> list[str]:
        """Every "name@version" there is a directory of."""
        names = sorted(p.name for p in self.root.iterdir() if p.is_dir()) if self.root.is_dir() else []
        return [f"{name}@{version}" for name in names for version in self._versions(name)]

    def _versions(self, name: str) -> list[int]:
        return sorted(int(p.name) for p in (self.root / name).iterdir() if p.name.isdigit() and p.is_dir())

    @contextmanager
    def _locked(self) -> Iterator[None]:
        self.root.mkdir(parents=True, exist_ok=True)
        with (self.root / ".lock").open("w") as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            yield


def _put(file: TextIO, text: str) -> None:
    """Write, to the disk."""
    file.write(text)
    file.flush()
    os.fsync(file.fileno())


def check_name(name: str) -> None:
    """ModelError when a package cannot have this name."""
    if not _NAME.fullmatch(name) or name in REFERENCES:
        raise ModelError(
            f"model name: {name!r} cannot be used; take lower case letters, digits and . _ - "
            f"(at most 64, none of {', '.join(REFERENCES)})"
        )


def _check_alias(alias: str | None) -> None:
    if alias is not None and alias not in ALIASES:
        raise ModelError(f"alias: {alias!r} is unknown; use one of {', '.join(ALIASES)}")
