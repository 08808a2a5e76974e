"""A local S3: moto's server in this process, on a free port of the loopback interface."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any

import s3fs
from moto.server import ThreadedMotoServer


@contextmanager
def s3_server() -> Iterator[dict[str, Any]]:
    """Options for `open_store`, of a server with the bucket ``checkpoints``."""
    logging.getLogger("werkzeug").setLevel(logging.ERROR)
    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0)
    server.start()
    host, port = server.get_host_and_port()
    options = {
        "key": "AKIAHEADRACETEST",
        "secret": "wJalrXUtnFEMI/K7MDENG+secret",
        "client_kwargs": {"endpoint_url": f"http://{host}:{port}"},
        "config_kwargs": {"retries": {"max_attempts": 1}, "connect_timeout": 5},
    }
    try:
        with suppress(FileExistsError):  # the servers of one process have their buckets in common
            s3fs.S3FileSystem(**options).mkdir("checkpoints")
        yield options
    finally:
        server.stop()
