"""Mended values of dead letters: read from files, and checked before they are sent."""

from __future__ import annotations

import base64
import binascii
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from streams.errors import ConfigError, HeadraceError

if TYPE_CHECKING:
    from streams.dead_letter_retry import Mended
    from streams.dead_letters import Letter

__all__ = ["mend", "read_edit", "read_value"]


def read_value(file: str) -> bytes:
    """The bytes of a file, or of stdin for ``-``, without one newline at their end."""
    try:
        value = sys.stdin.buffer.read() if file == "-" else Path(file).read_bytes()
    except OSError as exc:
        raise ConfigError(f"--value {file}: {exc.strerror}; check the path and its rights") from exc
    return value.removesuffix(b"\n").removesuffix(b"\r")


def read_edit(path: Path) -> dict[str, bytes]:
    """Values by source, from lines ``{"source": .., "value": ..}`` or those of `headrace consume --envelope`.

    A value that is text is sent as it is, any other as JSON, ``value_base64`` as those bytes.
    """
    import orjson

    try:
        lines = path.read_bytes().splitlines()
    except OSError as exc:
        raise ConfigError(f"--edit {path}: {exc.strerror}; check the path and its rights") from exc
    values: dict[str, bytes] = {}
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        try:
            row: dict[str, Any] = orjson.loads(line)
            source = row["source"] if "source" in row else row["headers"]["source"]
            value = row.get("value")
            if value is None:
                values[source] = base64.b64decode(row["value_base64"], validate=True)
            else:
                values[source] = value.encode() if isinstance(value, str) else orjson.dumps(value)
        except (orjson.JSONDecodeError, binascii.Error, AttributeError, KeyError, TypeError) as exc:
            raise ConfigError(
                f"--edit {path}, line {number}: not a mended letter ({exc!r}); write "
                '{"source": "transactions/3/1234", "value": ..}'
            ) from exc
    if not values:
        raise ConfigError(f"--edit {path}: no lines in it; give one for each letter to retry")
    return values


def mend(letter: Letter, value: bytes) -> Mended:
    """The mended value with the key that its topic wants. HeadraceError where it would be a dead letter again."""
    import orjson

    from features.schema import SCHEMAS
    from streams.codec import Decoder
    from streams.dead_letter_retry import Mended
    from streams.log import RecordBatch

    schema = SCHEMAS.get(letter.source.topic)
    if schema is None:
        return Mended(value)
    now_ms = time.time_ns() // 1_000_000
    _, dead = Decoder(schema).decode(RecordBatch(letter.source, [0], [now_ms], [letter.key], [value], lambda i: [], 1))
    if dead:
        raise HeadraceError(
            f"{letter.name}: the mended value would be a dead letter again: {dead[0].reason}. Nothing was sent"
        )
    return Mended(value, str(orjson.loads(value)[schema.key]).encode())
