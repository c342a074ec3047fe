"""The request that a policy would have seen, made from a record."""

from __future__ import annotations

from typing import TYPE_CHECKING
from urllib.parse import quote

from ratelimiter.core.request import Request
from ratelimiter.replay.needs import header_sources

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from ratelimiter.core.policy import Policy
    from ratelimiter.replay.record import Record

_ASCII = "".join(map(chr, range(0x21, 0x7F)))  # what a target keeps as it was logged


def target_bytes(target: str) -> bytes:
    """Return *target* as it was sent: what servers log decoded (IIS) is encoded again."""
    if target.isascii():
        return target.encode()
    return quote(target, safe=_ASCII, errors="surrogateescape").encode()


def request_maker(policy: Policy, wanted: Iterable[str], *, named: bool) -> Callable[[Record], Request]:
    """Return the function that makes a request of a record.

    Args:
        policy: judges it.
        wanted: lower-case names of the headers that the policy reads; others are left out.
        named: the records name their callers.
    """
    names = frozenset(wanted)
    forwards = policy.trust.anyone and policy.trust.header in ("x-forwarded-for", "forwarded")
    header = policy.trust.header.encode()
    agents, referers, hosts = "user-agent" in names, "referer" in names, "host" in names
    sources = header_sources(policy) if named else []
    carriers = sorted({*sources, "x-replay-principal"}) if named else []
    plain = not (agents or referers or hosts or named)

    def make(record: Record) -> Request:
        client = record[4]
        told = record[12]
        if plain and not told and not (forwards and record[5]):
            return Request(record[1], target_bytes(record[2]), (), client)
        headers = [(name.encode(), _bytes(value)) for name, value in told if name in names]
        if forwards and record.forwarded:
            client, nodes = _peer(client, record.forwarded)
            if nodes:
                headers.append((header, (nodes if header != b"forwarded" else _forwarded(nodes)).encode()))
        for asked, name, value in (
            (agents, b"user-agent", record.agent),
            (referers, b"referer", record.referer),
            (hosts, b"host", record.host),
        ):
            if asked and value is not None:
                headers.append((name, _bytes(value)))
        if named and record.principal is not None:
            present = {name for name, _ in headers}
            for carrier in carriers:
                if carrier.encode() not in present:
                    value = record.principal if carrier != "authorization" else f"Bearer {record.principal}"
                    headers.append((carrier.encode(), _bytes(value)))
        return Request(record.method, target_bytes(record.target), tuple(headers), client)

    return make


def _bytes(value: str) -> bytes:
    return value.encode("utf-8", "surrogateescape")


def _peer(client: str | None, forwarded: str) -> tuple[str | None, str]:
    """Return the peer and the addresses that it passed on.

    Where the log has one list only, its last address is that of the nearest proxy that is known.
    """
    first, comma, _ = forwarded.partition(",")
    if client is None or first.strip() == client:
        nodes, _, last = forwarded.rpartition(",")
        return last.strip(), nodes if comma else ""
    return client, forwarded


def _forwarded(nodes: str) -> str:
    return ", ".join(f'for="{node.strip()}"' for node in nodes.split(","))
