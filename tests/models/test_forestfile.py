"""The flattened forest in a package: written once, loaded from there, refused where it does not match."""

from __future__ import annotations

import json
import re
import shutil
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from trees import N_FEATURES, NAMES, model_text, random_text

from models import compiled, package
from models.compiled import CompiledPredictor
from models.errors import PackageError
from models.forest import Forest, flatten
from models.forestfile import read_forest, write_forest
from models.golden import inputs, same_bits
from models.kernels import SLOTS
from models.modeltext import parse
from models.package import Draft, load_package, read_manifest, write_files

GOLDEN = Path(__file__).parents[1] / "golden"


def _same(a: Forest, b: Forest) -> bool:
    shape = (a.n_features, a.n_trees, a.bitmasks) == (b.n_features, b.n_trees, b.bitmasks)
    return shape and np.array_equal(a.ints, b.ints) and np.array_equal(a.words, b.words)


@pytest.mark.parametrize("name", NAMES)
def test_a_forest_comes_back(name: str) -> None:
    model = parse(model_text(name))
    forest = flatten(model)
    again = read_forest(write_forest(forest), model)
    assert again is not None and _same(forest, again)


@pytest.mark.parametrize("seed", range(12))
def test_scores_of_what_came_back_are_the_same_bits(seed: int) -> None:
    model = parse(random_text(seed))
    again = read_forest(write_forest(flatten(model)), model)
    assert again is not None
    x = inputs(model)
    assert same_bits(CompiledPredictor(again).predict_raw(x), CompiledPredictor(model).predict_raw(x))


def _changed(content: bytes, **changes: Any) -> bytes:
    with np.load(BytesIO(content)) as arrays:
        parts = {name: arrays[name] for name in arrays.files} | changes
    out = BytesIO()
    np.savez(out, **{name: part for name, part in parts.items() if part is not None})
    return out.getvalue()


def test_another_layout_is_flattened_anew() -> None:
    model = parse(model_text("categorical"))
    assert read_forest(_changed(write_forest(flatten(model)), layout=np.array("other")), model) is None


@pytest.mark.parametrize("part", ["layout", "shape", "ints", "words"])
def test_a_file_without_a_part_is_refused(part: str) -> None:
    model = parse(model_text("categorical"))
    with pytest.raises(PackageError, match="flattened forest: cannot be read"):
        read_forest(_changed(write_forest(flatten(model)), **{part: None}), model)


def test_what_does_not_match_is_refused() -> None:
    model = parse(model_text("categorical"))
    forest = flatten(model)
    content = write_forest(forest)
    with pytest.raises(PackageError, match="cannot be read"):
        read_forest(content[:100], model)
    for broken in (b"", _changed(content, shape=np.array(3)), _changed(content, shape=np.array([np.inf, 1, 1]))):
        with pytest.raises(PackageError, match="cannot be read"):
            read_forest(broken, model)
    with pytest.raises(PackageError, match="of 5 features and 12 trees, the model text has 5 and 9"):
        read_forest(content, parse(random_text(1)))
    for ints in (forest.ints[:5], forest.ints.astype(np.int64), forest.ints.reshape(1, -1)):
        with pytest.raises(PackageError, match="points outside itself"):
            read_forest(_changed(content, ints=ints), model)


_PARTS = list(SLOTS)


def _edited(forest: Forest, part: str, value: int) -> bytes:
    """The forest's file with ``value`` in the last place of a part."""
    kind = SLOTS[part]
    names = [name for name in _PARTS if SLOTS[name] == kind]
    array = (forest.ints if kind == "ints" else forest.words).copy()
    starts = [int(forest.ints[_PARTS.index(name)]) for name in names] + [len(array)]
    assert starts[names.index(part)] < starts[names.index(part) + 1]
    array[starts[names.index(part) + 1] - 1] = value
    return _changed(write_forest(forest), **{kind: array})


@pytest.mark.parametrize(
    "part",
    ["column_feature", "column_codes", "column_bitset", "node_column", "node_child", "tree_root", "tree_number",
     "tree_depth", "tree_leaf", "block_start", "block_column"],
)  # fmt: skip
@pytest.mark.parametrize("value", [10**9, -7])
def test_a_forest_that_points_outside_itself_is_refused(part: str, value: int) -> None:
    model = parse(model_text("one_hot_categorical"))
    forest = flatten(model)
    if part in ("column_codes", "column_bitset"):
        # the last column need not be a category
        n = int(forest.ints[_PARTS.index("column_bitset")] - forest.ints[_PARTS.index("column_feature")])
        start = int(forest.ints[_PARTS.index("column_bitset")])
        place = int(np.flatnonzero(forest.ints[start : start + n] >= 0)[0])
        ints = forest.ints.copy()
        ints[int(forest.ints[_PARTS.index(part)]) + place] = value
        content = _changed(write_forest(forest), ints=ints)
        if part == "column_bitset" and value < 0:
            assert read_forest(content, model) is not None  # a numeric column then, wrong but harmless
            return
    else:
        content = _edited(forest, part, value)
    with pytest.raises(PackageError, match=r"points outside itself|leaf masks do not fit"):
        read_forest(content, model)


def test_masks_that_leave_no_leaf_are_refused() -> None:
    model = parse(model_text("nan_missing"))
    with pytest.raises(PackageError, match="leaf masks do not fit"):
        read_forest(_edited(flatten(model), "block_mask", 0), model)


def test_parts_that_begin_elsewhere_are_refused() -> None:
    model = parse(model_text("nan_missing"))
    forest = flatten(model)
    for i in range(len(SLOTS)):
        for start in (-1, 10**8):
            ints = forest.ints.copy()
            ints[i] = start
            with pytest.raises(PackageError, match="points outside itself"):
                read_forest(_changed(write_forest(forest), ints=ints), model)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A package that was just written."""
    names = tuple(f"f{j}" for j in range(N_FEATURES))
    write_files(tmp_path, Draft("fraud", model_text("categorical"), names, "", "2024-05-01T00:00:00Z"), 1)
    return tmp_path


def test_a_package_is_flattened_when_it_is_made(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert "forest.npz" in read_manifest(folder).sha256

    def refuse(*_: object) -> None:
        raise AssertionError("flattened at load")

    for module in (compiled, package):
        monkeypatch.setattr(module, "flatten", refuse)
    assert "compiled is bit-equal" in load_package(folder).choice.reason


def test_a_forest_of_another_model_never_scores(folder: Path) -> None:
    """Whoever changes forest and digest alike: LightGBM's own scores of the golden batch still decide."""
    other = parse(re.sub(r"leaf_value=\S+", "leaf_value=1.5", model_text("categorical"), count=1))
    content = write_forest(flatten(other))
    (folder / "forest.npz").write_bytes(content)
    with pytest.raises(PackageError, match="sha256: the file has"):
        load_package(folder)
    manifest = json.loads((folder / "manifest.json").read_text("utf-8"))
    manifest["sha256"]["forest.npz"] = package._sha256(content)
    (folder / "manifest.json").write_text(json.dumps(manifest), "utf-8")
    assert load_package(folder).choice.reason.startswith("lightgbm: compiled differs")


def test_a_model_that_the_kernels_refuse_has_no_forest(tmp_path: Path) -> None:
    names = tuple(f"f{j}" for j in range(N_FEATURES))
    write_files(tmp_path, Draft("rf", model_text("random_forest"), names, "", "2024-05-01T00:00:00Z"), 1)
    assert not (tmp_path / "forest.npz").exists()
    assert load_package(tmp_path).predictor.name == "lightgbm"


@pytest.mark.parametrize("name", ["package_v1", "package_v1_forest"])
def test_golden_packages_load(name: str, tmp_path: Path) -> None:
    shutil.copytree(GOLDEN / name, tmp_path / name)
    loaded = load_package(tmp_path / name, ["kind", "b", "a"], "5c4e", {"kind": {"shop": 0, "web": 1}})
    assert "compiled is bit-equal" in loaded.choice.reason
    assert loaded.manifest.metrics == {"auc": 0.75}
    with np.load(GOLDEN / name / "golden.npz") as arrays:
        assert same_bits(loaded.score(arrays["x"][:, ::-1])[0], arrays["raw"])
    newer = name == "package_v1_forest"
    assert (loaded.conformal is not None) == newer
    assert bool(loaded.manifest.categories) == bool(loaded.manifest.reference) == newer


def test_other_category_codes_are_refused() -> None:
    for codes, seen in (({"shop": 1, "web": 0}, "'shop' has the code 0 in the package, 1"), ({}, "None in")):
        with pytest.raises(PackageError, match=f"categories of kind: .*{seen}"):
            load_package(GOLDEN / "package_v1_forest", categories={"kind": codes or {"shop": 0, "web": 1, "new": 2}})
    with pytest.raises(PackageError, match=r"'web' has the code 1 in the package, None in the running"):
        load_package(GOLDEN / "package_v1_forest", categories={"kind": {"shop": 0}})


@pytest.mark.parametrize("name", ["conformal", "reference", "evaluation", "categories"])
def test_a_damaged_field_is_refused(folder: Path, name: str) -> None:
    manifest = json.loads((folder / "manifest.json").read_text("utf-8"))
    (folder / "manifest.json").write_text(json.dumps(manifest | {name: [1]}), "utf-8")
    with pytest.raises(PackageError, match=f"{name} is no object"):
        load_package(folder)


def test_damaged_conformal_thresholds_are_refused(folder: Path) -> None:
    manifest = json.loads((folder / "manifest.json").read_text("utf-8"))
    (folder / "manifest.json").write_text(json.dumps(manifest | {"conformal": {"alpha": 0.1}}), "utf-8")
    with pytest.raises(PackageError, match="conformal: cannot be read"):
        load_package(folder)


def test_other_libraries_are_named_where_a_model_cannot_be_used(folder: Path) -> None:
    manifest = json.loads((folder / "manifest.json").read_text("utf-8"))
    with np.load(folder / "golden.npz") as arrays:
        wrong = arrays["raw"] + 1.0
        np.savez(folder / "golden.npz", x=arrays["x"], raw=wrong)
    manifest["sha256"]["golden.npz"] = package._sha256((folder / "golden.npz").read_bytes())
    here = manifest["libraries"]["lightgbm"]
    manifest["libraries"]["lightgbm"] = "3.0.0"
    (folder / "manifest.json").write_text(json.dumps(manifest), "utf-8")
    with pytest.raises(PackageError, match=rf"it was made with lightgbm 3\.0\.0 \(here {here}\)"):
        load_package(folder)
