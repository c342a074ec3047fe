"""The request that a proxy asks about, as it describes it in header fields."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ratelimiter.core.request import MalformedRequest, Request

if TYPE_CHECKING:
    from collections.abc import Iterable

    Header = tuple[bytes, bytes]

# Fields by which proxies describe the request: nginx the former, Traefik, Caddy and APISIX the latter.
METHODS = (b"x-original-method", b"x-forwarded-method")
TARGETS = (b"x-original-uri", b"x-forwarded-uri")
HOST = b"x-forwarded-host"
ADDRESSES = b"x-forwarded-for"
ADDRESS = b"x-real-ip"
DESCRIBING = frozenset({*METHODS, *TARGETS, HOST, b"x-forwarded-proto", b"x-forwarded-port", b"x-forwarded-server"})
OF_THE_QUESTION = frozenset({b"content-length", b"transfer-encoding", b"connection"})  # not of the request


def described(request: Request, prefix: bytes, *, by_nginx: bool = False) -> Request:
    """Return the request that *request*, to a door at *prefix*, asks about.

    Proxies pass on what their clients send, so a client may send a field that the configuration of its proxy does not
    set. A question about two different requests has one answer, that it is malformed. nginx has a door for itself, at
    which only its own fields count.

    Raises:
        MalformedRequest: it is described in two ways.
    """
    found: dict[bytes, list[bytes]] = {}
    headers: list[Header] = []
    for header in request.headers:
        name = header[0].lower()
        if name in DESCRIBING or name in (ADDRESSES, ADDRESS):
            found.setdefault(name, []).append(header[1])
        if name not in DESCRIBING and name not in OF_THE_QUESTION:
            headers.append(header)
    below = request.target[len(prefix) :]
    targets = set(found.get(TARGETS[0], []))
    methods = set(found.get(METHODS[0], []))
    if not by_nginx:
        targets |= set(found.get(TARGETS[1], []))
        methods |= set(found.get(METHODS[1], []))
        if below.startswith(b"/"):
            targets.add(below)
    if len(targets) > 1:
        raise MalformedRequest("path", "is told in two ways, by the proxy and by its client")
    if len(methods) > 1:
        raise MalformedRequest("method", "is told in two ways, by the proxy and by its client")
    method = methods.pop().decode("latin-1") if methods else request.method
    target = targets.pop() if targets else below if below.startswith(b"/") else b"/" + below
    host = found.get(HOST, [])
    if host:
        headers = [(b"host", host[-1]), *(header for header in headers if header[0].lower() != b"host")]
    peer, headers = _peer(request.peer, headers, found, by_nginx=by_nginx)
    return Request(method, target, tuple(headers), peer)


def _peer(
    peer: str | None, headers: list[Header], found: dict[bytes, list[bytes]], *, by_nginx: bool
) -> tuple[str | None, list[Header]]:
    """Return the address that connected to the proxy, and the headers as the proxy has them.

    Proxies append the address to X-Forwarded-For, so it is the last there, and what stands before it is for the
    `trusted_proxies` of the policy to judge.
    """
    real = found.get(ADDRESS, [])
    nodes = [node.strip() for line in found.get(ADDRESSES, []) for node in line.split(b",") if node.strip()]
    if by_nginx and real:
        if nodes and nodes[-1] == real[-1].strip():  # of $proxy_add_x_forwarded_for
            nodes.pop()
        last = real[-1].strip()
    elif nodes:
        last = nodes.pop()
    elif real:
        last = real[-1].strip()
    else:
        return peer, headers
    others = [header for header in headers if header[0].lower() not in (ADDRESSES, ADDRESS)]
    if nodes:
        others.append((ADDRESSES, b", ".join(nodes)))
    return last.decode("latin-1"), others


def without(headers: Iterable[Header], names: Iterable[bytes]) -> list[Header]:
    """Return *headers* without those of *names*, which are in lower case."""
    left_out = frozenset(names)
    return [header for header in headers if header[0].lower() not in left_out]
