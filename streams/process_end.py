"""How a process of ours ends: its code known, what it wrote written, and no native exit handler run."""

from __future__ import annotations

import atexit
import os
import sys
import traceback
from collections.abc import Callable
from typing import NoReturn

__all__ = ["end_with"]


def end_with(main: Callable[[], int]) -> NoReturn:
    """Ends this process with what ``main`` returns, as ``sys.exit(main())`` would, once the interpreter's own exit
    handlers have run and its output is flushed.

    The native libraries' handlers are left out: they free what threads of the same libraries may still use, of clients
    that wait for a broker and of a compilation under way, and a process that had said why it ends then died of SIGSEGV
    instead (OpenSSL's clean-up, once in sixty ends of a worker whose certificate was refused). Whatever the process has
    to keep it has written before: the system takes back the rest.
    """
    try:
        code = main()
    except SystemExit as left:  # as argparse ends
        code = left.code if isinstance(left.code, int) else int(left.code is not None)
        if isinstance(left.code, str):
            print(left.code, file=sys.stderr)
    except BaseException:  # noqa: BLE001 - the end of everything: told as the interpreter would
        traceback.print_exc()
        code = 1
    atexit._run_exitfuncs()
    for stream in (sys.stdout, sys.stderr):
        try:
            stream.flush()
        except OSError:  # who read it has left
            code = code or 1
    os._exit(code)
