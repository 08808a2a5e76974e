"""A directory of model packages: ``<root>/<name>/<version>/`` and ``<root>/aliases.json``."""

from __future__ import annotations

import fcntl
import json
import os
import re
import shutil
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from models.errors import ModelError
from models.package import Draft, LoadedModel, Manifest, load_package, read_manifest, write_files

__all__ = ["ALIASES", "Entry", "Registry", "check_name"]

ALIASES = ("champion", "challenger", "shadow")
#: in aliases.json: the champion before the present one; no reference, only `Registry.rollback` reads it
_PREVIOUS = "previous"
_NAME = re.compile(r"[a-z0-9][a-z0-9_.-]{0,63}")


@dataclass(frozen=True, slots=True)
class Entry:
    """One package of a registry and the aliases that point to it."""

    manifest: Manifest
    path: Path
    aliases: tuple[str, ...]


class Registry:
    """Packages by name and version. Versions are 1, 2, ... per name and never change once added.

    Every change is one rename, so a reader sees the state before or after it; writers of several processes
    take turns by a file lock.
    """

    def __init__(self, root: str | os.PathLike[str]) -> None:
        self.root = Path(root)

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
                self._point(alias, manifest.label)
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
        """alias -> "name@version"."""
        return {alias: label for alias, label in self._pointers().items() if alias != _PREVIOUS}

    @property
    def previous(self) -> str | None:
        """ "name@version" of the champion that `rollback` goes back to."""
        return self._pointers().get(_PREVIOUS)

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
        label = self.aliases().get(reference) if reference in ALIASES else reference
        name, _, version = (label or "").partition("@")
        path = self.root / name / version
        if _NAME.fullmatch(name) and version.isdigit() and path.is_dir():
            return path
        have = ", ".join(self._labels())
        raise ModelError(
            f"model: {reference!r} is not in {self.root} (there: {have or 'nothing'}); "
            "use an alias that is set or name@version, or add one with `headrace models add`"
        )

    def get(self, reference: str, features: Sequence[str] | None = None, schema_hash: str | None = None) -> LoadedModel:
        """Load and verify a package, see `load_package`."""
        return load_package(self.resolve(reference), features, schema_hash)

    def set_alias(self, alias: str, reference: str) -> str:
        """Point ``alias`` at a package; returns its "name@version"."""
        _check_alias(alias)
        with self._locked():
            label = read_manifest(self.resolve(reference)).label
            self._point(alias, label)
        return label

    def rollback(self, features: Sequence[str] | None = None, schema_hash: str | None = None) -> str:
        """Make the champion before the present one champion again, once it is verified as by `get`; returns its
        "name@version". One step: afterwards no earlier champion is remembered."""
        with self._locked():
            pointers = self._pointers()
            label = pointers.pop(_PREVIOUS, None)
            if label is None:
                raise ModelError(
                    f"rollback: no champion before the present one is remembered in {self.root}; "
                    "choose a version with `headrace models promote NAME@VERSION`"
                )
            self.get(label, features, schema_hash)
            self._write(pointers | {"champion": label})
        return label

    def _point(self, alias: str, label: str) -> None:
        """Point one alias at a package; the lock is held."""
        pointers = self._pointers()
        before = pointers.get("champion")
        if alias == "champion" and before not in (None, label):
            pointers[_PREVIOUS] = str(before)
        self._write(pointers | {alias: label})

    def _write(self, pointers: dict[str, str]) -> None:
        """Write aliases.json beside and rename; the lock is held."""
        scratch = self.root / f".aliases.{os.getpid()}"
        with scratch.open("w", encoding="utf-8") as file:
            json.dump(pointers, file, indent=1, sort_keys=True)
            file.flush()
            os.fsync(file.fileno())
        scratch.replace(self.root / "aliases.json")

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


def check_name(name: str) -> None:
    """ModelError when a package cannot have this name."""
    if not _NAME.fullmatch(name) or name in ALIASES:
        raise ModelError(
            f"model name: {name!r} cannot be used; take lower case letters, digits and . _ - "
            f"(at most 64, none of {', '.join(ALIASES)})"
        )


def _check_alias(alias: str | None) -> None:
    if alias is not None and alias not in ALIASES:
        raise ModelError(f"alias: {alias!r} is unknown; use one of {', '.join(ALIASES)}")
