"""A name for a worker that outlives its process and that no other worker has at the same time: its transactional id.

A worker that is killed inside a transaction leaves it open: the readers of its outputs and whoever gets its partitions
wait until the broker ends it. A worker that comes back with the same id ends it at once. Two at a time with one id
would fence each other, so the name is a random one in a file that its owner keeps locked: the system frees the lock
when the owner dies, and an equal host name elsewhere makes no second one.
"""

from __future__ import annotations

import fcntl
import hashlib
import itertools
import logging
import socket
import uuid
from typing import IO

from streams.kafka_jars import home_dir

__all__ = ["claim_name"]

logger = logging.getLogger("headrace.worker")

#: locked until this process ends
_held: list[IO[str]] = []


def claim_name(log_url: str, group: str) -> str:
    """The first name of this group's workers on this host that no living worker has."""
    place = hashlib.sha256(f"{log_url} {group} {socket.gethostname()}".encode()).hexdigest()[:16]
    folder = home_dir() / "workers"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for slot in itertools.count():
            file = (folder / f"{place}-{slot}").open("a+")
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                file.close()
                continue
            _held.append(file)
            file.seek(0)
            name = file.read().strip()
            if not name:
                name = uuid.uuid4().hex
                file.write(name)
                file.flush()
            return f"{group}-{name}"
    except OSError as exc:
        logger.warning(
            "%s cannot be written (%s): this worker's transactional id is new at every start, so that after a kill "
            "others may wait until the broker ends its last transaction. Set HEADRACE_HOME or transactional_id.",
            folder,
            exc.strerror,
        )
    return f"{group}-{uuid.uuid4().hex}"
