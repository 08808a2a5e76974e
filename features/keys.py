"""Hashes of ids: one key for an entity of several fields, one word for an id that is a value.

Both are made of 64-bit mixing steps that are one-to-one, so integers below 2**63 never share a word; of other ids two
different ones share a word with a chance of 2**-64, and two entities of several fields a key with 2**-128.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from features.block import KeyArray

__all__ = ["joined_keys", "word_of_keys"]

_Words = npt.NDArray[np.uint64]

_GOLDEN = np.uint64(0x9E3779B97F4A7C15)
_MIX_1 = np.uint64(0xBF58476D1CE4E5B9)
_MIX_2 = np.uint64(0x94D049BB133111EB)
_SEED_HI = np.uint64(0x243F6A8885A308D3)
_SEED_LO = np.uint64(0x13198A2E03707344)
#: set in every hash, so that it never equals the key of an integer (see `features.block.key_of_text`)
_HASHED = np.uint64(1 << 63)


def _mix(words: _Words) -> _Words:
    """The finaliser of splitmix64: one-to-one."""
    words = words + _GOLDEN
    words = (words ^ (words >> np.uint64(30))) * _MIX_1
    words = (words ^ (words >> np.uint64(27))) * _MIX_2
    mixed: _Words = words ^ (words >> np.uint64(31))
    return mixed


def joined_keys(parts: Sequence[KeyArray]) -> KeyArray:
    """(n, 2) uint64: one key per row of the keys (n, 2) of several fields; their order matters."""
    out = np.empty((len(parts[0]), 2), np.uint64)
    for column, seed in enumerate((_SEED_HI, _SEED_LO)):
        state = np.full(len(out), seed)
        for keys in parts:
            state = _mix(_mix(state ^ keys[:, 0]) ^ keys[:, 1])
        out[:, column] = state
    out[:, 0] |= _HASHED
    return out


def word_of_keys(keys: KeyArray) -> _Words:
    """(n,) uint64: a hash of each key (n, 2)."""
    return _mix(_mix(keys[:, 0]) ^ keys[:, 1])
