"""How our processes end: with their code and all they wrote, and without the exit handlers of native libraries."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

#: a native handler that kills the process, as OpenSSL's did now and then: one that runs cannot be overlooked
_DEADLY = """
import atexit, ctypes, sys
from streams.process_end import end_with
libc = ctypes.CDLL(None)
libc.__cxa_atexit(ctypes.cast(libc.abort, ctypes.c_void_p), None, None)
atexit.register(print, "exit handler")
def main():
    print("out"); print("err", file=sys.stderr)
    {end}
"""


@pytest.mark.parametrize(
    ("end", "code", "said"),
    [
        ("return 0", 0, "err\n"),
        ("return 70", 70, "err\n"),
        ("sys.exit()", 0, "err\n"),
        ("sys.exit(2)", 2, "err\n"),
        ("sys.exit('why')", 1, "err\nwhy\n"),
        ("raise KeyError('what')", 1, "KeyError: 'what'\n"),
    ],
)
def test_the_code_and_all_that_was_written_and_no_native_handler(end: str, code: int, said: str) -> None:
    ended = subprocess.run(
        [sys.executable, "-c", _DEADLY.format(end=end) + "end_with(main)"], capture_output=True, text=True, timeout=60
    )
    assert (ended.returncode, ended.stdout) == (code, "out\nexit handler\n")
    assert ended.stderr.endswith(said)


def test_the_handler_of_this_test_is_deadly() -> None:
    ended = subprocess.run([sys.executable, "-c", _DEADLY.format(end="return 0") + "sys.exit(main())"], timeout=60)
    assert ended.returncode < 0


def test_a_reader_that_has_left_is_a_failure() -> None:
    code = "from streams.process_end import end_with; end_with(lambda: print('x' * 9) or 0)"
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    buffered = {name: value for name, value in os.environ.items() if name != "PYTHONUNBUFFERED"}
    with subprocess.Popen([sys.executable, "-c", code], env=buffered, **pipes) as process:
        assert process.stdout is not None and process.stderr is not None
        process.stdout.close()
        assert process.wait(60) == 1
        assert process.stderr.read() == b""
