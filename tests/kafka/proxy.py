"""A TCP proxy before a broker: cuts connections, and can tell clients what a broker says that has just started."""

from __future__ import annotations

import socket
import struct
import threading
import time
from collections.abc import Callable
from contextlib import suppress

_METADATA, _FIND_COORDINATOR = 3, 10
#: from here on a Metadata response is in the compact encoding
_COMPACT_METADATA = 9


class Proxy:
    """Clients of ``port`` are served by the broker at ``target`` and told that the broker is here."""

    def __init__(self, target: int) -> None:
        self._target = target
        self._server = socket.create_server(("127.0.0.1", 0))
        self.port: int = self._server.getsockname()[1]
        #: whether metadata say that the cluster has no broker yet, and how often they did
        self.no_brokers = False
        self.said_none = 0
        #: whether new connections are ended at once, and how long every response is held back
        self.refuses = False
        self.delay_s = 0.0
        #: told of each request before it goes on (True) and of its response (False), by Kafka's number of the request
        self.seen: Callable[[int, bool], None] = lambda api, is_request: None
        self._connections: list[socket.socket] = []
        threading.Thread(target=self._accept, daemon=True).start()

    def cut(self) -> None:
        """Ends all connections; new ones are taken."""
        connections, self._connections = self._connections, []
        for connection in connections:
            _shut(connection)

    def close(self) -> None:
        self._server.close()
        self.cut()

    def _accept(self) -> None:
        while True:
            try:
                client, _ = self._server.accept()
            except OSError:
                return
            if self.refuses:
                client.close()
                continue
            try:
                broker = socket.create_connection(("127.0.0.1", self._target))
            except OSError:
                client.close()
                continue
            asked: dict[int, tuple[int, int]] = {}
            self._connections += [client, broker]
            threading.Thread(target=self._requests, args=(client, broker, asked), daemon=True).start()
            threading.Thread(target=self._responses, args=(broker, client, asked), daemon=True).start()

    def _requests(self, client: socket.socket, broker: socket.socket, asked: dict[int, tuple[int, int]]) -> None:
        while (body := _receive(client)) is not None:
            api, version, correlation = struct.unpack(">hhi", body[:8])
            asked[correlation] = (api, version)
            self.seen(api, True)
            if not _send(broker, body):
                break
        _shut(client)
        _shut(broker)

    def _responses(self, broker: socket.socket, client: socket.socket, asked: dict[int, tuple[int, int]]) -> None:
        while (body := _receive(broker)) is not None:
            api, version = asked.pop(struct.unpack(">i", body[:4])[0], (-1, 0))
            if api in (_METADATA, _FIND_COORDINATOR):
                body = body.replace(struct.pack(">i", self._target), struct.pack(">i", self.port))
            if api == _METADATA and version >= _COMPACT_METADATA and self.no_brokers:
                body = _without_brokers(body)
                self.said_none += 1
            time.sleep(self.delay_s)
            self.seen(api, False)
            if not _send(client, body):
                break
        _shut(client)
        _shut(broker)


def _without_brokers(response: bytes) -> bytes:
    """The Metadata response with an empty list of brokers; each is id, host, port, rack, tags."""
    start = end = 4 + 1 + 4  # behind correlation id, tags and throttle time
    brokers = response[end] - 1
    end += 1
    for _ in range(brokers):
        end += 4
        end += response[end] + 4
        end += max(response[end], 1) + 1
    return response[:start] + b"\x01" + response[end:]


def _receive(connection: socket.socket) -> bytes | None:
    size = _exactly(connection, 4)
    return None if size is None else _exactly(connection, struct.unpack(">i", size)[0])


def _exactly(connection: socket.socket, size: int) -> bytes | None:
    parts = bytearray()
    while len(parts) < size:
        try:
            part = connection.recv(size - len(parts))
        except OSError:
            return None
        if not part:
            return None
        parts += part
    return bytes(parts)


def _send(connection: socket.socket, body: bytes) -> bool:
    try:
        connection.sendall(struct.pack(">i", len(body)) + body)
    except OSError:
        return False
    return True


def _shut(connection: socket.socket) -> None:
    with suppress(OSError):
        connection.shutdown(socket.SHUT_RDWR)
    connection.close()
