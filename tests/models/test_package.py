"""Packages, the registry and the slot: what is stored comes back, what does not match is refused."""

from __future__ import annotations

import json
import re
import shutil
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import lightgbm
import numpy as np
import pytest
from trees import N_FEATURES, model_text, training_matrix

from models.calibrate import Calibration
from models.errors import ModelError, PackageError
from models.golden import same_bits
from models.package import Draft, package_from_text, read_manifest
from models.registry import Registry
from models.slot import ModelSlot

FEATURES = [f"f{j}" for j in range(N_FEATURES)]
MADE = "2024-05-01T00:00:00Z"


@pytest.fixture
def text_file(tmp_path: Path) -> Path:
    path = tmp_path / "model.txt"
    path.write_text(model_text("categorical"), "utf-8")
    return path


@pytest.fixture
def draft(text_file: Path) -> Draft:
    return package_from_text(text_file, "fraud", created_at=MADE, features=FEATURES, schema_hash="5c4e")


@pytest.fixture
def registry(tmp_path: Path) -> Registry:
    return Registry(tmp_path / "registry")


def test_what_is_added_comes_back(registry: Registry, draft: Draft) -> None:
    manifest = registry.add(draft, alias="champion")
    assert manifest.label == "fraud@1"
    assert read_manifest(registry.resolve("champion")) == manifest
    model = registry.get("champion", FEATURES, "5c4e")
    x = training_matrix(300)[0]
    booster = lightgbm.Booster(model_str=model_text("categorical"))
    raw, probability = model.score(x)
    assert same_bits(raw, booster.predict(x, raw_score=True))
    np.testing.assert_allclose(probability, booster.predict(x), rtol=1e-12)


def test_versions_and_aliases(registry: Registry, draft: Draft) -> None:
    assert registry.entries() == [] and registry.aliases() == {}
    for _ in range(11):
        registry.add(draft)
    assert [e.manifest.version for e in registry.entries()] == list(range(1, 12))
    assert registry.set_alias("champion", "fraud@10") == "fraud@10"
    assert registry.set_alias("shadow", "champion") == "fraud@10"
    registry.set_alias("champion", "fraud@11")
    assert registry.aliases() == {"champion": "fraud@11", "shadow": "fraud@10"}
    assert [e.aliases for e in registry.entries()][-2:] == [("shadow",), ("champion",)]


def test_writers_at_once_get_versions_of_their_own(registry: Registry, draft: Draft) -> None:
    with ThreadPoolExecutor(4) as pool:
        versions = list(pool.map(lambda _: Registry(registry.root).add(draft, "shadow").version, range(8)))
    assert sorted(versions) == list(range(1, 9))
    assert registry.aliases()["shadow"] in [e.manifest.label for e in registry.entries()]


@pytest.mark.parametrize(
    "reference", ["champion", "fraud@2", "fraud@", "fraud", "../fraud@1", "x@1", "", "@", "fraud@1/.."]
)
def test_unknown_references_name_what_there_is(registry: Registry, draft: Draft, reference: str) -> None:
    registry.add(draft, alias="shadow")
    with pytest.raises(ModelError, match=r"there: fraud@1\)"):
        registry.resolve(reference)


@pytest.mark.parametrize("name", ["", "Fraud", "../x", "a/b", "champion", ".x", "x" * 65])
def test_names_that_cannot_be_used(registry: Registry, text_file: Path, name: str) -> None:
    with pytest.raises(ModelError, match="model name"):
        registry.add(package_from_text(text_file, name, created_at=MADE))
    assert registry.entries() == []


def test_unknown_alias(registry: Registry, draft: Draft) -> None:
    with pytest.raises(ModelError, match="champion, challenger, shadow"):
        registry.add(draft, alias="best")
    assert registry.entries() == []


def test_a_failed_add_leaves_nothing(registry: Registry, draft: Draft, monkeypatch: pytest.MonkeyPatch) -> None:
    registry.add(draft)

    def full(*_: object, **__: object) -> None:
        raise OSError("no space left on device")

    monkeypatch.setattr(np, "savez", full)
    with pytest.raises(OSError, match="no space"):
        registry.add(draft)
    assert [p.name for p in (registry.root / "fraud").iterdir()] == ["1"]


def test_columns_in_another_order_and_more_of_them(registry: Registry, draft: Draft) -> None:
    registry.add(draft)
    x = training_matrix(100)[0]
    wide = [*FEATURES[::-1], "more"]
    model = registry.get("fraud@1", wide)
    assert model.column_index.tolist() == [4, 3, 2, 1, 0]
    assert model.manifest.features == tuple(FEATURES)
    matrix = np.concatenate([x[:, ::-1], np.zeros((100, 1))], axis=1)
    assert same_bits(model.score(matrix)[0], registry.get("fraud@1").score(x)[0])


def test_features_that_the_set_lacks_are_named(registry: Registry, text_file: Path, draft: Draft) -> None:
    registry.add(draft)
    for refuse in (
        lambda: package_from_text(text_file, "fraud", created_at=MADE, features=["f0", "f1", "f2", "g"]),
        lambda: registry.get("fraud@1", ["f0", "f1", "f2", "g"]),
    ):
        with pytest.raises(PackageError, match=r"needs f3, f4, .*unused by the model: g"):
            refuse()


def test_other_schema_hash_names_both(registry: Registry, draft: Draft) -> None:
    registry.add(draft)
    with pytest.raises(PackageError, match=r"made for 5c4e, the running feature set is 77aa"):
        registry.get("fraud@1", FEATURES, "77aa")


@pytest.mark.parametrize("name", ["model.txt", "golden.npz"])
def test_changed_or_missing_files_are_refused(registry: Registry, draft: Draft, name: str) -> None:
    registry.add(draft)
    path = registry.resolve("fraud@1") / name
    path.write_bytes(path.read_bytes().replace(b"0", b"1", 1))
    with pytest.raises(PackageError, match="sha256: the file has"):
        registry.get("fraud@1")
    path.unlink()
    with pytest.raises(PackageError, match="cannot be read"):
        registry.get("fraud@1")


def _edit_manifest(path: Path, **changes: object) -> None:
    file = path / "manifest.json"
    file.write_text(json.dumps(json.loads(file.read_text("utf-8")) | changes), "utf-8")


def test_other_format_version(registry: Registry, draft: Draft) -> None:
    registry.add(draft)
    _edit_manifest(registry.resolve("fraud@1"), format_version=2)
    with pytest.raises(PackageError, match=r"the package has 2, this headrace reads 1; package the model again"):
        registry.get("fraud@1")


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b"{}", b'{"format_version": 1}', b"\xff"])
def test_damaged_manifest(registry: Registry, draft: Draft, content: bytes) -> None:
    registry.add(draft)
    (registry.resolve("fraud@1") / "manifest.json").write_bytes(content)
    with pytest.raises(PackageError, match="package the model again"):
        registry.get("fraud@1")


def test_golden_batch_of_another_model(registry: Registry, draft: Draft) -> None:
    registry.add(draft)
    one = registry.resolve("fraud@1")
    other = re.sub(r"leaf_value=\S+", "leaf_value=1.5", model_text("categorical"), count=1)
    two = package_from_text(_written(one.parent / "other.txt", other), "fraud", created_at=MADE)
    registry.add(two)
    shutil.copy(registry.resolve("fraud@2") / "golden.npz", one / "golden.npz")
    digest = read_manifest(registry.resolve("fraud@2")).sha256["golden.npz"]
    _edit_manifest(one, sha256=dict(read_manifest(one).sha256) | {"golden.npz": digest})
    with pytest.raises(PackageError, match="golden batch: LightGBM gives other raw scores"):
        registry.get("fraud@1")


def _written(path: Path, text: str) -> Path:
    path.write_text(text[: text.index("tree_sizes")] + text[text.index("\n\nTree=0") :], "utf-8")
    return path


def test_a_file_that_is_no_model(tmp_path: Path) -> None:
    with pytest.raises(PackageError, match="cannot be read"):
        package_from_text(tmp_path / "none", "fraud", created_at=MADE)


def test_damaged_aliases(registry: Registry, draft: Draft) -> None:
    registry.add(draft)
    for content in ("{", "[]", '{"champion": 1}'):
        (registry.root / "aliases.json").write_text(content, "utf-8")
        with pytest.raises(ModelError, match=r"aliases\.json"):
            registry.resolve("champion")


def test_slot(registry: Registry, draft: Draft) -> None:
    slot = ModelSlot()
    x = training_matrix(10)[0]
    raw, probability = slot.score(x)
    assert slot.label is None and np.isnan(raw).all() and np.isnan(probability).all() and raw.shape == (10,)
    registry.add(draft)
    model = registry.get("fraud@1")
    assert slot.replace(model) is None
    assert slot.label == "fraud@1"
    assert same_bits(slot.score(x)[0], model.score(x)[0])
    assert slot.replace(None) is model and slot.model is None


def test_calibration_is_kept(registry: Registry, text_file: Path) -> None:
    calibration = Calibration("isotonic", x=(-1.0, 0.5), y=(0.1, 0.9), version=3)
    registry.add(Draft("fraud", text_file.read_text("utf-8"), tuple(FEATURES), "", MADE, calibration=calibration))
    assert registry.get("fraud@1").calibration == calibration
