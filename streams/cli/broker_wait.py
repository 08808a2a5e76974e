"""The log of a command that does one thing and ends: it waits for a broker that is not there yet, but not for ever."""

from __future__ import annotations

import argparse
import re
import socket
import sys
import time
from typing import TYPE_CHECKING

from streams.errors import HeadraceError

if TYPE_CHECKING:
    from streams.config import Settings
    from streams.log import Log

__all__ = ["addresses", "await_broker", "open_log"]

#: until the command says what it waits for, and until it gives up
_SAY_S, _GIVE_UP_S = 3.0, 30.0
_PAUSE_S = 0.25


def open_log(args: argparse.Namespace) -> Log:
    """The log of ``--bootstrap`` and ``--config``, as `await_broker` gives it."""
    from streams.config import load_settings

    return await_broker(load_settings(args.config, overrides={"bootstrap": args.bootstrap}))


def await_broker(settings: Settings) -> Log:
    """The log that the settings name, once something listens at one of its addresses.

    Says on stderr what it waits for. HeadraceError: nothing listened for half a minute.
    """
    from streams.log import connect

    url = settings.log_url()
    asked = [] if url.startswith("memory://") else addresses(url.split("://", 1)[1])
    started, told = time.monotonic(), False
    while asked and (why := _absent(asked)):
        waited = time.monotonic() - started
        if waited > _GIVE_UP_S:
            raise HeadraceError(
                f"no broker at {settings.bootstrap} for {_GIVE_UP_S:.0f} s ({why}): start it (see `headrace broker`) "
                "or name another with --bootstrap"
            )
        if waited > _SAY_S and not told:
            told = True
            left = _GIVE_UP_S - waited
            print(
                f"waiting for a broker at {settings.bootstrap} ({why}), for {left:.0f} s more",
                file=sys.stderr,
                flush=True,
            )
        time.sleep(_PAUSE_S)
    return connect(settings.log_url(), settings.kafka_config())


def addresses(bootstrap: str) -> list[tuple[str, int]]:
    """Hosts and ports; empty where one cannot be read: the client says then what is wrong with it."""
    found = [re.fullmatch(r"\s*(?:\w+://)?\[?([^\[\]]+?)\]?:(\d+)\s*", part) for part in bootstrap.split(",")]
    return [(match[1], int(match[2])) for match in found if match] if all(found) else []


def _absent(asked: list[tuple[str, int]]) -> str:
    """Why no address answers; "" when one does."""
    why = ""
    for address in asked:
        try:
            with socket.create_connection(address, timeout=2):
                return ""
        except (OSError, OverflowError) as error:
            why = str(getattr(error, "strerror", None) or error)
    return why
