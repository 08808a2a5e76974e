"""headrace models: the packages of a registry."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from streams.cli.model_changes import add_announce, announce
from streams.cli.model_evidence import add_evidence, evidence
from streams.cli.offline_io import ALIAS_CHOICES, add_alias, add_models, add_predictor, add_set
from streams.cli.options import add_json, print_json
from streams.cli.registry import check_new_name, known_model, open_registry
from streams.errors import EXIT_OK, ConfigError

if TYPE_CHECKING:
    from models.registry import Registry

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
            if name == "show":
                add_predictor(action)
        elif name == "diff":
            for which in ("first", "second"):
                action.add_argument(which, metavar="REF", help="NAME@VERSION, an alias or NAME")
        elif name in ("shadow", "canary"):
            action.add_argument("reference", metavar="REF", nargs="?", help="NAME@VERSION or an alias")
            action.add_argument("--off", action="store_true", help=f"end the {name}")
        if name == "canary":
            action.add_argument("--share", type=float, metavar="X", help="share of the cards, above 0 and at most 0.5")
        if name in ("add", "promote", "rollback", "shadow", "canary"):
            add_announce(action)
        if name == "evidence":
            add_evidence(action)
        else:
            add_models(action)
        add_json(action)


def run(args: argparse.Namespace) -> int:
    """Does the action; figures as JSON where asked for."""
    code: int = args.act(args)
    return code


def _list(args: argparse.Namespace) -> int:
    registry = open_registry(args.models)
    entries, canary = registry.entries(), registry.canary
    if args.json:
        print_json(
            {
                "models": [
                    {
                        "model": entry.manifest.label,
                        "aliases": entry.aliases,
                        **({"canary_share": canary[1]} if canary and "canary" in entry.aliases else {}),
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
        named = [f"canary {canary[1]:g}" if canary and alias == "canary" else alias for alias in entry.aliases]
        aliases = ", ".join(named) or "-"
        print(f"{entry.manifest.label:24} {aliases:20} {precision:26} {entry.manifest.created_at}")
    return EXIT_OK


#: of a manifest, what is too long to be read in a line
_LONG = ("evaluation", "reference")


def _show(args: argparse.Namespace) -> int:
    from streams.config import load_settings

    registry = open_registry(args.models, load_settings(overrides={"predictor": args.predictor}).predictor)
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
        text = value if isinstance(value, str | int) else json.dumps(value)
        print(f"{name + ':':22} {'shown by --json' if name in _LONG and value else text}")
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
    registry = Registry(args.models)
    manifest = registry.add(draft, args.alias)
    announce(args, registry, "added", manifest.label, {"alias": args.alias})
    if manifest.calibration.kind == "identity":
        objective = manifest.objective or "of its own"
        print(f"{manifest.label}: objective {objective}: its scores are raw scores, no probabilities", file=sys.stderr)
    return _say(args, manifest.label, args.alias, f"added {manifest.label}")


def _promote(args: argparse.Namespace) -> int:
    registry = open_registry(args.models)
    if args.reference not in (*ALIAS_CHOICES, "canary") and "@" not in args.reference:
        raise ConfigError(
            f"{args.reference}: which version? Give {args.reference}@VERSION; `headrace models list` has them"
        )
    known_model(registry, args.reference)
    registry.get(args.reference, *_expected(registry.resolve(args.reference)))
    label = registry.set_alias("champion", args.reference)
    before = registry.previous
    announce(args, registry, "promoted", label, {"before": before})
    return _say(args, label, "champion", f"{label} is champion" + (f" (before: {before})" if before else ""))


def _rollback(args: argparse.Namespace) -> int:
    registry = open_registry(args.models)
    expected = _expected(registry.resolve(registry.previous)) if registry.previous else (None, None)
    before = registry.aliases().get("champion")
    label = registry.rollback(*expected)
    announce(args, registry, "rolled-back", label, {"before": before})
    return _say(args, label, "champion", f"{label} is champion again")


def _diff(args: argparse.Namespace) -> int:
    from models.compare import compare

    registry = open_registry(args.models)
    found = compare(*(registry.resolve(known_model(registry, reference)) for reference in (args.first, args.second)))
    metrics = found.pop("metrics")
    if args.json:
        as_json = {name: {**asdict(m), "beyond_noise": m.beyond_noise} for name, m in metrics.items()}
        print_json({**found, "metrics": as_json})
        return EXIT_OK
    first, second = found["models"]
    print(f"{'':28} {first:>20} {second:>20}")
    for name, metric in metrics.items():
        noise = "" if metric.noise is None else f"  noise {metric.noise:.4f}: "
        verdict = {True: "differs", False: "no difference to be seen", None: ""}[metric.beyond_noise]
        values = " ".join(f"{'-' if v is None else format(v, '.4f'):>20}" for v in (metric.first, metric.second))
        print(f"{name:28} {values}{noise}{verdict}")
    for part in ("size", "training", "settings"):
        for name, (mine, other) in found[part].items():
            print(f"{name:28} {_short(mine):>20} {_short(other):>20}")
    for which, label in (("first_only", first), ("second_only", second)):
        if found["features"][which]:
            print(f"only {label} has the features {', '.join(found['features'][which])}")
    if not found["features"]["same_order"]:
        print("the features have another order")
    return EXIT_OK


def _short(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value)


def _shadow(args: argparse.Namespace) -> int:
    return _beside(args, "shadow", lambda registry, label: registry.set_alias("shadow", label), {})


def _canary(args: argparse.Namespace) -> int:
    if not args.off and args.share is None:
        raise ConfigError("canary: of how many cards? Give --share, such as --share 0.05")
    return _beside(
        args, "canary", lambda registry, label: registry.set_canary(label, args.share), {"share": args.share}
    )


def _beside(
    args: argparse.Namespace, alias: str, point: Callable[[Registry, str], str], more: Mapping[str, Any]
) -> int:
    """Sets or ends what scores beside the champion."""
    registry = open_registry(args.models)
    if args.off == (args.reference is not None):
        raise ConfigError(f"{alias}: give a package, or --off to end it")
    if args.off:
        before = registry.clear(alias, "asked for")
        if before is None:
            return _say(args, "", alias, f"there is no {alias}")
        announce(args, registry, f"{alias}-ended", before, {})
        return _say(args, before, None, f"{before} is {alias} no more")
    label = known_model(registry, args.reference)
    registry.get(label, *_expected(registry.resolve(label)))
    point(registry, label)
    announce(args, registry, alias, label, more)
    share = f" of {args.share:g} of the cards" if alias == "canary" else ""
    return _say(args, label, alias, f"{label} is {alias}{share}")


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
    "diff": ("compare two packages", "champion fraud@2 --models models-dir", _diff),
    "evidence": (
        "compare the model in the shadow with the champion on transactions whose labels are final",
        "--bootstrap 127.0.0.1:9092 --from 2026-05-01",
        evidence,
    ),
    "promote": ("verify a package and make it champion", "fraud@2 --models models-dir", _promote),
    "rollback": ("make the champion before the present one champion again", "--models models-dir", _rollback),
    "shadow": (
        "verify a package and let it score beside the champion, to shadow-scores",
        "fraud@2 --models models-dir",
        _shadow,
    ),
    "canary": (
        "verify a package and let it score a share of the cards in the champion's place",
        "fraud@2 --share 0.05 --models models-dir",
        _canary,
    ),
}
