"""The decorators of our numba kernels, and the one instruction that numba does not offer.

``_nrt=False`` leaves out numba's reference counting of array arguments, which is atomic and not pruned across calls
of helper functions: with it the window kernels are twice as slow. In return a kernel cannot allocate: its scratch
arrays are x"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import numpy.typing as npt
from llvmlite import ir
from numba import njit, types
from numba.core import cgutils
from numba.extending import intrinsic

__all__ = ["helper", "kernel", "own", "prefetch", "signed"]

F = TypeVar("F", bound=Callable[..., Any])


def _package_digest() -> str:
    digest = hashlib.sha256()
    for source in sorted(Path(__file__).parent.glob("*.py")):
        digest.update(source.name.encode() + b"\0" + source.read_bytes())
    return digest.hexdigest()


_DIGEST = _package_digest()


def _compiled(function: F, **options: bool) -> F:
    dispatcher = njit(cache=True, nogil=True, _nrt=False, **options)(function)
    # numba has no public way to add to the stamp; where this private one goes, the tests of the cache say so
    cache_file = dispatcher._cache._cache_file
    cache_file._source_stamp = (cache_file._source_stamp, _DIGEST)
    compiled: F = dispatcher
    return compiled


def kernel(function: F) -> F:
    """Compiles ``function`` on first call (cached on disk, releases the GIL); it must not allocate arrays."""
    return _compiled(function)


def helper(function: F) -> F:
    """A `kernel` called from others only, and always inlined: each array argument would be seven words to pass."""
    return _compiled(function, forceinline=True)


def own(array: npt.NDArray[Any], dtype: type[np.generic]) -> npt.NDArray[Any]:
    """The column in the one form kernels are compiled for: contiguous, writable (a view of a message is not)."""
    if array.dtype == dtype and array.flags.carray:  # asked first: `require` takes 3 us
        return array
    return np.require(array, dtype, ["C", "W"])


@helper
def signed(word: np.uint64) -> int:
    """The bits of a word as a signed integer, as which times are kept."""
    return np.int64(word)  # type: ignore[return-value]


@intrinsic
def prefetch(typing_context: Any, array: Any, index: Any) -> Any:
    """Asks the processor to load the cache line of ``array.flat[index]`` (C order); any index is safe.

    State is larger than the caches and each event goes somewhere else in it: rows ahead are asked for while the
    present one is worked on.
    """

    def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        data = context.make_array(signature.args[0])(context, builder, args[0]).data
        address = builder.bitcast(cgutils.gep_inbounds(builder, data, args[1]), cgutils.voidptr_t)
        number = cgutils.int32_t
        kind = ir.FunctionType(ir.VoidType(), [cgutils.voidptr_t, number, number, number])
        function = cgutils.get_or_insert_function(builder.module, kind, "llvm.prefetch.p0")
        builder.call(function, [address, number(0), number(3), number(1)])  # for reading, keep, data
        return context.get_dummy_value()

    return types.void(array, index), generate
