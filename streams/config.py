"""Settings of a worker: declared once, from headrace.toml and the environment, checked before anything connects."""

from __future__ import annotations

import math
import os
import re
import tomllib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any, get_args

from features.fraud import SETS
from models.errors import ModelError
from models.explain_policy import ReasonsPolicy
from models.predictor import PredictorKind
from streams.control_settings import ControlSettings
from streams.errors import ConfigError
from streams.kafka_jars import home_dir
from streams.segments import segments_of
from streams.shedding import SheddingPolicy
from streams.web_address import Address, peers, webhook_url

__all__ = ["Settings", "load_settings"]

#: exactly once, nothing is seen before the commit
_TRANSACTION_INTERVAL_MS = 100
#: tables of headrace.toml whose settings have the table's name before their own
_SECTIONS = ("web", "alerts")


def _setting(
    default: Any,
    help_text: str,
    minimum: float | None = None,
    choices: tuple[str, ...] = (),
    check: Callable[[str], object] | None = None,
    *,
    secret: bool = False,
) -> Any:
    """``check`` raises a ModelError or ConfigError that says what is wrong with the value; what is ``secret`` is not
    shown."""
    meta = {"help": help_text, "minimum": minimum, "choices": choices, "check": check}
    return field(default=default, metadata=meta, repr=not secret)


@dataclass(frozen=True, slots=True)
class Settings:
    """What a worker can be told; each also by the environment as HEADRACE_<NAME>."""

    bootstrap: str = _setting("127.0.0.1:9092", "Kafka brokers, HOST:PORT[,HOST:PORT], or memory://NAME")
    group: str = _setting("headrace-fraud", "consumer group")
    models: str = _setting("", "registry directory of model packages; empty: features are logged, scores are null")
    recommend_models: str = _setting("", "recommend: registry directory of its own; empty: models")
    predictor: str = _setting(
        "auto",
        "fraud: what scores; auto: the fastest of those that are bit-equal to LightGBM; gpu: nvForest, which agrees to "
        "1e-12, so that a replay may differ in the last bits",
        choices=get_args(PredictorKind),
    )
    feature_set: str = _setting(
        "auto",
        "features that are computed; auto: the champion's, without a model the default ones",
        choices=("auto", *SETS),
    )
    order: str = _setting("arrival", "order of the terminal stage", choices=("arrival", "event_time"))
    partitions: int = _setting(4, "partitions of topics that a worker creates", 1)
    delivery: str = _setting(
        "at_least_once",
        "exactly_once: outputs and offsets in transactions; at_least_once: the same record may be there twice",
        choices=("at_least_once", "exactly_once"),
    )
    transactional_id: str = _setting("", "exactly_once: this worker's own; empty: one that is kept in HEADRACE_HOME")
    commit_interval_ms: int = _setting(1000, "time between commits (exactly_once: 100 where it is not set)", 10)
    gather_ms: int = _setting(6, "least time between two batches, to gather records under a trickle", 0)
    batch_records: int = _setting(4096, "records that a stage takes at once", 1)
    max_poll_interval_ms: int = _setting(300_000, "a worker whose stage makes no progress for so long ends", 1000)
    allowed_lateness_ms: int = _setting(3_600_000, "events older than the newest by more do not enter windows", 0)
    watermark_delay_ms: int = _setting(
        0, "order event_time: how far out of order a partition's events may be; they wait so long for each other", 0
    )
    idle_after_ms: int = _setting(
        1000,
        "order event_time: how long a partition that is read to its end is waited for before the others go on without "
        "it; more than any producer may be held up, where live must equal offline whatever happens",
        0,
    )
    first_wait_ms: int = _setting(60_000, "order event_time: how long a partition without any record is waited for", 0)
    dedupe_ms: int = _setting(86_400_000, "a transaction_id repeated within this event time is a duplicate", 0)
    dedupe_entries: int = _setting(20_000_000, "transaction ids remembered per partition at most", 1)
    state_mb_max: int = _setting(
        0, "MB that a stage's windows, users or items may take in each partition; 0: no bound", 0
    )
    checkpoints: str = _setting(
        "",
        "where states are kept, a directory or an fsspec URL such as s3://bucket/prefix; none: they are replayed from "
        "the log; empty: in HEADRACE_HOME, for memory:// none",
    )
    checkpoint_interval_ms: int = _setting(60_000, "time between two checkpoints of a partition", 100)
    checkpoints_kept: int = _setting(3, "checkpoints of a partition that are kept", 1)
    missing_history: str = _setting(
        "fail", "where records that a state needs are gone: end, or go on without them", choices=("fail", "degrade")
    )
    lag_said_ms: int = _setting(10_000, "a stage that is behind by so much says so in the log, once", 100)
    shed: str = _setting(
        "none",
        "what is not scored when the worker has fallen behind: none; older:SECONDS, what would be scored so long after "
        "it was sent; older:SECONDS,below:AMOUNT, of that only smaller amounts. Features stay exact",
        check=SheddingPolicy.parse,
    )
    log_features: bool = _setting(True, "write the feature vector into each score record")
    log_sets: bool = _setting(
        True, "write into each score record which labels it leaves possible, where the model says"
    )
    monitor: bool = _setting(False, "fraud: send what is scored, and labels, to the monitor pipeline as well")
    label_horizon_ms: int = _setting(
        2_592_000_000, "monitor: how long after an event its label may be known, and is waited for", 1
    )
    label_negatives: str = _setting(
        "labels",
        "monitor: horizon, where labels name frauds only: what has none by then is legitimate",
        choices=("labels", "horizon"),
    )
    label_conflicts: str = _setting(
        "first",
        "monitor: which of several labels of a transaction counts; the last is known at the horizon",
        choices=("first", "last"),
    )
    label_mature_ms: int = _setting(
        604_800_000,
        "monitor: how long after an event its label is taken for final, where performance is watched; not before the "
        "horizon where label_negatives or label_conflicts wait for it",
        1,
    )
    alert_threshold: float = _setting(0.5, "monitor: scores at or above it are acted on, by whom they are sent to", 0)
    monitor_segments: str = _setting(
        "",
        "monitor: features by whose values scores are watched apart as well, such as is_weekend,is_night; of each the "
        "15 most frequent values",
        check=segments_of,
    )
    false_alarms: float = _setting(1.0, "monitor: alerts in 30 days that may be raised where nothing has changed", 0)
    list_click_ms: int = _setting(
        1_800_000, "monitor: how long after a list what its user does next counts for it, or against it", 1
    )
    join_rows_max: int = _setting(
        1_000_000, "monitor: transactions remembered in each partition, and as many labels without, at most", 1
    )
    reasons: str = _setting(
        "above:0.5",
        "scores that are explained: all, none, above:THRESHOLD, or sample:RATE (by the event's place in the log)",
        check=ReasonsPolicy.parse,
    )
    reasons_max: int = _setting(5, "reasons given for a score at most, the largest; 0: one for each feature", 0)
    log_level: str = _setting("INFO", "DEBUG, INFO, WARNING or ERROR", choices=("DEBUG", "INFO", "WARNING", "ERROR"))
    models_poll_ms: int = _setting(1000, "time between two looks at the registry", 10)
    canary_error_rate_max: float = _setting(0.01, "a canary of whose rows a larger share fails ends", 0)
    canary_latency_ratio_max: float = _setting(
        3.0, "a canary that takes so many times as long as the champion for the same rows ends", 1
    )
    list_length: int = _setting(20, "recommend: items in a list", 1)
    list_candidates: int = _setting(100, "recommend: items that are ranked for a list", 1)
    list_category_max: int = _setting(0, "recommend: items of one category in a list at most; 0: no bound", 0)
    exclude_bought: bool = _setting(True, "recommend: leave out what the user has bought, as far as that is remembered")
    source_weights: bool = _setting(
        True, "recommend: order lists with the weights of sources that the monitor has found to help"
    )
    explore: float = _setting(
        0.0, "recommend: share of lists in which one item is drawn from all, chosen by the event's place in the log", 0
    )
    explore_seed: int = _setting(1, "recommend: of what is explored", 0)
    publish_ms: int = _setting(60_000, "recommend: event time between two publications of changed items", 1)
    view_wait_ms: int = _setting(
        10_000, "recommend: how long a worker that starts waits for the items to be read, then it serves anyway", 0
    )
    web_address: str = _setting(
        "", "HOST:PORT of the web page and the metrics; :PORT or PORT is on 127.0.0.1; empty: none", check=Address.parse
    )
    web_remote: bool = _setting(False, "web_address may be one that other machines reach; all who do can read")
    web_peers: str = _setting("", "pages to link to, as PIPELINE=PORT,..; --pipeline all sets it", check=peers)
    web_token: str = _setting(
        "", "what a changing request must bring, as ${env:NAME} or ${file:PATH}; empty: none is taken", secret=True
    )
    alerts_webhook: str = _setting(
        "",
        "monitor: http or https address that gets each alert as JSON, or ${env:NAME} or ${file:PATH} where it is "
        "secret; empty: none",
        check=webhook_url,
        secret=True,
    )
    alerts_webhook_token: str = _setting(
        "", "the webhook's bearer token, as ${env:NAME} or ${file:PATH}; empty: none", secret=True
    )
    alerts_webhook_timeout_ms: int = _setting(10_000, "a delivery to the webhook that takes longer has failed", 1)
    control: Mapping[str, Any] = field(
        default_factory=dict,
        metadata={
            "help": "what is done about alerts, see streams.control_settings",
            "check": ControlSettings.of,
        },
    )
    kafka: Mapping[str, Any] = field(default_factory=dict, metadata={"help": "librdkafka settings, passed through"})

    def log_url(self) -> str:
        """The URL of the log for `streams.log.connect`."""
        return self.bootstrap if "://" in self.bootstrap else f"headrace://{self.bootstrap}"

    def checkpoint_url(self) -> str | None:
        """Where checkpoints are; None without."""
        if self.checkpoints:
            return None if self.checkpoints == "none" else self.checkpoints
        return None if self.log_url().startswith("memory://") else str(home_dir() / "checkpoints")

    def reasons_policy(self) -> ReasonsPolicy:
        """Which scores are explained, and by how many reasons."""
        return ReasonsPolicy.parse(self.reasons, self.reasons_max)

    def shedding(self) -> SheddingPolicy | None:
        """What is not scored under overload; None: everything is."""
        return SheddingPolicy.parse(self.shed)

    def secret(self, name: str) -> str:
        """The setting of this name, fetched from where it is kept; empty: there is none. ConfigError: not to be had."""
        return str(_secret(f"setting {name}", getattr(self, name)))

    def control_settings(self) -> ControlSettings:
        """What is done about which alert."""
        return ControlSettings.of(self.control)

    def kafka_config(self) -> dict[str, Any]:
        """The librdkafka settings, flat, with the poll interval that the watchdog follows."""
        flat: dict[str, Any] = {"consumer.max.poll.interval.ms": self.max_poll_interval_ms}
        flat.update(_flatten(self.kafka))
        for key in ("transactional.id", "producer.transactional.id"):
            if key in flat:
                raise ConfigError(
                    f"kafka.{key}: {flat[key]!r} would make every producer transactional; set delivery = "
                    '"exactly_once", and transactional_id beside it where the worker is to have a name of yours'
                )
        return flat


def _flatten(table: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """TOML reads ``security.protocol = ...`` as nested tables: back to dotted keys."""
    flat: dict[str, Any] = {}
    for key, value in table.items():
        if isinstance(value, Mapping):
            flat.update(_flatten(value, f"{prefix}{key}."))
        else:
            flat[prefix + key] = _secret(f"kafka.{prefix}{key}", value)
    return flat


_SECRET = re.compile(r"^\$\{(env|file):(.+)\}$")


def _secret(what: str, value: Any) -> Any:
    """``${env:NAME}`` and ``${file:PATH}`` keep secrets out of the configuration file."""
    match = _SECRET.match(value) if isinstance(value, str) else None
    if match is None:
        return value
    kind, name = match.groups()
    if kind == "env":
        if name not in os.environ:
            raise ConfigError(f"{what}: environment variable {name} is not set; set it, or use ${{file:PATH}}")
        return os.environ[name]
    try:
        return Path(name).read_text(encoding="utf-8").strip()
    except OSError as exc:
        raise ConfigError(f"{what}: cannot read {name}: {exc.strerror}; check the path and its rights") from exc


def load_settings(
    path: Path | None = None,
    environment: Mapping[str, str] | None = None,
    overrides: Mapping[str, Any] | None = None,
    defaults: Mapping[str, Any] | None = None,
) -> Settings:
    """``defaults`` over the settings' own, then the file, then the environment, then ``overrides`` (None values are
    ignored)."""
    values: dict[str, Any] = dict(defaults or {})
    if path is not None:
        values.update(_read_file(path))
    env = os.environ if environment is None else environment
    for spec in fields(Settings):
        text = env.get(f"HEADRACE_{spec.name.upper()}")
        if text and not spec.type.startswith("Mapping"):
            values[spec.name] = text
    values.update({k: v for k, v in (overrides or {}).items() if v is not None})
    known = {spec.name: spec for spec in fields(Settings)}
    if values.get("delivery") == "exactly_once":
        values.setdefault("commit_interval_ms", _TRANSACTION_INTERVAL_MS)
    unknown = sorted(set(values) - set(known))
    if unknown:
        raise ConfigError(f"setting {unknown[0]}: not known; known are {', '.join(known)}")
    return Settings(**{name: _checked(known[name], value) for name, value in values.items()})


def _read_file(path: Path) -> dict[str, Any]:
    try:
        return _without_sections(tomllib.loads(path.read_text(encoding="utf-8")))
    except OSError as exc:
        raise ConfigError(f"--config {path}: {exc.strerror}; check the path") from exc
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as exc:
        raise ConfigError(f"--config {path}: not TOML: {exc}") from exc


def _without_sections(values: Mapping[str, Any]) -> dict[str, Any]:
    """``[web] address = ..`` is the setting ``web_address``."""
    flat: dict[str, Any] = {}
    for name, value in values.items():
        if name in _SECTIONS and isinstance(value, Mapping):
            flat.update({f"{name}_{key}": of for key, of in value.items()})
        else:
            flat[name] = value
    return flat


def _checked(spec: Any, given: Any) -> Any:
    value = given
    name, kind = spec.name, spec.type
    if kind == "int":
        if not isinstance(value, int) or isinstance(value, bool):  # text from the environment
            try:
                value = int(value) if isinstance(value, str) else None
            except ValueError:
                value = None
        if value is None:
            raise ConfigError(f"setting {name}: {given!r} is not a whole number; {spec.metadata['help']}")
    elif kind == "float":
        try:
            value = float(value) if isinstance(value, str | int | float) and not isinstance(value, bool) else math.nan
        except ValueError:
            value = math.nan
        if not math.isfinite(value):
            raise ConfigError(f"setting {name}: {given!r} is not a number; {spec.metadata['help']}")
    elif kind == "bool" and not isinstance(value, bool):
        if str(value).lower() not in ("true", "false", "1", "0"):
            raise ConfigError(f"setting {name}: {value!r} is neither true nor false; {spec.metadata['help']}")
        value = str(value).lower() in ("true", "1")
    elif kind == "str" and not isinstance(value, str):
        raise ConfigError(f"setting {name}: {value!r} is not text; {spec.metadata['help']}")
    elif kind.startswith("Mapping") and not isinstance(value, Mapping):
        raise ConfigError(f"setting {name}: {value!r} is not a table; write [{name}] and a line for each setting")
    if (check := spec.metadata.get("check")) is not None:
        try:
            check(value)
        except (ModelError, ConfigError) as exc:
            raise ConfigError(f"setting {name}: {exc}") from exc
    minimum, choices = spec.metadata.get("minimum"), spec.metadata.get("choices") or ()
    if minimum is not None and value < minimum:
        raise ConfigError(f"setting {name}: {value} is below {minimum:g}; {spec.metadata['help']}")
    if choices and value not in choices:
        raise ConfigError(f"setting {name}: {value!r} is not one of {', '.join(choices)}; {spec.metadata['help']}")
    return value
