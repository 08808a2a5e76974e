"""A change of a helper reaches kernels in other files, although they are cached on disk."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import features.kernel

HELPER = """
from features.kernel import helper

@helper
def half(x):
    return x // {divisor}
"""
KERNEL = """
from features.kernel import kernel
from features.half import half

@kernel
def quarter(x):
    return half(half(x))

print(quarter(100), sum(quarter.stats.cache_hits.values()))
"""


def test_changed_helpers_are_compiled_anew(tmp_path: Path) -> None:
    package = tmp_path / "features"
    package.mkdir()
    shutil.copy(features.kernel.__file__, package)
    (package / "__init__.py").touch()
    (package / "quarter.py").write_text(KERNEL)

    def run(divisor: int) -> str:
        (package / "half.py").write_text(HELPER.format(divisor=divisor))
        # Python itself takes a source as unchanged whose size and whole second are: -B has it read them.
        command = [sys.executable, "-B", "-m", "features.quarter"]
        return subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=True).stdout.strip()

    assert run(2) == "25 0"
    assert run(2) == "25 1"
    assert run(5) == "4 0"
