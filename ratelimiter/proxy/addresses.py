"""Addresses of listeners and upstreams, as an operator writes them."""

from __future__ import annotations

import ssl
from typing import NamedTuple
from urllib.parse import urlsplit

from ratelimiter.errors import ConfigError
from ratelimiter.proxy.pool import Target

UNIX = "unix:"
PORT_MAX = 65_535
PORTS = {"http": 80, "https": 443}


class Listen(NamedTuple):
    """The address of a listener: a host and a port, or the path of a unix socket."""

    host: str = ""
    port: int = 0  # 0: any that is free
    path: str = ""


def parse_listen(text: str, flag: str = "--listen") -> Listen:
    """Read `HOST:PORT`, `[ADDRESS]:PORT` or `unix:PATH`.

    Raises:
        ConfigError: it is none of these.
    """
    if text.startswith(UNIX) and len(text) > len(UNIX):
        return Listen(path=text.removeprefix(UNIX))
    host, colon, port = text.rpartition(":")
    bracketed = host.startswith("[") and host.endswith("]")
    if not colon or not (port.isascii() and port.isdigit()) or int(port) > PORT_MAX or (":" in host and not bracketed):
        msg = f"{flag}: {text!r} is not HOST:PORT; write one like 127.0.0.1:8080, or unix:/run/proxy.sock"
        raise ConfigError(msg)
    return Listen(host.strip("[]"), int(port))


def parse_upstream(url: str) -> Target:
    """Read `http://HOST[:PORT]`, `https://HOST[:PORT]` or `unix:PATH`.

    Raises:
        ConfigError: it is none of these.
    """
    if url.startswith(UNIX) and len(url) > len(UNIX):
        return Target(path=url.removeprefix(UNIX))
    try:
        parts = urlsplit(url)
        port = parts.port
    except ValueError:
        parts, port = urlsplit(""), None
    if parts.scheme not in PORTS or not parts.hostname or parts.username is not None or port == 0:
        msg = (
            f"--upstream: {_shown(url)} is not an http URL; write one like http://127.0.0.1:8000, or unix:/run/app.sock"
        )
        raise ConfigError(msg)
    if parts.path not in ("", "/") or parts.query or parts.fragment:
        msg = f"--upstream: {_shown(url)} has more than a host and a port; paths are forwarded as they are"
        raise ConfigError(msg)
    tls = ssl.create_default_context() if parts.scheme == "https" else None
    if tls is not None:
        tls.set_alpn_protocols(["http/1.1"])
    return Target(parts.hostname, port or PORTS[parts.scheme], tls=tls)


def _shown(url: str) -> str:
    # What stands before an @ may be a password.
    return repr(url.rpartition("@")[2][:100])
