"""Stores: one suite for a directory, memory and an object store; what makes a file whole, errors, credentials."""

from __future__ import annotations

import errno
import importlib
import os
import resource
import shutil
import signal
import stat
import subprocess
import sys
import time
import traceback
from collections.abc import Callable, Iterator
from copy import deepcopy
from pathlib import Path
from typing import Any

import pytest
from s3_server import s3_server

from streams.store import NotStored, Store, StoredFile, StoreError, open_store, write_draft

KINDS = ["path", "file", "memory", "s3"]


@pytest.fixture(scope="module")
def s3() -> Iterator[dict[str, Any]]:
    with s3_server() as options:
        yield options


@pytest.fixture(params=KINDS)
def store(request: pytest.FixtureRequest, tmp_path: Path) -> Store:
    scratch = tmp_path / "scratch"
    scratch.mkdir()
    unique = f"{tmp_path.name}-{time.monotonic_ns()}"
    match request.param:
        case "path":
            return open_store(str(tmp_path / "store"), scratch=scratch)
        case "file":
            return open_store(f"file://{tmp_path}/store/", scratch=scratch)
        case "memory":
            return open_store(f"memory://{unique}", scratch=scratch)
        case _:
            return open_store(f"s3://checkpoints/{unique}", request.getfixturevalue("s3"), scratch)


# One suite for all


def test_what_was_written_is_read(store: Store) -> None:
    store.write("a/b/1", b"one")
    store.write("a/b/2", (bytes([i]) * 1000 for i in range(5)))
    store.write("a/b/empty", b"")
    assert store.read("a/b/1") == b"one"
    assert store.read("a/b/2") == b"".join(bytes([i]) * 1000 for i in range(5))
    assert store.read("a/b/empty") == b""
    with store.open("a/b/2") as file:
        assert file.read(1001) == bytes(1000) + b"\1"
        assert file.read(3) == b"\1\1\1"


def test_a_file_is_replaced_whole(store: Store) -> None:
    store.write("a", b"long content")
    store.write("a", b"short")
    assert store.read("a") == b"short"


def test_list_is_of_a_folder(store: Store) -> None:
    assert list(store.list("a")) == []
    for name in ("a/1/x", "a/1/y", "a/10/x", "ab/x"):
        store.write(name, name.encode() * 2)
    assert list(store.list("a/1")) == [StoredFile("a/1/x", 10), StoredFile("a/1/y", 10)]
    assert [file.name for file in store.list("a")] == ["a/1/x", "a/1/y", "a/10/x"]
    assert [file.name for file in store.list()] == ["a/1/x", "a/1/y", "a/10/x", "ab/x"]
    assert list(store.list("a/2")) == []


def test_names_with_percent_signs_stay(store: Store) -> None:
    store.write("gr%2Foup/%25%%x", b"1")
    assert [file.name for file in store.list("gr%2Foup")] == ["gr%2Foup/%25%%x"]
    assert store.read("gr%2Foup/%25%%x") == b"1"


def test_delete_takes_what_is_gone_lightly(store: Store) -> None:
    store.write("a/1", b"1")
    store.delete("a/1")
    store.delete("a/1")
    assert list(store.list("a")) == []
    with pytest.raises(NotStored, match=r"store .*: no file a/1; it was deleted"):
        store.read("a/1")
    with pytest.raises(NotStored, match="no file a/1"), store.open("a/1"):
        pytest.fail("opened")


def test_others_changes_are_seen_at_once(store: Store, request: pytest.FixtureRequest) -> None:
    options = request.getfixturevalue("s3") if store.url.startswith("s3") else None
    other = open_store(store.url, options)
    assert list(store.list("a")) == []
    other.write("a/1", b"1")
    assert [file.name for file in store.list("a")] == ["a/1"]
    other.delete("a/1")
    assert list(store.list("a")) == []


def test_a_draft_is_published(store: Store, tmp_path: Path) -> None:
    draft = store.draft("g/1")
    assert list(store.list("g")) == []
    assert write_draft(draft, lambda file: file.write(b"12345")) == 5
    assert draft.final or stat.S_IMODE(draft.path.stat().st_mode) == 0o600
    store.publish(draft)
    assert store.read("g/1") == b"12345"
    assert not draft.path.exists()
    assert list((tmp_path / "scratch").iterdir()) == []


def test_a_draft_that_fails_leaves_nothing(store: Store) -> None:
    def produce(chunk: bytes) -> Iterator[bytes]:
        yield chunk
        raise OSError(errno.ENOSPC, "No space left on device")

    store.write("g/1", b"before")
    with pytest.raises(StoreError, match="No space left on device; free space there"):
        store.write("g/1", produce(b"x" * 100_000))
    assert store.read("g/1") == b"before"
    assert store.sweep("g", older_than_s=-1) == 0
    assert [file.name for file in store.list("g")] == ["g/1"]


def test_a_killed_writer_s_draft_is_swept_when_old(store: Store) -> None:
    store.write("g/1", b"1")
    draft = store.draft("g/2")
    draft.path.write_bytes(b"half")
    assert [file.name for file in store.list("g")] == ["g/1"]
    assert store.sweep("g", older_than_s=3600) == 0
    os.utime(draft.path, (0, 0))
    assert store.sweep("g", older_than_s=3600) == 1
    assert not draft.path.exists()
    assert store.read("g/1") == b"1"


@pytest.mark.parametrize("name", ["", "../x", "a/../x", "/etc/x", "a//b", ".hidden", "a/.b", "a\\..\\b"])
def test_names_stay_below_the_store(store: Store, name: str) -> None:
    for call in (store.read, store.delete, store.draft, lambda name: store.write(name, b"")):
        with pytest.raises(StoreError, match="leaves the store or hides in it"):
            call(name)


# A directory


@pytest.fixture
def full_disk(tmp_path: Path) -> Iterator[Path]:
    folder = tmp_path / "small"
    folder.mkdir()
    mount = shutil.which("mount")
    done = mount and subprocess.run([mount, "-t", "tmpfs", "-o", "size=1m", "tmpfs", folder], capture_output=True)
    if not done or done.returncode:
        pytest.skip("mounting a small file system needs root: the same error is raised by hand in another test")
    yield folder
    subprocess.run(["umount", "-l", folder], check=True)


def test_a_full_disk_leaves_the_disk_as_it_was(full_disk: Path) -> None:
    store = open_store(str(full_disk))
    store.write("g/1", b"x" * 400_000)
    with pytest.raises(StoreError) as caught:
        store.write("g/2", [b"y" * 100_000] * 10)
    assert caught.value.url == str(full_disk)
    assert "No space left on device" in caught.value.reason
    assert "larger disk" in caught.value.remedy
    assert [path.name for path in (full_disk / "g").iterdir()] == ["1"]
    store.write("g/2", b"z" * 400_000)


def test_a_limit_on_the_size_of_files_is_named(tmp_path: Path) -> None:
    code = (
        "import sys; from streams.store import StoreError, open_store\n"
        "try: open_store(sys.argv[1]).write('g/1', [b'y' * 100_000] * 10)\n"
        "except StoreError as exc: print(exc)"
    )

    def limit() -> None:
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (250_000, 250_000))

    command = [sys.executable, "-c", code, str(tmp_path)]
    done = subprocess.run(command, preexec_fn=limit, capture_output=True, text=True, check=True, timeout=60)
    assert "File too large; raise the limit on the size of files (ulimit -f)" in done.stdout.replace("() ", "")
    assert list((tmp_path / "g").iterdir()) == []


def test_the_file_is_synced_before_it_has_its_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    steps: list[str] = []
    real_sync, real_replace = os.fsync, Path.replace

    def fsync(number: int) -> None:
        steps.append("sync " + Path(f"/proc/self/fd/{number}").readlink().name.partition(".tmp")[1])
        real_sync(number)

    def replace(path: Path, target: Path) -> Path:
        steps.append("rename")
        return real_replace(path, target)

    monkeypatch.setattr(os, "fsync", fsync)
    monkeypatch.setattr(Path, "replace", replace)
    open_store(str(tmp_path)).write("g/1", b"1")
    assert steps == ["sync .tmp", "rename", "sync "]


@pytest.mark.parametrize(
    ("number", "remedy"),
    [
        (errno.EACCES, "let the worker's user or key read, write and list there"),
        (errno.EROFS, "mount it writable"),
        (errno.EDQUOT, "free space there"),
        (errno.EIO, "check address, network and credentials"),
    ],
)
def test_an_error_names_url_reason_and_remedy(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int, remedy: str
) -> None:
    def fsync(_: int) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(os, "fsync", fsync)
    with pytest.raises(StoreError) as caught:
        open_store(f"file://{tmp_path}").write("g/1", b"1")
    assert str(caught.value).startswith(f"store file://{tmp_path}: ")
    assert os.strerror(number) in str(caught.value)
    assert remedy in str(caught.value)
    assert list((tmp_path / "g").iterdir()) == []


def test_a_path_through_a_file(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    store = open_store(str(tmp_path / "file"))
    with pytest.raises(StoreError, match="a part of the path is a file"):
        store.write("g/1", b"1")
    with pytest.raises(StoreError, match="a part of the path is a file"):
        store.list("g")


# Object stores


def test_no_such_bucket(s3: dict[str, Any]) -> None:
    store = open_store("s3://nowhere/prefix", s3)
    for call in (lambda: store.write("g/1", b"1"), lambda: store.list("g")):
        with pytest.raises(StoreError, match=r"store s3://nowhere/prefix: .*bucket does not exist; create the bucket"):
            call()


def test_an_unreachable_store(s3: dict[str, Any]) -> None:
    options = s3 | {"client_kwargs": {"endpoint_url": "http://127.0.0.1:9"}}
    with pytest.raises(StoreError, match=r"EndpointConnectionError: Could not connect.*; check address, network"):
        open_store("s3://checkpoints/x", options).write("g/1", b"1")


def test_listings_are_not_taken_from_a_driver_s_cache(monkeypatch: pytest.MonkeyPatch) -> None:
    """Some keep what they once listed (gcsfs), and would not see the checkpoints of other workers."""
    store = open_store("memory://cached")
    store.write("g/1", b"1")
    steps: list[str] = []
    find = store._fs.find
    monkeypatch.setattr(store._fs, "invalidate_cache", lambda: steps.append("invalidate"))
    monkeypatch.setattr(store._fs, "find", lambda *args, **options: steps.append("find") or find(*args, **options))
    assert len(store.list("g")) == 1
    assert steps == ["invalidate", "find"]


def test_the_caller_s_options_stay_as_they_are(s3: dict[str, Any]) -> None:
    options = s3 | {"config_kwargs": {"retries": {"max_attempts": 1}}}
    before = deepcopy(options)
    open_store("s3://checkpoints/options", options).write("g/1", b"1")
    assert options == before


def test_a_store_that_refuses(s3: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    store = open_store("s3://checkpoints/x", s3)

    def refuse(*_: object, **__: object) -> None:
        raise PermissionError(f"Access Denied for {s3['secret']}")

    monkeypatch.setattr(store._fs, "pipe_file", refuse)
    with pytest.raises(StoreError, match=r"PermissionError: Access Denied for \*\*\*; let the worker's user or key"):
        store.write("g/1", b"1")


def test_a_missing_driver(monkeypatch: pytest.MonkeyPatch) -> None:
    registry = importlib.import_module("fsspec.registry")._registry
    monkeypatch.delitem(registry, "s3", raising=False)
    monkeypatch.setitem(sys.modules, "s3fs", None)
    with pytest.raises(StoreError, match=r"store s3://bucket/x: its driver is not installed .*'headrace\[s3\]'"):
        open_store("s3://bucket/x")


def test_an_unknown_scheme() -> None:
    with pytest.raises(StoreError, match="store nope://x: ValueError: Protocol not known: nope; use file:///path"):
        open_store("nope://x")


# Credentials


def messages(call: Callable[[], object]) -> str:
    with pytest.raises(StoreError) as caught:
        call()
    return "".join(traceback.format_exception(caught.value))


def test_credentials_are_in_no_message(s3: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_SESSION_TOKEN", "session-token-value")
    leak = f"{s3['secret']} {s3['key']} session-token-value http://user:pa/ss@host/x?X-Amz-Signature=abcdef"
    store = open_store("s3://checkpoints/x", s3)

    def fail(*_: object, **__: object) -> None:
        raise RuntimeError(leak)

    for method in ("pipe_file", "find", "cat_file", "open", "rm_file"):
        monkeypatch.setattr(store._fs, method, fail)
    calls = [
        lambda: store.write("a", b""),
        store.list,
        lambda: store.read("a"),
        lambda: store.delete("a"),
        lambda: store.open("a").__enter__(),
    ]
    for call in calls:
        text = messages(call)
        assert "RuntimeError: *** *** *** http://***@host/x?***" in text
        for secret in (*leak.split()[:3], "pa/ss", "abcdef"):
            assert secret not in text
    assert "Store(s3://checkpoints/x)" in repr(store)


@pytest.mark.parametrize(
    ("url", "shown"),
    [
        ("nope://key:wJalr/XUt+nFE@bucket/x", "nope://***@bucket/x"),
        ("nope://bucket/x?sas=verysecret&b=2", "nope://bucket/x?***"),
        ("nope://justuser@host/x", "nope://***@host/x"),
        ("nope://bucket/2026@noon", "nope://bucket/2026@noon"),
    ],
)
def test_a_url_is_shown_without_them(url: str, shown: str) -> None:
    text = messages(lambda: open_store(url))
    assert f"store {shown}: " in text
    for secret in ("wJalr", "XUt+nFE", "verysecret", "justuser"):
        assert secret not in text
