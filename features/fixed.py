"""128-bit fixed-point numbers for exact sums: ``(hi, lo)`` uint64, two's complement, one unit = 2**-64.

Every float64 with ``|x| < 2**62`` whose last bit is worth 2**-64 or more (all of magnitude 2**-12 and up) is held
exactly, others are rounded to the nearest unit. Sums wrap around modulo 2**64, so the difference of two prefix sums
is exact as long as the sum between them fits, however many values were added before.
"""

from __future__ import annotations

import numpy as np

from features.kernel import helper

__all__ = ["fixed_add", "fixed_of", "fixed_subtract", "float_of"]

_ZERO = np.uint64(0)
_ONE = np.uint64(1)
_SIGN = np.uint64(1 << 63)
_TWO_64 = 2.0**64
_EXPONENT = np.uint64(0x7FF)
_EXPONENT_SHIFT = np.uint64(52)
_BIAS = np.uint64(1023)


@helper
def fixed_add(ahi: np.uint64, alo: np.uint64, bhi: np.uint64, blo: np.uint64) -> tuple[np.uint64, np.uint64]:
    """a + b."""
    lo = alo + blo
    carry = _ONE if lo < alo else _ZERO
    return ahi + bhi + carry, lo


@helper
def fixed_subtract(ahi: np.uint64, alo: np.uint64, bhi: np.uint64, blo: np.uint64) -> tuple[np.uint64, np.uint64]:
    """a - b."""
    borrow = _ONE if alo < blo else _ZERO
    return ahi - bhi - borrow, alo - blo


@helper
def fixed_of(x: float) -> tuple[np.uint64, np.uint64]:
    """The fixed-point number nearest to the finite ``x``, ties to even; ``|x| < 2**62``."""
    magnitude = abs(x)
    hi = np.uint64(magnitude)
    # both steps are exact: the fraction of a float64 and its product with a power of two
    lo = np.uint64(np.rint((magnitude - np.float64(hi)) * _TWO_64))
    if x < 0.0:
        return fixed_subtract(_ZERO, _ZERO, hi, lo)
    return hi, lo


@helper
def float_of(hi: np.uint64, lo: np.uint64) -> float:
    """The float64 nearest to the fixed-point number, ties to even."""
    sign = 1.0
    if hi & _SIGN:
        hi, lo = fixed_subtract(_ZERO, _ZERO, hi, lo)
        sign = -1.0
    if hi == _ZERO:
        return sign * (np.float64(lo) / _TWO_64)
    # Left-align the 128 bits in hi, mark lost bits in its last one (sticky), round once, scale back. Rounding
    # to float64 may make the exponent one too large; then one bit less is shifted, ten spare bits are enough.
    exponent = np.int64((np.float64(hi).view(np.uint64) >> _EXPONENT_SHIFT) & _EXPONENT) - 1023
    left = np.uint64(max(np.int64(0), 63 - exponent))
    top, rest = hi, lo
    if left > _ZERO:
        top = (hi << left) | (lo >> (np.uint64(64) - left))
        rest = lo << left
    if rest != _ZERO:
        top |= _ONE
    # 2**-left, made of its exponent's bits, since a multiplication takes a third of a division's time
    return sign * np.float64(top) * np.uint64((_BIAS - left) << _EXPONENT_SHIFT).view(np.float64)
