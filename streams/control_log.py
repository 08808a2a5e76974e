"""What the control loop writes: each step as one transaction, by one loop at a time."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence

import orjson

from streams.control_state import STATE_KEY, State, read_state, written
from streams.control_step import Step
from streams.dead_letters import read_now
from streams.errors import FatalError, HeadraceError
from streams.log import DeliveryFailed, Log, LogUnavailable, MustAbort, OutBatch
from streams.topics import ALERTS, CONTROL, MODEL_EVENTS

__all__ = ["ControlLog", "newest_state"]

_TRANSACTIONAL_ID = "headrace-control"
_COMMIT_S, _PATIENCE_S = 5.0, 30.0
_AGAIN = "start it again, which goes on after the last step that is in the log"


class ControlLog:
    """``state`` is what the log says, ``begin`` where there is none yet; nobody else can change it from then on:
    whoever opens it later ends this one.

    ``clock`` gives the wall time in ms that events are stamped with.
    """

    def __init__(self, log: Log, clock: Callable[[], int], begin: Callable[[], State] = State) -> None:
        self._clock = clock
        self._producer = log.transactional_producer(_TRANSACTIONAL_ID)
        try:
            self._producer.init()
            newest = newest_state(log)
            self.state = newest if newest.steps else begin()
        except BaseException:
            self._producer.close()
            raise

    def commit(self, step: Step) -> None:
        """The new state, the events and the alerts' records: all of them or nothing. HeadraceError: it could not be
        written, or another loop has begun."""
        try:
            self._producer.begin()
            for batch in self._batches(step):
                self._send(batch)
            self._end()
        except (MustAbort, DeliveryFailed) as error:
            raise HeadraceError(f"control: {error}. The step is not in the log: {_AGAIN}") from error
        except FatalError as error:
            if error.reason != "transaction-fenced":
                raise
            raise HeadraceError("control: another control loop has begun, which ends this one; run one only") from error
        self.state = step.state

    def _batches(self, step: Step) -> Sequence[OutBatch]:
        now = self._clock()
        out = [OutBatch(CONTROL, [written(step.state)], [STATE_KEY], 0)]
        if step.events:
            values = [orjson.dumps({"time": now, "control": step.state.steps, **event}) for event in step.events]
            out.append(OutBatch(MODEL_EVENTS, values, [b"control"] * len(values)))
        if step.alerts:
            keys = [f"{alert['kind']}/{alert['subject']}".encode() for alert in step.alerts]
            out.append(OutBatch(ALERTS, [orjson.dumps(alert) for alert in step.alerts], keys))
        return out

    def _send(self, batch: OutBatch) -> None:
        done, until = 0, time.monotonic() + _PATIENCE_S
        while (done := self._producer.send(batch, done)) < len(batch):
            if time.monotonic() > until:
                raise MustAbort(f"{batch.topic}: the broker took nothing for {_PATIENCE_S:.0f} s")
            self._producer.poll(0.05)

    def _end(self) -> None:
        until = time.monotonic() + _PATIENCE_S
        while True:
            try:
                return self._producer.commit({}, None, _COMMIT_S)
            except LogUnavailable as error:
                if time.monotonic() > until:
                    raise MustAbort(f"not committed in {_PATIENCE_S:.0f} s ({error}): is the broker up?") from error

    def close(self) -> None:
        """Ends what is open."""
        self._producer.close()


def newest_state(log: Log) -> State:
    """The newest state in the topic; an empty one where there is none."""
    newest: bytes | None = None
    for batch in read_now(log, CONTROL):
        for key, value in zip(batch.keys, batch.values, strict=True):
            if key == STATE_KEY and value is not None:
                newest = value
    return State() if newest is None else read_state(newest)
