"""Registries and models that a command line names: what is not there is wrong use, said before any work begins."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, cast

from streams.errors import ConfigError

if TYPE_CHECKING:
    from models.predictor import PredictorKind
    from models.registry import Registry
    from streams.config import Settings

__all__ = ["check_champion", "check_new_name", "known_model", "open_registry"]


def open_registry(folder: Path, predictor: str = "auto") -> Registry:
    """The registry in the folder, its packages loaded with this predictor. ConfigError: there is no such folder."""
    from models.registry import Registry

    if not folder.is_dir():
        what = "not a folder" if folder.exists() else "not there"
        raise ConfigError(
            f"--models {folder}: {what}; name a registry, which `headrace train` and `headrace models add` make"
        )
    return Registry(folder, cast("PredictorKind", predictor))


def known_model(registry: Registry, reference: str) -> str:
    """ "name@version" of an alias, of a package, or of a name alone: the champion's version, else the newest.

    ConfigError, naming what there is: there is no such model.
    """
    from models.errors import ModelError
    from models.registry import ALIASES

    home = registry.root / reference
    if reference not in ALIASES and "@" not in reference and home.is_dir():
        champion = registry.aliases().get("champion", "")
        versions = [int(path.name) for path in home.iterdir() if path.name.isdigit()]
        if champion.startswith(f"{reference}@"):
            reference = champion
        elif versions:
            reference = f"{reference}@{max(versions)}"
    try:
        path = registry.resolve(reference)
    except ModelError as error:
        raise ConfigError(str(error)) from error
    return f"{path.parent.name}@{path.name}"


def check_new_name(name: str) -> None:
    """ConfigError: a package cannot have this name."""
    from models.errors import ModelError
    from models.registry import check_name

    try:
        check_name(name)
    except ModelError as error:
        raise ConfigError(f"--name: {error}") from error


def check_champion(settings: Settings) -> None:
    """ConfigError: the registry of the settings is not there, has no champion, or one of another feature set than the
    one asked for."""
    from features.fraud import SETS
    from models.package import read_manifest

    if not settings.models:
        return
    registry = open_registry(Path(settings.models))
    label = known_model(registry, "champion")
    made_for = read_manifest(registry.resolve(label)).schema_hash
    asked = SETS.get(settings.feature_set)
    if asked is None or made_for in ("", asked.schema_hash):
        return
    name = next((name for name, features in SETS.items() if features.schema_hash == made_for), None)
    its_set = f"set {name}" if name else "a set that this version does not have"
    remedy = f"leave --set out, or give --set {name}" if name else "train a model on this set"
    raise ConfigError(
        f"--set {settings.feature_set}: the champion {label} of {settings.models} was made for {its_set}; {remedy}, or "
        f"promote a model of set {settings.feature_set}"
    )
