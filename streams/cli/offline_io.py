"""Options and files of the commands that work on event files, without a broker."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from streams.errors import ConfigError, HeadraceError

if TYPE_CHECKING:
    from features.block import Block
    from features.declare import FeatureSet
    from streams.codec import Dead
    from streams.offline import OfflineFeatures, OfflineOrder
    from streams.pipelines.fraud_stages import StageSettings

__all__ = [
    "ALIAS_CHOICES",
    "SET_CHOICES",
    "Inputs",
    "add_alias",
    "add_inputs",
    "add_models",
    "add_order",
    "add_pipeline",
    "add_predictor",
    "add_set",
    "check_output",
    "read_inputs",
    "report_invalid",
    "written",
]

#: `models.registry.ALIASES`, whose import takes a second that ``--help`` should not
ALIAS_CHOICES = ("champion", "challenger", "shadow")
#: `models.predictor.PredictorKind`, likewise
PREDICTOR_CHOICES = ("auto", "lightgbm", "compiled", "gpu")
#: `features.fraud.SETS`, likewise
SET_CHOICES = ("default", "rich", "tiled")


def add_pipeline(parser: argparse.ArgumentParser, *others: str) -> None:
    """``--pipeline``: whose stages; the fraud pipeline is the one that has offline features, ``others`` more."""
    parser.add_argument("--pipeline", choices=["fraud", *others], default="fraud", help="whose stages (default: fraud)")


def add_inputs(parser: argparse.ArgumentParser, *, required: bool = True, labels_required: bool = False) -> None:
    """``--from``, ``--labels``, ``--config``."""
    parser.add_argument(
        "--from", dest="source", required=required, type=Path, metavar="EVENTS", help="events: .parquet or .jsonl"
    )
    parser.add_argument(
        "--labels", required=labels_required, type=Path, metavar="LABELS", help="their labels: .parquet or .jsonl"
    )
    parser.add_argument("--config", type=Path, metavar="FILE", help="settings of the worker, e.g. headrace.toml")


def add_order(parser: argparse.ArgumentParser) -> None:
    """``--order``, by event time unless said otherwise."""
    parser.add_argument(
        "--order",
        choices=["event_time", "arrival"],
        default="event_time",
        help="take rows by event_time and transaction_id, or as they are in the file (default: event_time)",
    )


def add_models(parser: argparse.ArgumentParser) -> None:
    """``--models DIR``, default $HEADRACE_MODELS."""
    default = os.environ.get("HEADRACE_MODELS")
    parser.add_argument(
        "--models",
        metavar="DIR",
        type=Path,
        default=default,
        required=not default,
        help="registry of model packages (default: $HEADRACE_MODELS)",
    )


def add_predictor(parser: argparse.ArgumentParser) -> None:
    """``--predictor``: what scores; None when not given: then `load_settings` decides."""
    parser.add_argument(
        "--predictor",
        choices=PREDICTOR_CHOICES,
        help="auto: the fastest of those that are bit-equal to LightGBM; gpu: nvForest, where it can serve the model "
        "(default: auto)",
    )


def add_alias(parser: argparse.ArgumentParser) -> None:
    """``--alias``: of the new package; without it the package is only stored."""
    parser.add_argument("--alias", choices=ALIAS_CHOICES, help="point this alias at it (workers serve the champion)")


@dataclass(frozen=True, slots=True)
class Inputs:
    """What the files hold: valid rows as Blocks, how many others there were, and what was found wrong by topic and
    field (`streams.quality`), as a worker counts it."""

    events: Block
    labels: Block | None
    settings: StageSettings
    invalid_events: int
    invalid_labels: int
    quality: Mapping[str, Mapping[str, Mapping[str, int]]]

    def features(self, order: OfflineOrder) -> OfflineFeatures:
        """Their features, with a progress bar."""
        from streams.cli.progress import progress
        from streams.offline import feature_matrix

        with progress("features", len(self.events)) as advance:
            return feature_matrix(self.events, self.labels, self.settings, order, advance)

    def counts(self, made: OfflineFeatures) -> dict[str, int]:
        """Figures: received = rows + invalid_events + duplicates."""
        return {
            "received": len(self.events) + self.invalid_events,
            "rows": len(made.row),
            "invalid_events": self.invalid_events,
            "duplicates": made.duplicates,
            "late": int(made.late.sum()),
            "labels": 0 if self.labels is None else len(self.labels),
            "invalid_labels": self.invalid_labels,
        }

    def quality_lines(self) -> list[str]:
        """What was found wrong, a line for each topic."""
        from streams.quality import in_words

        return [f"{topic}: {in_words(found)}" for topic, found in self.quality.items()]


def add_set(parser: argparse.ArgumentParser) -> None:
    """``--set``: which features."""
    parser.add_argument("--set", choices=SET_CHOICES, default="default", help="feature set (default: default)")


def read_inputs(args: argparse.Namespace, features: FeatureSet, *, keep_extra: bool = False) -> Inputs:
    """Reads ``--from`` and ``--labels``; says on stderr how many rows are invalid and why the first one is.

    HeadraceError when no event is valid, or no label of a file that has some.
    """
    from features.schema import TRANSACTION_LABELS, TRANSACTIONS
    from streams.config import load_settings
    from streams.offline import read_events, read_labels
    from streams.pipelines.fraud_stages import StageSettings
    from streams.quality import QualityCounters, by_topic

    settings = load_settings(args.config)
    bad_events: list[Dead] = []
    bad_labels: list[Dead] = []
    found = {TRANSACTIONS.topic: QualityCounters(), TRANSACTION_LABELS.topic: QualityCounters()}
    events = read_events(args.source, bad_events, keep_extra=keep_extra, quality=found[TRANSACTIONS.topic])
    report_invalid(args.source, len(events), bad_events)
    if len(events) == 0:
        raise HeadraceError(f"--from {args.source}: no valid transaction in it; give a file of transactions")
    labels = None
    if args.labels is not None:
        labels = read_labels(args.labels, bad_labels, quality=found[TRANSACTION_LABELS.topic])
        report_invalid(args.labels, len(labels), bad_labels)
        if bad_labels and len(labels) == 0:  # every risk would be 0; a file without any row says so on purpose
            raise HeadraceError(f"--labels {args.labels}: no valid label in it; mend the file, or leave --labels out")
    stages = StageSettings(features, settings.allowed_lateness_ms, settings.dedupe_ms, settings.dedupe_entries)
    return Inputs(events, labels, stages, len(bad_events), len(bad_labels), by_topic(found))


def report_invalid(path: Path | str, valid: int, bad: Sequence[Dead], where: str = "") -> None:
    """Says on stderr how many rows are invalid and why the first one is; ``where`` that is, where not its index."""
    if bad:
        first = f"{where or f'row {bad[0].index}'}: {bad[0].reason}"
        print(f"{path}: {len(bad):,} of {valid + len(bad):,} rows are invalid and left out; {first}", file=sys.stderr)


def check_output(path: Path, endings: Sequence[str], inputs: Sequence[Path | None]) -> None:
    """Before the work begins: ConfigError when the result could not be written to ``path``."""
    if path.suffix.lower() not in endings:
        raise ConfigError(f"--to {path}: ending {path.suffix or '(none)'} is not known; use {' or '.join(endings)}")
    if not path.parent.is_dir():
        raise ConfigError(f"--to {path}: the folder {path.parent} is not there; make it first")
    if path.is_dir():
        raise ConfigError(f"--to {path}: a folder; name a file")
    if any(path.resolve() == other.resolve() for other in inputs if other is not None):
        raise ConfigError(f"--to {path}: would overwrite an input; choose another name")


@contextmanager
def written(path: Path) -> Iterator[Path]:
    """A file beside ``path`` to write to, which takes its place when all went well: no half results."""
    scratch = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        yield scratch
        scratch.replace(path)
    except OSError as error:
        raise HeadraceError(f"--to {path}: cannot be written ({error.strerror}); choose another place") from error
    finally:
        scratch.unlink(missing_ok=True)
