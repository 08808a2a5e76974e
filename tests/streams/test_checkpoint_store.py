"""The checkpoints of a group: which one is used, which are kept, what they are called."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from s3_server import s3_server

from streams.checkpoint import CheckpointError, CheckpointMeta, Expected, SettingsChanged
from streams.checkpoint_store import CheckpointStore, Series, checkpoint_name
from streams.store import Store, StoreError, open_store

META = CheckpointMeta(
    group="headrace/fraud",
    stage="card",
    topic="transactions",
    topic_id="id-1",
    partition=3,
    offset=0,
    fingerprint="f1",
    feature_set="fraud-default",
    feature_set_hash="h1",
    headrace_version="0.1.0",
    created_at="2026-11-23T09:30:00Z",
)
EXPECTED = Expected(
    group=META.group, stage=META.stage, topic=META.topic, topic_id="id-1", partition=3, fingerprint="f1"
)
CARD = Series("card", META.topic_id, 3)
END = 2**63 - 1


@pytest.fixture(scope="module")
def s3() -> Iterator[dict[str, Any]]:
    with s3_server() as options:
        yield options


@pytest.fixture(params=["directory", "memory", "s3"])
def store(request: pytest.FixtureRequest, tmp_path: Path) -> Store:
    if request.param == "directory":
        return open_store(str(tmp_path / "store"))
    if request.param == "memory":
        return open_store(f"memory://{tmp_path.name}")
    return open_store(f"s3://checkpoints/{tmp_path.name}", request.getfixturevalue("s3"), tmp_path)


@pytest.fixture
def checkpoints(store: Store) -> CheckpointStore:
    return CheckpointStore(store, META.group)


def at(offset: int, **other: Any) -> CheckpointMeta:
    return msgspec.structs.replace(META, offset=offset, **other)


def save(checkpoints: CheckpointStore, *offsets: int) -> None:
    for offset in offsets:
        checkpoints.save(at(offset), {"state": np.array([offset])})


def found(checkpoints: CheckpointStore, at_most: int, expected: Expected = EXPECTED) -> tuple[int | None, list[str]]:
    """(offset, problems of those that were skipped)."""
    skipped: list[CheckpointError] = []
    checkpoint = checkpoints.newest(expected, at_most, skipped.append)
    if checkpoint:
        assert checkpoint.arrays["state"].tolist() == [checkpoint.meta.offset]
    return checkpoint and checkpoint.meta.offset, [error.problem for error in skipped]


def change(store: Store, offset: int, how: Callable[[bytes], bytes]) -> None:
    name = checkpoint_name(META.group, CARD, offset)
    store.write(name, how(store.read(name)))


# Which one is used


def test_the_newest_at_or_below_the_committed_offset(checkpoints: CheckpointStore) -> None:
    assert found(checkpoints, END) == (None, [])
    save(checkpoints, 500, 0, 90, 1000)
    assert checkpoints.offsets(CARD) == [0, 90, 500, 1000]
    for at_most, offset in ((END, 1000), (1000, 1000), (999, 500), (500, 500), (499, 90), (89, 0), (0, 0)):
        assert found(checkpoints, at_most) == (offset, [])
    assert found(checkpoints, -1) == (None, [])


def test_stages_partitions_and_groups_keep_apart(checkpoints: CheckpointStore, store: Store) -> None:
    save(checkpoints, 10)
    checkpoints.save(at(20, stage="card2"), {})
    checkpoints.save(at(30, partition=33), {})
    CheckpointStore(store, "headrace").save(at(40, group="headrace"), {})
    assert checkpoints.offsets(CARD) == [10]
    assert checkpoints.offsets(Series("card2", META.topic_id, 3)) == [20]
    assert checkpoints.offsets(Series("card", META.topic_id, 33)) == [30]
    assert CheckpointStore(store, "headrace").offsets(CARD) == [40]


def test_a_bad_one_is_skipped_for_the_one_before(checkpoints: CheckpointStore, store: Store) -> None:
    save(checkpoints, *range(7))
    change(store, 6, lambda content: content[: len(content) // 2])
    change(store, 5, lambda content: content[:-40] + bytes([content[-40] ^ 1]) + content[-39:])
    change(store, 4, lambda _: b"")
    change(store, 3, lambda _: b"something else altogether")
    change(store, 2, lambda _: store.read(checkpoint_name(META.group, CARD, 1)))
    assert found(checkpoints, END) == (1, ["truncated", "corrupt", "truncated", "not a checkpoint", "foreign"])
    assert found(checkpoints, 3) == (1, ["not a checkpoint", "foreign"])


def test_that_is_said_in_the_log(checkpoints: CheckpointStore, store: Store, caplog: pytest.LogCaptureFixture) -> None:
    save(checkpoints, 1, 2)
    change(store, 2, lambda content: content[:100])
    with caplog.at_level(logging.WARNING, "headrace.checkpoint"):
        assert checkpoints.newest(EXPECTED, END)
    [record] = caplog.records
    name = f"{store.url}/headrace%2Ffraud/card/id-1/3/{2:019}.ckpt"
    assert f"checkpoint {name}: truncated: it ends at byte 100 within its header; an older" in record.getMessage()


def test_a_recreated_topic_has_checkpoints_of_its_own(checkpoints: CheckpointStore) -> None:
    save(checkpoints, 1, 2)
    other = Expected(group=META.group, stage="card", topic=META.topic, topic_id="id-2", partition=3, fingerprint="f1")
    assert found(checkpoints, END, other) == (None, [])


def test_other_settings_are_for_the_worker_to_refuse(checkpoints: CheckpointStore, store: Store) -> None:
    save(checkpoints, 1)
    checkpoints.save(at(2, fingerprint="f2"), {})
    with pytest.raises(SettingsChanged, match="written with fingerprint f2"):
        found(checkpoints, END)
    assert found(checkpoints, 1) == (1, [])


def test_a_file_that_goes_while_it_is_looked_for(
    checkpoints: CheckpointStore, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    save(checkpoints, 1, 2)
    monkeypatch.setattr(checkpoints, "offsets", lambda *_: [1, 2, 3])
    store.delete(checkpoint_name(META.group, CARD, 2))
    assert found(checkpoints, END) == (1, [])


def test_a_store_that_fails_is_no_missing_checkpoint(
    checkpoints: CheckpointStore, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Else a network that is down would cost a replay of the whole log."""
    save(checkpoints, 1)

    def fail(_: str) -> None:
        raise StoreError(store.url, "down", "wait")

    monkeypatch.setattr(store, "open", fail)
    with pytest.raises(StoreError, match="down"):
        found(checkpoints, END)


# Which are kept


def test_pruning_keeps_the_newest(checkpoints: CheckpointStore) -> None:
    save(checkpoints, 5, 10, 15, 20, 25)
    checkpoints.save(at(1, partition=4), {})
    assert checkpoints.prune(CARD) == [5, 10]
    assert checkpoints.offsets(CARD) == [15, 20, 25]
    assert checkpoints.prune(CARD) == []
    assert checkpoints.offsets(Series("card", META.topic_id, 4)) == [1]


def test_pruning_counts_those_that_can_be_used(checkpoints: CheckpointStore) -> None:
    """After a crash before the commit there are checkpoints that are too new for a while."""
    save(checkpoints, 5, 10, 15, 20, 25)
    assert checkpoints.prune(CARD, keep=2, at_most=16) == [5]
    assert checkpoints.offsets(CARD) == [10, 15, 20, 25]
    assert checkpoints.prune(CARD, keep=2, at_most=4) == []
    assert checkpoints.prune(Series("nothing", META.topic_id, 0)) == []


def test_two_workers_prune_at_once(checkpoints: CheckpointStore, monkeypatch: pytest.MonkeyPatch) -> None:
    save(checkpoints, 5, 10, 15, 20)
    seen = checkpoints.offsets(CARD)
    assert checkpoints.prune(CARD) == [5]
    monkeypatch.setattr(checkpoints, "offsets", lambda *_: seen)
    assert checkpoints.prune(CARD) == [5]


def test_a_killed_writer_s_draft_goes_with_the_old_ones(checkpoints: CheckpointStore) -> None:
    draft = checkpoints.draft(at(7))
    draft.path.write_bytes(b"half")
    checkpoints.prune(CARD)
    assert draft.path.exists()
    os.utime(draft.path, (0, 0))
    checkpoints.prune(CARD)
    assert not draft.path.exists()
    assert checkpoints.offsets(CARD) == []


# What they are called


def test_names_sort_as_offsets_do() -> None:
    offsets = [0, 1, 9, 10, 10**18, END]
    names = [checkpoint_name("g", Series("s", "t", 0), offset) for offset in offsets]
    assert names[0] == "g/s/t/0/0000000000000000000.ckpt"
    assert names == sorted(names)


_NAMES = st.text(st.characters(codec="utf-8"), max_size=20) | st.sampled_from(
    ["", ".", "..", "%", "a/b", "a%2Fb", "a\\b"]
)


@settings(derandomize=True, deadline=None, max_examples=300)
@given(groups=st.lists(st.tuples(_NAMES, st.sampled_from([1, 20])), min_size=2, max_size=2))
def test_any_group_has_a_folder_of_its_own(groups: list[tuple[str, int]]) -> None:
    texts = [text * times for text, times in groups]
    names = [checkpoint_name(text, Series(text, text, 0), 0) for text in texts]
    for name in names:
        parts = name.split("/")
        assert len(parts) == 5
        for part in parts:
            assert part and not part.startswith(".") and len(part) <= 200 and part.isascii()
            assert not set(part) & set('\\:*?"<>|\0 ')
    assert (names[0] == names[1]) == (texts[0] == texts[1])


def test_long_names_that_begin_alike_keep_apart() -> None:
    names = {checkpoint_name("ü" * 300 + str(i), Series("s", "t", 0), 0) for i in range(10)}
    assert len(names) == 10
    assert max(len(name.split("/")[0]) for name in names) <= 200
