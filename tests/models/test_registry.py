"""The history of a registry: who was champion, what is beside it, and writers that die."""

from __future__ import annotations

import json
from concurrent.futures import ThreadPoolExecutor
from itertools import pairwise
from pathlib import Path

import pytest
from trees import N_FEATURES, model_text

from models.compare import compare
from models.errors import ModelError
from models.package import Draft
from models.registry import Registry

FEATURES = tuple(f"f{j}" for j in range(N_FEATURES))


@pytest.fixture(scope="module")
def template(tmp_path_factory: pytest.TempPathFactory) -> Registry:
    """A registry with m@1 to m@4, the first the champion."""
    registry = Registry(tmp_path_factory.mktemp("template"))
    for version in range(4):
        metrics = {"rows": 10_000, "frauds": 100, "auc": 0.9 + version / 100, "brier": 0.01}
        training = {"train_from": 0, "train_to": version, "params": {"num_leaves": 31, "seed": version}}
        text = model_text("stumps" if version == 3 else "no_missing")
        draft = Draft("m", text, FEATURES, "5c4e", "2024-05-01T00:00:00Z", training=training, metrics=metrics)
        registry.add(draft, "champion" if version == 0 else None)
    return registry


@pytest.fixture
def registry(template: Registry, tmp_path: Path) -> Registry:
    """A copy without the packages' files: links to them."""
    registry = Registry(tmp_path)
    for path in template.root.iterdir():
        if path.is_dir():
            (tmp_path / path.name).symlink_to(path)
        else:
            (tmp_path / path.name).write_bytes(path.read_bytes())
    return registry


def test_roll_backs_go_back_one_by_one(registry: Registry) -> None:
    for version in (2, 3, 3, 4):
        registry.set_alias("champion", f"m@{version}")
    assert registry.previous == "m@3"
    assert [registry.rollback() for _ in range(2)] == ["m@3", "m@2"]
    registry.set_alias("champion", "m@4")
    assert [registry.rollback() for _ in range(2)] == ["m@2", "m@1"]
    with pytest.raises(ModelError, match="no champion before"):
        registry.rollback()
    assert registry.aliases() == {"champion": "m@1"}


def test_what_is_beside_the_champion(registry: Registry) -> None:
    registry.set_alias("shadow", "m@2")
    registry.set_alias("challenger", "m@3")
    registry.set_canary("challenger", 0.05)
    assert registry.aliases() == {"champion": "m@1", "challenger": "m@3", "shadow": "m@2", "canary": "m@3"}
    assert registry.canary == ("m@3", 0.05) and registry.resolve("canary").name == "3"
    registry.set_canary("m@3", 0.2)
    assert registry.canary == ("m@3", 0.2)
    assert registry.clear("canary", "slow", expected="m@2") is None
    assert registry.clear("canary", "slow", expected="m@3") == "m@3" and registry.canary is None
    assert registry.clear("canary") is None
    registry.set_canary("m@2", 0.1)
    registry.set_alias("champion", "canary")  # it has proved itself: it is no canary or shadow any more
    assert registry.aliases() == {"champion": "m@2", "challenger": "m@3"} and registry.canary is None
    assert [(c.action, c.alias, c.model, c.before) for c in registry.history()[-4:]] == [
        ("canary", "canary", "m@2", None),
        ("promote", "champion", "m@2", "m@1"),
        ("clear", "shadow", None, "m@2"),
        ("clear", "canary", None, "m@2"),
    ]
    assert [c.change for c in registry.history()] == list(range(1, len(registry.history()) + 1))
    assert next(c.reason for c in registry.history() if c.model is None) == "slow"


@pytest.mark.parametrize("share", [0.0, -0.1, 0.51, 1.0, float("nan")])
def test_shares_that_cannot_be(registry: Registry, share: float) -> None:
    with pytest.raises(ModelError, match="canary share"):
        registry.set_canary("m@2", share)
    with pytest.raises(ModelError, match="m@1 is the champion"):
        registry.set_canary("champion", 0.1)
    with pytest.raises(ModelError, match="cannot be cleared"):
        registry.clear("champion")
    assert len(registry.history()) == 1


@pytest.mark.parametrize("left", ["whole", "half"])
def test_a_writer_that_died_before_its_rename_has_changed_nothing(registry: Registry, left: str) -> None:
    registry.set_alias("champion", "m@2")
    before = (registry.root / "aliases.json").read_bytes()
    registry.set_alias("champion", "m@3")
    (registry.root / "aliases.json").write_bytes(before)
    if left == "half":
        path = registry.root / "history.jsonl"
        path.write_bytes(path.read_bytes()[:-20])
    assert registry.aliases() == {"champion": "m@2"} and registry.previous == "m@1"
    registry.set_alias("champion", "m@4")
    assert [c.model for c in registry.history()] == ["m@1", "m@2", "m@4"] and registry.previous == "m@2"


def test_writers_at_once(registry: Registry) -> None:
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda i: Registry(registry.root).set_alias("shadow", f"m@{2 + i % 3}"), range(24)))
    history = registry.history()
    assert [c.change for c in history] == list(range(1, len(history) + 1))
    assert all(after.before == before.model for before, after in pairwise(history[1:]))
    assert history[-1].model == registry.aliases()["shadow"]


def test_a_damaged_history_is_named(registry: Registry) -> None:
    registry.set_alias("champion", "m@2")
    path = registry.root / "history.jsonl"
    path.write_text("?\n" + path.read_text("utf-8"), "utf-8")
    with pytest.raises(ModelError, match=r"history\.jsonl line 1"):
        registry.rollback()


def test_fingerprints(registry: Registry) -> None:
    assert registry.fingerprint("champion") == registry.fingerprint("m@1") != registry.fingerprint("m@2")


def test_two_packages_beside_each_other(registry: Registry) -> None:
    found = compare(registry.resolve("m@1"), registry.resolve("m@4"))
    assert found["models"] == ["m@1", "m@4"]
    assert found["training"] == {"train_to": (0, 3)} and found["settings"] == {"seed": (0, 3)}
    assert found["size"]["trees"] == (12, 12) and found["size"]["leaves"][1] == 24 < found["size"]["leaves"][0]
    assert found["features"] == {"first_only": [], "second_only": [], "same_order": True}
    auc, brier = found["metrics"]["auc"], found["metrics"]["brier"]
    # Hanley and McNeil's table: an area of 0.9 with 100 cases among many is known to about 0.018
    assert auc.noise == pytest.approx(1.96 * 0.025, rel=0.15) and auc.beyond_noise is False
    assert brier.noise is None and brier.beyond_noise is None
    assert json.dumps(found["training"])
