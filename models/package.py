"""A model package: a directory with LightGBM's text, a manifest, and a golden batch that must be matched at load."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from importlib.metadata import version as library_version
from io import BytesIO
from pathlib import Path
from typing import Any
from zipfile import BadZipFile

import numpy as np

from features.block import FloatArray, IntArray
from features.featureset import FeatureSet
from models import golden
from models.auto import Choice, choose
from models.calibrate import Calibration, default_calibration
from models.conformal import Conformal
from models.errors import ModelError, PackageError, UnsupportedModelError
from models.forest import flatten
from models.forestfile import write_forest
from models.lightgbm import LightGBMPredictor
from models.modeltext import parse
from models.predictor import ColumnSelect, Predictor, PredictorKind

__all__ = [
    "FORMAT_VERSION",
    "Draft",
    "LoadedModel",
    "Manifest",
    "category_codes",
    "load_package",
    "package_from_text",
    "read_manifest",
    "write_files",
]

FORMAT_VERSION = 1
_LIBRARIES = ("lightgbm", "numba", "numpy", "scikit-learn", "scipy")
#: fields of a manifest that came after the first packages
_LATER = ("evaluation", "conformal", "reference", "categories")


@dataclass(frozen=True, slots=True)
class Draft:
    """What a package is made of, before it has a version.

    ``features`` are the model's own feature names in its order; ``schema_hash`` names the feature set they were
    computed by. ``training`` and ``metrics`` are plain JSON data; ``created_at`` is ISO 8601, UTC.
    """

    name: str
    model_text: str
    features: tuple[str, ...]
    schema_hash: str
    created_at: str
    calibration: Calibration | None = None
    training: Mapping[str, Any] = field(default_factory=dict)
    metrics: Mapping[str, Any] = field(default_factory=dict)
    evaluation: Mapping[str, Any] = field(default_factory=dict)
    conformal: Mapping[str, Any] = field(default_factory=dict)
    reference: Mapping[str, Any] = field(default_factory=dict)
    categories: Mapping[str, Mapping[str, int]] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Manifest:
    """manifest.json. ``sha256`` maps each other file of the package to its digest.

    ``evaluation``, ``conformal``, ``reference``: see `models.train.Trained`; ``categories``: the codes of each feature
    that is a category, by value. All four are empty where a package does not say, as those made before them.
    """

    name: str
    version: int
    sha256: Mapping[str, str]
    schema_hash: str
    features: tuple[str, ...]
    objective: str
    calibration: Calibration
    training: Mapping[str, Any]
    metrics: Mapping[str, Any]
    libraries: Mapping[str, str]
    created_at: str
    evaluation: Mapping[str, Any] = field(default_factory=dict)
    conformal: Mapping[str, Any] = field(default_factory=dict)
    reference: Mapping[str, Any] = field(default_factory=dict)
    categories: Mapping[str, Mapping[str, int]] = field(default_factory=dict)
    format_version: int = FORMAT_VERSION

    @property
    def label(self) -> str:
        """ "name@version", as in scores and events."""
        return f"{self.name}@{self.version}"

    def to_json(self) -> dict[str, Any]:
        """Plain data."""
        out = {name: getattr(self, name) for name in self.__dataclass_fields__}
        return out | {"calibration": self.calibration.to_json(), "features": list(self.features)}


@dataclass(frozen=True, slots=True)
class LoadedModel:
    """A verified package, ready to score matrices of the expected feature set."""

    manifest: Manifest
    predictor: Predictor
    calibration: Calibration
    choice: Choice
    #: column of the matrix that holds each feature of the model
    column_index: IntArray
    #: LightGBM's text of the model
    model_text: str = field(repr=False)
    #: which labels a raw score leaves possible, None where the package does not say
    conformal: Conformal | None = None

    def score(self, x: FloatArray) -> tuple[FloatArray, FloatArray]:
        """(raw scores (n,), probabilities (n,)) of ``x`` (n, expected features)."""
        raw = self.predictor.predict_raw(x)
        return raw, self.calibration.apply(raw)


def package_from_text(
    path: str | os.PathLike[str],
    name: str,
    *,
    created_at: str,
    features: Sequence[str] | None = None,
    schema_hash: str = "",
) -> Draft:
    """A draft of any LightGBM model text with named features.

    With ``features``, the names of the feature set that will be scored, the model's features must be among
    them, in any order; PackageError names those that are not.
    """
    try:
        text = Path(path).read_text("utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise PackageError(f"model file {path}: cannot be read ({error}); give a file of Booster.save_model") from error
    model = parse(text)
    if features is not None:
        column_index(model.feature_names, features)
    return Draft(name, text, model.feature_names, schema_hash, created_at)


def column_index(model_features: Sequence[str], matrix_features: Sequence[str]) -> IntArray:
    """For each feature of the model its column in the matrix; PackageError when the matrix lacks one."""
    place = {name: j for j, name in enumerate(matrix_features)}
    missing = [name for name in model_features if name not in place]
    if missing:
        unused = [name for name in matrix_features if name not in set(model_features)]
        raise PackageError(
            f"features: the model needs {_some(missing)}, which the feature set does not have "
            f"(it has, unused by the model: {', '.join(unused) or 'none'}); "
            "train the model on this feature set's names, or run the feature set it was trained on"
        )
    return np.array([place[name] for name in model_features], dtype=np.int64)


def _some(names: Sequence[str], most: int = 20) -> str:
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(names[:most]) + more


def category_codes(features: FeatureSet) -> dict[str, dict[str, int]]:
    """The codes of each feature of the set that is a category, by value."""
    return {f.name: dict(f.codes) for f in features.row_features if f.operation == "category"}


def write_files(directory: Path, draft: Draft, version: int) -> Manifest:
    """Write the package into the empty ``directory``, synced to disk, the manifest last.

    The model is flattened here, once; a model that the kernels do not take has no forest.npz. The caller makes the
    package visible by renaming the directory (`Registry.add`).
    """
    model = parse(draft.model_text)
    if draft.features != model.feature_names:
        raise PackageError(
            f"features: the draft says {list(draft.features)}, the model text {list(model.feature_names)}; "
            "they must be the same, in the model's order"
        )
    oracle = LightGBMPredictor(draft.model_text)
    x = golden.inputs(model)
    batch = BytesIO()
    np.savez(batch, x=x, raw=oracle.predict_raw(x))
    contents = {"model.txt": draft.model_text.encode("utf-8"), "golden.npz": batch.getvalue()}
    with suppress(UnsupportedModelError):
        contents["forest.npz"] = write_forest(flatten(model))
    for name, content in contents.items():
        _write(directory / name, content)
    manifest = Manifest(
        name=draft.name,
        version=version,
        sha256={name: _sha256(content) for name, content in contents.items()},
        schema_hash=draft.schema_hash,
        features=model.feature_names,
        objective=model.objective,
        calibration=draft.calibration or default_calibration(model.objective),
        training=draft.training,
        metrics=draft.metrics,
        libraries={name: library_version(name) for name in _LIBRARIES},
        created_at=draft.created_at,
        evaluation=draft.evaluation,
        conformal=draft.conformal,
        reference=draft.reference,
        categories=draft.categories,
    )
    _write(directory / "manifest.json", json.dumps(manifest.to_json(), indent=1).encode("utf-8"))
    return manifest


def read_manifest(directory: Path) -> Manifest:
    """The manifest of a package; PackageError when it is missing, damaged or of another format."""
    path = directory / "manifest.json"
    try:
        data = json.loads(path.read_bytes())
        found = data["format_version"]
        if found != FORMAT_VERSION:
            raise PackageError(
                f"{path} format_version: the package has {found}, this headrace reads {FORMAT_VERSION}; "
                "package the model again (`headrace models add`) or use the headrace that wrote it"
            )
        known = {name: data[name] for name in Manifest.__dataclass_fields__ if name not in _LATER}
        for name in _LATER:
            known[name] = data.get(name, {})
            if not isinstance(known[name], dict):
                raise TypeError(f"{name} is no object")
        return Manifest(
            **known | {"features": tuple(data["features"]), "calibration": Calibration.from_json(data["calibration"])}
        )
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise PackageError(f"{path}: cannot be read ({error!r}); package the model again") from error


def load_package(
    directory: str | os.PathLike[str],
    features: Sequence[str] | None = None,
    schema_hash: str | None = None,
    categories: Mapping[str, Mapping[str, int]] | None = None,
    predictor: PredictorKind = "auto",
) -> LoadedModel:
    """Load a package and prove it right.

    1. Manifest: its format version, its ``categories`` and its ``schema_hash`` against the expected ones (either side
       may be unknown).
    2. The sha256 of every file.
    3. The model's features among ``features``, the columns of the matrices to be scored (default: the model's own).
    4. The golden batch, scored by the chosen predictor, bit for bit (that of a graphics card, which ``predictor`` must
       ask for: within its tolerance); the compiled one takes the flattened forest of the package, where it has one
       that these kernels read.

    Raises PackageError at the first that fails, naming both sides and the remedy.
    """
    directory = Path(directory)
    manifest = read_manifest(directory)
    if categories and manifest.categories:
        _check_categories(directory, manifest.categories, categories)
    if schema_hash and manifest.schema_hash and schema_hash != manifest.schema_hash:
        raise PackageError(
            f"{directory} schema_hash: the package was made for {manifest.schema_hash}, the running feature set is "
            f"{schema_hash}; train again with this feature set, or run the one the model was trained on"
        )
    contents = {name: _verified(directory / name, digest) for name, digest in manifest.sha256.items()}
    index = column_index(manifest.features, manifest.features if features is None else features)
    try:
        text = contents["model.txt"].decode("utf-8")
        with np.load(BytesIO(contents["golden.npz"]), allow_pickle=False) as arrays:
            x, raw = np.ascontiguousarray(arrays["x"], np.float64), np.asarray(arrays["raw"], np.float64)
        choice = choose(text, (x, raw), contents.get("forest.npz"), predictor)
        conformal = Conformal.from_json(manifest.conformal) if manifest.conformal else None
    except PackageError as error:
        raise PackageError(f"{directory}: {error}") from error
    except (KeyError, ValueError, OSError, BadZipFile, ModelError) as error:
        raise PackageError(
            f"{directory}: the model cannot be used ({error}); package it again{_other_libraries(manifest)}"
        ) from error
    chosen: Predictor = choice.predictor
    if features is not None and tuple(features) != manifest.features:
        chosen = ColumnSelect(chosen, index, len(features))
    return LoadedModel(manifest, chosen, manifest.calibration, choice, index, text, conformal)


def _check_categories(
    directory: Path, mine: Mapping[str, Mapping[str, int]], running: Mapping[str, Mapping[str, int]]
) -> None:
    """PackageError, naming the first value that differs: codes are not those that the model was trained on."""
    for feature, codes in mine.items():
        for value in sorted({*codes, *running.get(feature, {})}):
            here, there = codes.get(value), running.get(feature, {}).get(value)
            if here != there:
                raise PackageError(
                    f"{directory} categories of {feature}: {value!r} has the code {here} in the package, {there} in "
                    "the running feature set; run the codes that the model was trained on, or train again"
                )


def _other_libraries(manifest: Manifest) -> str:
    """In words, which libraries are not those that the package was made with."""
    running = {name: library_version(name) for name in _LIBRARIES}
    others = [f"{n} {v} (here {running[n]})" for n, v in manifest.libraries.items() if running.get(n, v) != v]
    return f"; it was made with {', '.join(others)}" if others else ""


def _verified(path: Path, expected: str) -> bytes:
    try:
        content = path.read_bytes()
    except OSError as error:
        raise PackageError(f"{path}: cannot be read ({error}); restore it or package the model again") from error
    found = _sha256(content)
    if found != expected:
        raise PackageError(
            f"{path} sha256: the file has {found}, the manifest {expected}; restore the file or package the model again"
        )
    return content


def _sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def _write(path: Path, content: bytes) -> None:
    with path.open("wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())
