"""headrace dead-letters: list, show and retry the records that a stage could not use."""

from __future__ import annotations

import argparse
import heapq
import shutil
import sys
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from streams.alert_log import time_text
from streams.cli.broker_wait import open_log
from streams.cli.options import add_bootstrap, add_config, add_json, print_json
from streams.errors import EXIT_FAILED, EXIT_OK, ConfigError

if TYPE_CHECKING:
    from streams.dead_letter_retry import Mark, Retrier
    from streams.dead_letters import Filters, Letter
    from streams.log import Log

EXAMPLE = "headrace dead-letters list --stage card --limit 20"

_HEAD_BYTES = 48
#: letters that are retried in one go, and at most so many bytes of them
_CHUNK, _CHUNK_BYTES = 1_000, 16_000_000


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The command's actions and their options."""
    actions = parser.add_subparsers(dest="action", metavar="ACTION", required=True)
    for name, (summary, example, act) in _ACTIONS.items():
        action = actions.add_parser(name, help=summary, description=summary[0].upper() + summary[1:] + ".")
        action.epilog = f"example: headrace dead-letters {name} {example}"
        action.set_defaults(act=act)
        if name == "list":
            _add_filters(action)
            action.add_argument("--open", action="store_true", help="only letters that were not retried")
            action.add_argument("--oldest", action="store_true", help="oldest first (default: newest first)")
            action.add_argument("--limit", type=int, default=100, metavar="N", help="at most so many (default: 100)")
            action.add_argument("--summary", action="store_true", help="count them by kind of error instead")
        elif name == "show":
            action.add_argument("source", metavar="SOURCE", help="as `list` shows it: transactions/3/1234")
        else:
            action.add_argument("source", nargs="*", metavar="SOURCE", help="letters, as `list` shows them")
            action.add_argument("--all", action="store_true", help="all letters, or those of the filters")
            _add_filters(action)
            action.add_argument(
                "--again", action="store_true", help="with --all: also records that failed again when they were retried"
            )
            action.add_argument(
                "--value", metavar="FILE", help="send these bytes instead, for one SOURCE; - is stdin (JSON: one event)"
            )
            action.add_argument(
                "--edit",
                type=Path,
                metavar="FILE.jsonl",
                help='send these values instead, lines {"source": .., "value": ..}; also of `consume --envelope`',
            )
        add_config(action)
        add_bootstrap(action)
        add_json(action)


def _add_filters(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--topic", metavar="T", help="only records of this topic")
    parser.add_argument("--stage", metavar="S", help="only of this stage")
    parser.add_argument("--error", metavar="TEXT", help="only with this text in the error, in any case")


def run(args: argparse.Namespace) -> int:
    """Does the action; figures as JSON where asked for."""
    code: int = args.act(args)
    return code


def _filters(args: argparse.Namespace) -> Filters:
    from streams.dead_letters import Filters

    return Filters(args.topic, args.stage, args.error)


# --- list ---


def _list(args: argparse.Namespace) -> int:
    from streams.cli.progress import progress
    from streams.dead_letter_retry import read_marks

    if args.limit < 1:
        raise ConfigError(f"--limit {args.limit}: below 1; give how many letters to show")
    log = open_log(args)
    marks = read_marks(log)
    with progress("dead letters", None) as advance:
        letters = _matching(args, log, marks, advance)
        figures = _by_kind(letters, marks) if args.summary else _newest(args, letters, marks)
    if args.json:
        print_json(figures)
    elif args.summary:
        _print_kinds(figures)
    else:
        _print_letters(args, figures)
    return EXIT_OK


def _matching(
    args: argparse.Namespace, log: Log, marks: Mapping[str, Mark], advance: Callable[[int], None]
) -> Iterator[Letter]:
    from streams.dead_letters import read_letters

    filters = _filters(args)
    for letter in read_letters(log):
        advance(1)
        if filters.match(letter) and not (args.open and _state(letter, marks) == "retried"):
            yield letter


def _newest(args: argparse.Namespace, letters: Iterator[Letter], marks: Mapping[str, Mark]) -> dict[str, Any]:
    """The outlines of as many letters as are to be shown, and how many there are."""
    matching = 0

    def outlines() -> Iterator[dict[str, Any]]:
        nonlocal matching
        for letter in letters:
            matching += 1
            yield _outline(letter, marks)

    pick = heapq.nsmallest if args.oldest else heapq.nlargest
    shown = pick(args.limit, outlines(), key=lambda outline: (outline["timestamp"], outline["source"]))
    return {"matching": matching, "letters": shown}


def _print_letters(args: argparse.Namespace, figures: Mapping[str, Any]) -> None:
    matching, shown = figures["matching"], figures["letters"]
    wide = max((len(outline["source"]) for outline in shown), default=0)
    for outline in shown:
        line = (
            f"{outline['source']:<{wide}}  {time_text(outline['timestamp'])}  {outline['stage']:<8}  "
            f"{outline['state']:<7}  {outline['error']}  {outline['value_head']}"
        )
        print(_fit(line))
    if not matching:
        print("no dead letters" + (" match" if _narrowed(args) or args.open else ""))
    elif matching > len(shown):
        which = "oldest" if args.oldest else "newest"
        print(f"the {which} {len(shown):,} of {matching:,}; --limit shows more, --summary counts", file=sys.stderr)


def _by_kind(letters: Iterator[Letter], marks: Mapping[str, Mark]) -> dict[str, Any]:
    """How many letters there are of each kind of error, topic and stage, most first."""
    from streams.dead_letters import error_kind

    counts: Counter[tuple[str, str, str]] = Counter()
    still_open: Counter[tuple[str, str, str]] = Counter()
    example: dict[tuple[str, str, str], str] = {}
    for letter in letters:
        group = (error_kind(letter.error), letter.source.topic, letter.stage)
        counts[group] += 1
        still_open[group] += _state(letter, marks) == "open"
        example[group] = letter.name
    kinds = [
        {"error": e, "topic": t, "stage": s, "count": n, "open": still_open[e, t, s], "example": example[e, t, s]}
        for (e, t, s), n in sorted(counts.items(), key=lambda item: (-item[1], item[0]))
    ]
    return {"matching": counts.total(), "open": still_open.total(), "kinds": kinds}


def _print_kinds(figures: Mapping[str, Any]) -> None:
    for kind in figures["kinds"]:
        counted = f"{kind['count']:>9,}  {kind['open']:>9,} open"
        print(_fit(f"{counted}  {kind['topic']} {kind['stage']}  {kind['error']}  (e.g. {kind['example']})"))
    print(f"{figures['matching']:,} dead letters, {figures['open']:,} of them not retried")


def _narrowed(args: argparse.Namespace) -> bool:
    return any(value is not None for value in (args.topic, args.stage, args.error))


def _state(letter: Letter, marks: Mapping[str, Mark]) -> str:
    return "retried" if letter.letter_id in marks else "open"


def _outline(letter: Letter, marks: Mapping[str, Mark]) -> dict[str, Any]:
    """A letter without its value, which may be 10 MB: what `list` shows."""
    return {
        "source": letter.name,
        "timestamp": letter.timestamp_ms,
        "stage": letter.stage,
        "state": _state(letter, marks),
        "error": letter.error,
        "retry_of": letter.retry_of,
        "value_bytes": None if letter.value is None else len(letter.value),
        "value_head": _head(letter.value),
    }


def _head(value: bytes | None) -> str:
    """The first bytes on one line."""
    if value is None:
        return "(null)"
    head = value[:_HEAD_BYTES].decode("utf-8", "backslashreplace")
    return _plain(head) + ("..." if len(value) > _HEAD_BYTES else "")


def _plain(text: str, keep: str = "") -> str:
    """Text of unknown origin, which must not drive the terminal."""
    return "".join(c if c.isprintable() or c in keep else "?" for c in text)


def _fit(line: str) -> str:
    """One line; on a terminal what is too long for it is cut."""
    line = _plain(line)
    width = shutil.get_terminal_size().columns if sys.stdout.isatty() else 0
    return line if not width or len(line) <= width else line[: width - 3] + "..."


# --- show ---


def _show(args: argparse.Namespace) -> int:
    import orjson

    from streams.cli.consume import value_as_json
    from streams.dead_letter_retry import read_marks, refusal

    log = open_log(args)
    letter = _named([args.source], log)[args.source]
    outline = _outline(letter, read_marks(log))
    del outline["value_head"]
    headers = {name: value.decode("utf-8", "backslashreplace") for name, value in letter.headers}
    key = None if letter.key is None else letter.key.decode("utf-8", "backslashreplace")
    if args.json:
        shown = {**outline, "key": key, "headers": headers, **value_as_json(letter.value)}
        print(orjson.dumps(shown).decode(), flush=True)
        return EXIT_OK
    lines = {
        "source": letter.name,
        "when": time_text(letter.timestamp_ms),
        "stage": letter.stage,
        "state": outline["state"] + (f"; a retry of {letter.retry_of} that failed again" if letter.retry_of else ""),
        "error": letter.error,
        "key": "(null)" if key is None else key,
        **{f"header {name}": value for name, value in headers.items()},
    }
    reason = refusal(letter)
    if reason:
        lines["retry"] = f"not possible: {reason}"
    for name, value in lines.items():
        print(_plain(f"{name + ':':<9} {value}"))
    print(f"value:    {'(null)' if letter.value is None else f'{len(letter.value):,} bytes'}")
    if letter.value:
        try:
            print(_plain(letter.value.decode("utf-8"), keep="\n\t"))
        except UnicodeDecodeError:
            for at in range(0, len(letter.value), 16):
                print(_hex_line(at, letter.value[at : at + 16]))
    return EXIT_OK


def _hex_line(at: int, part: bytes) -> str:
    text = "".join(chr(byte) if 32 <= byte < 127 else "." for byte in part)
    return f"{at:08x}  {part.hex(' '):<47}  {text}"


def _named(sources: list[str], log: Log) -> dict[str, Letter]:
    """The letters of these sources, the newest where a source was set aside with other contents too."""
    from streams.dead_letters import read_letters

    wanted = set(sources)
    found: dict[str, Letter] = {}
    for letter in read_letters(log):
        name = letter.name
        if name in wanted and (name not in found or letter.timestamp_ms >= found[name].timestamp_ms):
            found[name] = letter
    missing = [source for source in sources if source not in found]
    if missing:
        raise ConfigError(f"SOURCE {missing[0]}: no dead letter has it; `headrace dead-letters list` shows those there")
    return found


# --- retry ---


def _retry(args: argparse.Namespace) -> int:
    from streams.cli.mended import mend, read_edit, read_value
    from streams.dead_letter_retry import Retrier

    ways = [way for way, given in (("SOURCE", args.source), ("--all", args.all), ("--edit", args.edit)) if given]
    if len(ways) != 1:
        raise ConfigError(f"{' and '.join(ways) or 'nothing to retry'}: give one of SOURCE..., --all, --edit")
    if args.value is not None and len(args.source) != 1:
        raise ConfigError("--value: is for one SOURCE; for several give --edit")
    if (_narrowed(args) or args.again) and not args.all:
        raise ConfigError("--topic, --stage, --error, --again: narrow or widen --all; give them with it")
    values = read_edit(args.edit) if args.edit is not None else {}
    if args.value is not None:
        values = {args.source[0]: read_value(args.value)}
    log = open_log(args)
    done: Counter[str] = Counter()
    if args.all:
        with Retrier(log) as retrier:
            _retry_all(args, log, retrier, done)
    else:
        named = _named(list(dict.fromkeys(args.source or values)), log)
        mended = {name: mend(named[name], value) for name, value in values.items()}
        with Retrier(log) as retrier:
            for name, outcome in zip(named, retrier.retry(list(named.values()), mended), strict=True):
                done[outcome] += 1
                if not args.json:
                    print(f"{name}: {_OUTCOMES[outcome]}")
    if args.json:
        print_json({"sent": done["sent"], **{name.replace("-", "_"): done[name] for name in _COUNTED}})
    elif args.all:
        counts = ", ".join(f"{done[name]:,} {text}" for name, text in _COUNTED.items() if done[name])
        letters = "dead letter" if done["sent"] == 1 else "dead letters"
        print(f"sent {done['sent']:,} {letters}" + (f"; {counts}" if counts else ""))
    return EXIT_FAILED if done["already-other"] else EXIT_OK


_OUTCOMES = {
    "sent": "sent",
    "already": "retried before; not sent again",
    "already-other": "retried before, with other bytes than these; not sent again",
}
_COUNTED = {
    "already": "had been retried before",
    "already-other": "had been retried before with other bytes",
    "failed-again": "left out: they are retries that failed again (--again takes them)",
    "internal": "left out: they cannot be retried (`show` says why)",
}


def _retry_all(args: argparse.Namespace, log: Log, retrier: Retrier, done: Counter[str]) -> None:
    from streams.cli.progress import progress
    from streams.dead_letter_retry import refusal
    from streams.dead_letters import read_letters

    filters = _filters(args)
    chunk: list[Letter] = []
    nbytes = 0
    with progress("dead letters", None) as advance:
        for letter in read_letters(log):
            if not filters.match(letter):
                continue
            if refusal(letter):
                done["internal"] += 1
            elif letter.retry_of is not None and not args.again:
                done["failed-again"] += 1
            else:
                chunk.append(letter)
                nbytes += len(letter.value or b"")
            if len(chunk) >= _CHUNK or nbytes >= _CHUNK_BYTES:
                done.update(retrier.retry(chunk))
                advance(len(chunk))
                chunk, nbytes = [], 0
        done.update(retrier.retry(chunk))


_ACTIONS = {
    "list": ("list the dead letters: source, when, stage, error, first bytes", "--stage card --limit 20", _list),
    "show": ("show one dead letter whole: key, headers, value, error", "transactions/3/1234", _show),
    "retry": (
        "send dead letters to the topics they came from, as they were or mended, each once",
        "transactions/3/1234 --value mended.json",
        _retry,
    ),
}
