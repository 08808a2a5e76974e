"""A store of immutable files under a URL: a directory by default, any object store that fsspec has a driver for.

Files appear whole or not at all. In a directory a file is written beside its final name, synced and renamed; an object
store's put is atomic. What is large is first a local file, a `Draft`: `write_draft` makes it, by nothing but system
calls, so that a forked child may run it; `Store.publish` then uploads it where that is needed. (Of the drivers without
an atomic put, such as sftp, a reader may see half a file: checkpoints carry checksums.)

Every failure is a `StoreError` that names URL, reason and remedy. Credentials are in none of them.
"""

from __future__ import annotations

import errno
import os
import re
import secrets
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, suppress
from copy import deepcopy
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, Protocol, TypeVar
from urllib.parse import unquote

import fsspec
from fsspec.core import url_to_fs
from fsspec.implementations.local import LocalFileSystem

from streams.errors import HeadraceError

__all__ = ["Draft", "NotStored", "Store", "StoreError", "StoredFile", "open_store", "write_draft"]

T = TypeVar("T")

_LEFTOVER = ".tmp"
#: read ahead of an object store, bytes
_BLOCK_BYTES = 8 << 20
#: options whose values may be shown; all others count as secrets
_SHOWN_OPTIONS = {"endpoint_url", "profile", "project", "region", "region_name"}
_SECRET_VARIABLE = re.compile(r"SECRET|TOKEN|PASSW|ACCESS_KEY|CREDENTIAL|CONNECTION_STRING|SAS", re.IGNORECASE)
#: shorter ones would black out innocent words
_SECRET_LENGTH_MIN = 4
_USER = re.compile(r"(\w://)(?:[^\s'\"@]*:[^\s'\"]*|[^\s'\"@/]+)@")
_QUERY = re.compile(r"(\w://[^\s'\"?]*)\?[^\s'\"]+")

_DISK_FULL = "free space there, or put the checkpoints on a larger disk"
_NO_PERMISSION = "let the worker's user or key read, write and list there"
_REMEDIES = {
    errno.ENOSPC: _DISK_FULL,
    errno.EDQUOT: _DISK_FULL,
    errno.EFBIG: "raise the limit on the size of files (ulimit -f)",
    errno.EACCES: _NO_PERMISSION,
    errno.EPERM: _NO_PERMISSION,
    errno.EROFS: "mount it writable, or use another directory",
    errno.ENOTDIR: "a part of the path is a file: use another directory",
    errno.ENOENT: "create the bucket or directory, or mend the URL",
}


class StoreError(HeadraceError):
    """A store did not do what was asked; names the URL, the reason and the remedy, never a credential."""

    def __init__(self, url: str, reason: str, remedy: str) -> None:
        super().__init__(f"store {url}: {reason}; {remedy}")
        self.url, self.reason, self.remedy = url, reason, remedy


class NotStored(StoreError):
    """There is no file of that name: never written, or deleted meanwhile."""


@dataclass(frozen=True, slots=True)
class StoredFile:
    """A file of the store: its name below the store's URL, its size in bytes."""

    name: str
    size: int


@dataclass(frozen=True, slots=True)
class Draft:
    """A file in the making: ``path`` is written and synced, then renamed to ``final``; without one `publish` goes on.

    ``url`` is what errors name.
    """

    name: str
    path: Path
    final: Path | None
    url: str


class Store(Protocol):
    """Files by name below a URL. Names are relative, with ``/`` between their parts; no part begins with a dot."""

    #: as it may be shown: without credentials
    url: str

    def list(self, folder: str = "") -> Sequence[StoredFile]:
        """The files in a folder and those below it, by name; none where there is no such folder."""

    def open(self, name: str) -> AbstractContextManager[BinaryIO]:
        """The file, to be read from its beginning; NotStored where it is not there, StoreError where reading fails."""

    def read(self, name: str) -> bytes:
        """All of a file; NotStored where it is not there."""

    def write(self, name: str, data: bytes | Iterable[bytes]) -> None:
        """Puts a file, whole or not at all; one of that name is replaced."""

    def delete(self, name: str) -> None:
        """Removes a file; one that is not there is fine."""

    def draft(self, name: str) -> Draft:
        """Where to write what becomes the file ``name``; see `write_draft`."""

    def publish(self, draft: Draft) -> None:
        """Ends what `write_draft` began: afterwards the file is in the store and the draft is gone."""

    def sweep(self, folder: str, older_than_s: float) -> int:
        """Removes drafts of that age which killed writers left in a folder; returns how many."""


def write_draft(draft: Draft, produce: Callable[[BinaryIO], T]) -> T:
    """Writes a file with ``produce``, syncs it, renames it if it has a final name. StoreError where that fails.

    Whatever happens, there is no half file under the final name and, unless the process is killed, no draft is left.
    Safe in a forked child: no thread, no lock, no import, no log.
    """
    # A draft that will be renamed gets the rights of any new file; the others lie in a folder shared with other users.
    rights = 0o666 if draft.final else 0o600
    try:
        with open(draft.path, "xb", opener=lambda path, flags: os.open(path, flags, rights)) as file:
            result = produce(file)
            file.flush()
            os.fsync(file.fileno())
        if draft.final:
            draft.path.replace(draft.final)
            _sync_folder(draft.final.parent)
    except BaseException as exc:
        with suppress(OSError):
            draft.path.unlink()
        if isinstance(exc, OSError):
            raise _failure(draft.url, exc, frozenset()) from None
        raise
    return result


def _sync_folder(folder: Path) -> None:
    """Makes a rename in the folder last; Windows has no such thing."""
    if os.name == "nt":
        return
    number = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(number)
    finally:
        os.close(number)


def open_store(url: str, options: Mapping[str, Any] | None = None, scratch: Path | None = None) -> Store:
    """The store at a URL (``file:///path``, a plain path, ``memory://``, ``s3://bucket/prefix`` ...).

    ``options`` go to fsspec's driver; ``scratch`` is the folder for drafts of what is uploaded, the system's own folder
    for temporary files if None. Connects to nothing. StoreError for a URL that no installed driver takes.
    """
    options = deepcopy(dict(options or {}))  # botocore changes what it is given
    hidden = _secrets(url, options)
    shown = _redact(url, hidden)
    try:
        fs, root = url_to_fs(url, **options)
    except ImportError as exc:
        extra = "headrace[s3]" if url.startswith(("s3:", "s3a:")) else "the driver named there"
        raise StoreError(shown, f"its driver is not installed ({exc})", f"pip install '{extra}'") from exc
    except Exception as exc:  # noqa: BLE001 - drivers raise what they like
        remedy = "use file:///path, memory:// or s3://bucket/prefix, and the options of its driver"
        raise _failure(shown, exc, hidden, remedy) from None
    if isinstance(fs, LocalFileSystem):
        return _Directory(shown, Path(root))
    return _ObjectStore(shown, fs, root.rstrip("/"), hidden, scratch or Path(tempfile.gettempdir()))


class _Directory:
    def __init__(self, url: str, root: Path) -> None:
        self.url, self._root = url, root

    def __repr__(self) -> str:
        return f"Store({self.url})"

    def list(self, folder: str = "") -> Sequence[StoredFile]:
        found = []
        with self._errors():
            for path in self._walk(folder):
                if not path.name.startswith("."):
                    with suppress(FileNotFoundError):  # gone meanwhile
                        found.append(StoredFile(path.relative_to(self._root).as_posix(), path.stat().st_size))
        return sorted(found, key=lambda file: file.name)

    def _walk(self, folder: str) -> Iterator[Path]:
        def fail(exc: OSError) -> None:
            if not isinstance(exc, FileNotFoundError):
                raise exc

        for parent, _, names in os.walk(self._root / _checked(folder, self.url, empty=True), onerror=fail):
            yield from (Path(parent, name) for name in names)

    @contextmanager
    def open(self, name: str) -> Iterator[BinaryIO]:
        path = self._root / _checked(name, self.url)
        with self._errors(name), path.open("rb") as file:
            yield file

    def read(self, name: str) -> bytes:
        with self.open(name) as file:
            return file.read()

    def write(self, name: str, data: bytes | Iterable[bytes]) -> None:
        write_draft(self.draft(name), lambda file: _put(file, data))

    def delete(self, name: str) -> None:
        with self._errors():
            (self._root / _checked(name, self.url)).unlink(missing_ok=True)

    def draft(self, name: str) -> Draft:
        final = self._root / _checked(name, self.url)
        with self._errors():
            final.parent.mkdir(parents=True, exist_ok=True)
        return Draft(name, final.with_name(f".{final.name}.{secrets.token_hex(4)}{_LEFTOVER}"), final, self.url)

    def publish(self, draft: Draft) -> None:
        """Nothing is left to do."""

    def sweep(self, folder: str, older_than_s: float) -> int:
        with self._errors():
            drafts = [path for path in self._walk(folder) if path.name.startswith(".") and path.suffix == _LEFTOVER]
        return sum(_discard(path, older_than_s) for path in drafts)

    @contextmanager
    def _errors(self, reading: str = "") -> Iterator[None]:
        try:
            yield
        except OSError as exc:
            raise _failure(self.url, exc, frozenset(), reading=reading) from None


class _ObjectStore:
    def __init__(
        self, url: str, fs: fsspec.AbstractFileSystem, root: str, hidden: frozenset[str], scratch: Path
    ) -> None:
        self.url, self._fs, self._root, self._hidden, self._scratch = url, fs, root, hidden, scratch

    def __repr__(self) -> str:
        return f"Store({self.url})"

    def _path(self, name: str, *, empty: bool = False) -> str:
        return f"{self._root}/{_checked(name, self.url, empty=empty)}".rstrip("/")

    def list(self, folder: str = "") -> Sequence[StoredFile]:
        path = self._path(folder, empty=True)
        with self._errors():
            self._fs.invalidate_cache()  # others write and delete too
            found = self._fs.find(path, detail=True)
        return [StoredFile(key[len(self._root) + 1 :], int(found[key]["size"])) for key in sorted(found)]

    @contextmanager
    def open(self, name: str) -> Iterator[BinaryIO]:
        path = self._path(name)
        with self._errors(name), self._fs.open(path, "rb", block_size=_BLOCK_BYTES) as file:
            yield file

    def read(self, name: str) -> bytes:
        path = self._path(name)
        with self._errors(name):
            data: bytes = self._fs.cat_file(path)
        return data

    def write(self, name: str, data: bytes | Iterable[bytes]) -> None:
        if isinstance(data, bytes):
            with self._errors():
                self._fs.pipe_file(self._path(name), data)
            return
        draft = self.draft(name)
        write_draft(draft, lambda file: _put(file, data))
        self.publish(draft)

    def delete(self, name: str) -> None:
        with self._errors(), suppress(FileNotFoundError):
            self._fs.rm_file(self._path(name))

    def draft(self, name: str) -> Draft:
        _checked(name, self.url)
        return Draft(name, self._scratch / f"headrace-{secrets.token_hex(8)}{_LEFTOVER}", None, str(self._scratch))

    def publish(self, draft: Draft) -> None:
        try:
            with self._errors():
                self._fs.put_file(str(draft.path), self._path(draft.name))
        finally:
            with suppress(OSError):
                draft.path.unlink()

    def sweep(self, folder: str, older_than_s: float) -> int:
        return sum(_discard(path, older_than_s) for path in self._scratch.glob(f"headrace-*{_LEFTOVER}"))

    @contextmanager
    def _errors(self, reading: str = "") -> Iterator[None]:
        try:
            yield
        except (HeadraceError, MemoryError):
            raise
        except Exception as exc:  # noqa: BLE001 - drivers raise what they like
            raise _failure(self.url, exc, self._hidden, reading=reading) from None


def _checked(name: str, url: str, *, empty: bool = False) -> str:
    """The name itself, if it stays below the store's URL."""
    if (empty and not name) or ("\\" not in name and all(p and not p.startswith(".") for p in name.split("/"))):
        return name
    raise StoreError(url, f"name {name!r} leaves the store or hides in it", "use relative names, / between their parts")


def _put(file: BinaryIO, data: bytes | Iterable[bytes]) -> None:
    for chunk in [data] if isinstance(data, bytes) else data:
        file.write(chunk)


def _discard(path: Path, older_than_s: float) -> bool:
    """Removes a leftover; False where it is young, gone, or another user's."""
    try:
        if time.time() - path.stat().st_mtime < older_than_s:
            return False
        path.unlink()
    except OSError:
        return False
    return True


def _failure(
    url: str, exc: Exception, hidden: frozenset[str], remedy: str | None = None, *, reading: str = ""
) -> StoreError:
    """The StoreError of a foreign error, to be raised from None: the foreign text may hold credentials."""
    if reading and isinstance(exc, FileNotFoundError):
        return NotStored(url, f"no file {reading}", "it was deleted, or never written")
    number = exc.errno if isinstance(exc, OSError) else None
    if number is None and isinstance(exc, FileNotFoundError | PermissionError):  # drivers raise them without a number
        number = errno.ENOENT if isinstance(exc, FileNotFoundError) else errno.EACCES
    text = f"{exc.strerror} ({exc.filename})" if isinstance(exc, OSError) and exc.filename else str(exc)
    remedy = _REMEDIES.get(number or 0) or remedy or "check address, network and credentials, then try again"
    return StoreError(url, _redact(f"{type(exc).__name__}: {text}", hidden), remedy)


def _secrets(url: str, options: Mapping[str, Any]) -> frozenset[str]:
    """Texts that no message may hold: of the URL, of the options, of the environment."""
    found = {value for name, value in os.environ.items() if _SECRET_VARIABLE.search(name) and len(value) >= 8}
    pending: list[Any] = [options]
    while pending:
        value = pending.pop()
        if isinstance(value, Mapping):
            pending += [item for key, item in value.items() if key not in _SHOWN_OPTIONS]
        elif isinstance(value, list | tuple):
            pending += value
        elif isinstance(value, str):
            found.add(value)
    for match in _USER.finditer(url):
        found.update(match[0].removeprefix(match[1])[:-1].split(":"))
    found.update(part.partition("=")[2] for part in url.partition("?")[2].split("&"))
    found |= {unquote(text) for text in found}
    return frozenset(text for text in found if len(text) >= _SECRET_LENGTH_MIN)


def _redact(text: str, hidden: frozenset[str]) -> str:
    text = _QUERY.sub(r"\1?***", _USER.sub(r"\1***@", text))
    for secret in sorted(hidden, key=len, reverse=True):
        text = text.replace(secret, "***")
    return text
