"""headrace control: what is done about alerts, by policy, on evidence, and with a person's word where it is wanted."""

from __future__ import annotations

import argparse
import contextlib
import os
import signal
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from typing import TYPE_CHECKING, Any

from streams.cli.broker_wait import open_log
from streams.cli.options import add_bootstrap, add_config, add_json, print_json
from streams.errors import EXIT_OK, ConfigError, HeadraceError

if TYPE_CHECKING:
    from monitoring.settings import MonitorSettings
    from streams.config import Settings
    from streams.control_state import Case, State
    from streams.log import Log

EXAMPLE = "headrace control run --models models-dir --bootstrap 127.0.0.1:9092"

_SEND_S = 20.0
_EVENTS_SHOWN = 10


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The command's actions and their options."""
    actions = parser.add_subparsers(dest="action", metavar="ACTION", required=True)
    for name, (summary, example, act) in _ACTIONS.items():
        action = actions.add_parser(name, help=summary, description=summary[0].upper() + summary[1:] + ".")
        action.epilog = f"example: headrace control {name}{example}"
        action.set_defaults(act=act)
        if name == "run":
            action.add_argument("--models", metavar="DIR", help="registry of model packages, which is changed")
            action.add_argument("--approval", choices=["auto", "human"], help="human: a person approves promotions")
            action.add_argument("--once", action="store_true", help="do what is to be done now, and end")
            action.add_argument(
                "--web",
                metavar="HOST:PORT",
                help="/metrics and /healthz; :PORT and PORT are on 127.0.0.1, port 0 is any free one (default: none)",
            )
            action.add_argument("--web-remote", action="store_true", help="let --web listen where others reach it")
            action.add_argument("--partitions", type=int, metavar="N", help="of topics that are missing (default: 4)")
        elif name in ("approve", "reject"):
            action.add_argument("case", metavar="ID", help="as `headrace control status` shows it, or its beginning")
        elif name == "act":
            action.add_argument("alert", metavar="ALERT", help="as `headrace alerts` lists it, or its beginning")
        elif name == "freeze":
            action.add_argument("--reason", default="", metavar="TEXT", help="why; alerts say it")
        add_config(action)
        add_bootstrap(action)
        add_json(action)


def run(args: argparse.Namespace) -> int:
    """Does the action."""
    code: int = args.act(args)
    return code


def _run(args: argparse.Namespace) -> int:
    """One loop, a process of its own beside the workers: it needs the labels of all partitions and writes to the
    registry. Prints ``ready``, then follows the topics until SIGTERM; what it was in the midst of the next one ends."""
    from pathlib import Path

    from streams.cli.broker_wait import await_broker
    from streams.cli.registry import open_registry
    from streams.config import load_settings
    from streams.control import Controller
    from streams.control_web import served
    from streams.retrain import Stopped
    from streams.web_address import Address

    overrides = {"bootstrap": args.bootstrap, "models": args.models, "partitions": args.partitions}
    settings = load_settings(args.config, overrides=overrides)
    if args.approval is not None:
        table = {**settings.control, "approval": args.approval}
        settings = load_settings(args.config, overrides=overrides | {"control": table})
    if not settings.models:
        raise ConfigError("control run: no registry; name the one that the workers score with, --models DIR")
    registry = open_registry(Path(settings.models))
    watch = _watch(settings)
    loop = Controller(
        await_broker(settings),
        registry,
        settings.control_settings(),
        mature_ms=watch.label_horizon_ms,
        lateness_ms=watch.lateness_ms,
        partitions=settings.partitions,
    )
    address = Address.parse(args.web or "")
    web = contextlib.nullcontext("") if address is None else served(loop, address, remote=args.web_remote)
    with loop, web as url, _stopped_by_signals(loop.stop):
        if url:
            print(f"metrics at {url}", file=sys.stderr, flush=True)
        print("ready", flush=True)
        try:
            (loop.run_to_end if args.once else loop.run)()
        except Stopped as told:
            print(told, file=sys.stderr, flush=True)
    figures: dict[str, Any] = {**loop.counts, "champion": loop.state.champion or None, "frozen": loop.state.frozen}
    if args.json:
        print_json(figures | {"case": None if loop.state.case is None else loop.state.case.id})
    else:
        print(", ".join(f"{name} {count:,}" for name, count in loop.counts.items()), flush=True)
    return EXIT_OK


@contextlib.contextmanager
def _stopped_by_signals(stop: Callable[[], None]) -> Iterator[None]:
    """SIGTERM and Ctrl-C end the loop in order."""
    before = {number: signal.signal(number, lambda *_: stop()) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _watch(settings: Settings) -> MonitorSettings:
    """What the monitor is told: how long after its event a label is final, and how long it waits besides."""
    from streams.monitor_worker import make_pipeline

    pipeline = make_pipeline(settings)
    return pipeline.watch.of(("any",), pipeline.settings, 1)


def _status(args: argparse.Namespace) -> int:
    """What the loop has decided last, whether it runs or not."""
    import msgspec

    log = open_log(args)
    state, events = _state(log), _events(log)
    if args.json:
        print_json({"state": msgspec.to_builtins(state), "events": events})
        return EXIT_OK
    for line in _told(state):
        print(line)
    for event in events[-_EVENTS_SHOWN:]:
        print("  ".join(_event_words(event)))
    return EXIT_OK


def _told(state: State) -> Iterator[str]:
    from streams.alert_log import time_text

    yield f"champion  {state.champion or 'none'}"
    if state.clock_ms:
        yield f"labels    known up to {time_text(state.clock_ms)}, {sum(state.labelled):,} records used"
    if state.kept.level:
        yield f"rows      one in {2**state.kept.level:,} is kept, by its transaction's id"
    if (trial := state.probation) is not None:
        yield f"probation {trial.candidate} beside {trial.champion}, which it replaced, looked at {trial.looks} times"
    if state.frozen is not None:
        yield f"FROZEN    {state.frozen}; `headrace control thaw` ends it"
    case = state.case
    if case is None:
        yield "no case is open"
        return
    yield f"case      {case.id}: {case.action}, {case.status}, for {case.alert['kind']} of {case.alert['subject']}"
    if case.candidate:
        yield f"          {case.candidate} beside {case.champion}, looked at {case.looks} times"
    for line in _evidence(case.evidence):
        yield f"          {line}"
    if case.status == "awaiting":
        yield f"          `headrace control approve {case.id}` promotes it, `reject` ends the case"


def _evidence(evidence: Mapping[str, Any]) -> Iterator[str]:
    differences = evidence.get("differences") or ({"log_loss": evidence} if evidence.get("gain") is not None else {})
    for name, found in differences.items():
        yield (
            f"{name.replace('_', ' ')}: champion {found['champion']:.4f}, gain {found['gain']:+.4f} "
            f"({found['low']:+.4f} to {found['high']:+.4f}) on {evidence['rows']:,} rows"
        )


def _event_words(event: Mapping[str, Any]) -> Iterator[str]:
    from streams.alert_log import time_text

    yield time_text(event["clock"])
    yield f"{event['event']:<10}"
    for name in ("case", "action", "model", "reason", "by"):
        if event.get(name):
            yield f"{name} {event[name]}"


def _events(log: Log) -> list[dict[str, Any]]:
    """Those of the loop, oldest first."""
    from streams.dead_letters import read_now
    from streams.model_events import read_event
    from streams.topics import MODEL_EVENTS

    read = (read_event(value) for batch in read_now(log, MODEL_EVENTS) for value in batch.values)
    return [event for event in read if event is not None and "control" in event]


def _state(log: Log) -> State:
    from streams.control_log import newest_state

    return newest_state(log)


def _answer(args: argparse.Namespace) -> int:
    """Approves or rejects the open case."""
    log = open_log(args)
    case = _open_case(_state(log), args.case)
    if args.action == "approve" and case.status != "awaiting":
        raise ConfigError(f"{case.id}: it is {case.status}, not awaiting approval; see `headrace control status`")
    return _send(args, log, case.id, "")


def _act(args: argparse.Namespace) -> int:
    """Asks for the action that the policy has for an alert, whatever was decided on it before."""
    from streams.alert_log import read_alerts

    log = open_log(args)
    _state(log)
    found = [alert for name, alert in read_alerts(log).items() if name.startswith(args.alert)]
    if len(found) != 1:
        what = f"{len(found)} alerts begin with it; give more of it" if found else "no such alert"
        raise ConfigError(f"{args.alert}: {what}; `headrace alerts` lists them")
    return _send(args, log, "", "", found[0])


def _switch(args: argparse.Namespace) -> int:
    """Freezes or thaws."""
    log = open_log(args)
    _state(log)  # says so where there is no such topic yet
    return _send(args, log, "", getattr(args, "reason", ""))


def _open_case(state: State, name: str) -> Case:
    if state.case is None or not state.case.id.startswith(name):
        what = "no case is open" if state.case is None else f"the open case is {state.case.id}"
        raise ConfigError(f"{name}: {what}; see `headrace control status`")
    return state.case


def _send(args: argparse.Namespace, log: Log, case: str, reason: str, alert: Mapping[str, Any] | None = None) -> int:
    """Writes the request to the topic; a loop that runs follows it at once, another one when it starts."""
    import uuid

    from streams.control_state import Command, written
    from streams.log import OutBatch
    from streams.topics import CONTROL

    command = Command(args.action, case, reason, _user(), int(time.time() * 1000), dict(alert or {}))
    producer = log.producer()
    producer.send(OutBatch(CONTROL, [written(command)], [f"command/{uuid.uuid4().hex}".encode()], 0))
    left = producer.flush(_SEND_S)
    producer.close()
    if left:
        raise HeadraceError(f"{args.action}: the broker did not take it in {_SEND_S:.0f} s; ask again")
    if args.json:
        print_json({"command": args.action, "case": case or None})
    else:
        print(f"{args.action} {case}: asked for".replace("  ", " ").replace(" :", ":"))
    return EXIT_OK


def _user() -> str:
    """Who asks. In a container there may be nobody of this number."""
    import getpass

    try:
        return getpass.getuser()
    except (KeyError, OSError):
        return str(os.getuid())


_Act = Callable[[argparse.Namespace], int]
_ACTIONS: dict[str, tuple[str, str, _Act]] = {
    "run": ("follow labels and alerts, and act by policy", " --models models-dir --approval human", _run),
    "status": ("show what the loop has decided, and what awaits approval", "", _status),
    "approve": ("let the candidate of the open case be champion", " 3fb2c1", _answer),
    "reject": ("end the open case without a change", " 3fb2c1", _answer),
    "act": ("act on an alert that was declined, as the policy says", " 3fb2c1", _act),
    "freeze": ("let nothing be done from now on; alerts go on", ' --reason "release week"', _switch),
    "thaw": ("end a freeze", "", _switch),
}
