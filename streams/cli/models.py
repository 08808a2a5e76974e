"""headrace models: the packages of a registry."""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from streams.cli.offline_io import ALIAS_CHOICES, add_alias, add_models, add_set
from streams.cli.options import add_json, print_json
from streams.cli.registry import check_new_name, known_model, open_registry
from streams.errors import EXIT_OK, ConfigError

EXAMPLE = "headrace models list --models models-dir"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The command's actions and their options."""
    actions = parser.add_subparsers(dest="action", metavar="ACTION", required=True)
    for name, (summary, example, act) in _ACTIONS.items():
        action = actions.add_parser(name, help=summary, description=summary[0].upper() + summary[1:] + ".")
        action.epilog = f"example: headrace models {name} {example}"
        action.set_defaults(act=act)
        if name == "add":
            action.add_argument(
                "--from", dest="source", required=True, type=Path, metavar="MODEL.txt", help="of Booster.save_model"
            )
            action.add_argument("--name", required=True, help="name of the package")
            add_alias(action)
            add_set(action)
        elif name in ("show", "promote"):
            action.add_argument(
                "reference", metavar="REF", help=f"NAME@VERSION or an alias{' or NAME' if name == 'show' else ''}"
            )
        add_models(action)
        add_json(action)


def run(args: argparse.Namespace) -> int:
    """Does the action; figures as JSON where asked for."""
    code: int = args.act(args)
    return code


def _list(args: argparse.Namespace) -> int:
    entries = open_registry(args.models).entries()
    if args.json:
        print_json(
            {
                "models": [
                    {
                        "model": entry.manifest.label,
                        "aliases": entry.aliases,
                        "created_at": entry.manifest.created_at,
                        "features": len(entry.manifest.features),
                        "metrics": entry.manifest.metrics,
                    }
                    for entry in entries
                ]
            }
        )
        return EXIT_OK
    if not entries:
        print(f"no models in {args.models}; add one with `headrace train` or `headrace models add`")
    for entry in entries:
        found = entry.manifest.metrics.get("average_precision")
        precision = "not tested here" if found is None else f"average precision {found:.4f}"
        aliases = ", ".join(entry.aliases) or "-"
        print(f"{entry.manifest.label:24} {aliases:20} {precision:26} {entry.manifest.created_at}")
    return EXIT_OK


def _show(args: argparse.Namespace) -> int:
    registry = open_registry(args.models)
    label = known_model(registry, args.reference)
    path = registry.resolve(label)
    model = registry.get(label, *_expected(path))
    manifest = model.manifest
    aliases = [alias for alias, label in registry.aliases().items() if label == manifest.label]
    shown: dict[str, Any] = {
        **manifest.to_json(),
        "model": manifest.label,
        "aliases": aliases,
        "path": str(path),
        "predictor": model.predictor.name,
        "predictor_reason": model.choice.reason,
        "predictor_us_per_row": {name: [round(v, 3) for v in us] for name, us in model.choice.us_per_row.items()},
    }
    if args.json:
        print_json(shown)
        return EXIT_OK
    for name, value in shown.items():
        print(f"{name + ':':22} {value if isinstance(value, str | int) else json.dumps(value)}")
    return EXIT_OK


def _add(args: argparse.Namespace) -> int:
    from features.fraud import SETS
    from models.package import package_from_text
    from models.registry import Registry

    check_new_name(args.name)
    if not args.source.is_file():
        raise ConfigError(f"--from {args.source}: no such file; give a file of Booster.save_model")
    created_at = datetime.now(UTC).isoformat(timespec="seconds")
    features = SETS[args.set]
    draft = package_from_text(
        args.source, args.name, created_at=created_at, features=features.names, schema_hash=features.schema_hash
    )
    manifest = Registry(args.models).add(draft, args.alias)
    return _say(args, manifest.label, args.alias, f"added {manifest.label}")


def _promote(args: argparse.Namespace) -> int:
    registry = open_registry(args.models)
    if args.reference not in ALIAS_CHOICES and "@" not in args.reference:
        raise ConfigError(
            f"{args.reference}: which version? Give {args.reference}@VERSION; `headrace models list` has them"
        )
    known_model(registry, args.reference)
    registry.get(args.reference, *_expected(registry.resolve(args.reference)))
    label = registry.set_alias("champion", args.reference)
    before = registry.previous
    return _say(args, label, "champion", f"{label} is champion" + (f" (before: {before})" if before else ""))


def _rollback(args: argparse.Namespace) -> int:
    registry = open_registry(args.models)
    expected = _expected(registry.resolve(registry.previous)) if registry.previous else (None, None)
    label = registry.rollback(*expected)
    return _say(args, label, "champion", f"{label} is champion again")


def _expected(path: Path) -> tuple[Sequence[str], str]:
    """Names and schema hash of the feature set that the package was made for."""
    from features.fraud import set_of
    from models.package import read_manifest

    features = set_of(read_manifest(path).schema_hash)
    return features.names, features.schema_hash


def _say(args: argparse.Namespace, label: str, alias: str | None, text: str) -> int:
    if args.json:
        print_json({"model": label, "alias": alias})
    else:
        print(text + (f", {alias}" if alias and alias not in text else ""))
    return EXIT_OK


_ACTIONS = {
    "list": ("list the packages and their aliases", "--models models-dir", _list),
    "show": ("show a package, and which predictor serves it and why", "champion --models models-dir", _show),
    "add": (
        "package a LightGBM text model whose features are the feature set's",
        "--from model.txt --name fraud --models models-dir --alias champion",
        _add,
    ),
    "promote": ("verify a package and make it champion", "fraud@2 --models models-dir", _promote),
    "rollback": ("make the champion before the present one champion again", "--models models-dir", _rollback),
}
