"""Where the web server listens, and where the webhook is: addresses as people write them, checked."""

from __future__ import annotations

import ipaddress
import re
from dataclasses import dataclass
from typing import Self
from urllib.parse import urlsplit

from streams.errors import ConfigError

__all__ = ["Address", "host_of", "is_loopback", "peers", "webhook_url"]

_LOOPBACK = "127.0.0.1"
_FORMS = "HOST:PORT, or :PORT or PORT for 127.0.0.1; port 0 takes any free one"


def is_loopback(host: str) -> bool:
    """Whether only this machine can be meant by the host, an address or a name."""
    try:
        return ipaddress.ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return host.lower() == "localhost"


def host_of(header: str) -> str:
    """The host of a request's header ``Host``, without port."""
    return header.partition("]")[0] if header.startswith("[") else header.partition(":")[0]


@dataclass(frozen=True, slots=True)
class Address:
    """``host`` without brackets."""

    host: str
    port: int

    @classmethod
    def parse(cls, text: str) -> Self | None:
        """The address, None where the text is empty; ConfigError otherwise.

        >>> Address.parse(":8600")
        Address(host='127.0.0.1', port=8600)
        """
        if not text:
            return None
        match = re.fullmatch(r"(?:(\[[0-9A-Fa-f:.%]+\]|[^:\[\]/]*):)?(\d{1,5})", text)
        if match is None or int(match[2]) > 65_535:
            raise ConfigError(f"{text!r} is no address to listen at; give {_FORMS}")
        return cls((match[1] or _LOOPBACK).strip("[]"), int(match[2]))

    @property
    def loopback(self) -> bool:
        """Whether only this machine reaches it."""
        return is_loopback(self.host)

    def __str__(self) -> str:
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"


def webhook_url(text: str) -> None:
    """ConfigError: neither empty, nor a place where it is kept, nor an http or https address in
    printable ASCII without user and password."""
    if not text or text.startswith("${"):
        return
    if any(ord(c) < 33 or ord(c) > 126 for c in text):
        raise ConfigError("not printable ASCII without spaces; write other characters percent encoded, names as xn--..")
    try:
        parts = urlsplit(text)
        usable = parts.scheme in ("http", "https") and bool(parts.hostname) and (parts.port or 1) > 0
        (parts.hostname or "").encode("idna")  # what cannot be looked up at all: UnicodeError, a ValueError
    except ValueError:
        usable = False
    if not usable:
        raise ConfigError("not an http or https address; give such as https://hooks.example.com/alerts")
    if parts.username is not None or parts.password is not None:
        raise ConfigError("a user and password in the address would be logged; give a token by alerts_webhook_token")


def peers(text: str) -> dict[str, int]:
    """``PIPELINE=PORT,..`` as a dictionary. ConfigError: something else.

    >>> peers("fraud=8600,monitor=8601")
    {'fraud': 8600, 'monitor': 8601}
    """
    pairs = [part.partition("=") for part in text.split(",") if part]
    if not all(re.fullmatch(r"\w+", name) and re.fullmatch(r"\d{1,5}", port) for name, _, port in pairs):
        raise ConfigError(f"{text!r} does not name pages; give PIPELINE=PORT, several with commas between")
    return {name: int(port) for name, _, port in pairs}
