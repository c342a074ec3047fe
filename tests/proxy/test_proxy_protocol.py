"""Goal: a trusted balancer's word about the client is taken, in both versions of the PROXY protocol and before TLS, and
no other peer's. Method: headers on sockets, and the address that the upstream is told.
"""

from __future__ import annotations

import asyncio
import ipaddress
import ssl
import struct
from typing import TYPE_CHECKING, Any

import pytest

from ratelimiter.proxy.proxy_protocol import SIGNATURE, Header, parse
from ratelimiter.proxy.settings import ProxySettings
from tests.proxy.inputs import get
from tests.proxy.test_refused_uploads import new_context
from tests.proxy.wire import Client, Upstream, sidecar, until

if TYPE_CHECKING:
    from pathlib import Path

SETTINGS = ProxySettings(lame_duck_ms=0, proxy_protocol=True)
TRUSTING: dict[str, Any] = {"trusted_proxies": "127.0.0.0/8"}


def v2(client: str, command: int = 0x21, tlvs: bytes = b"") -> bytes:
    """A header of version 2 about a connection of *client*."""
    address = ipaddress.ip_address(client)
    addresses = address.packed * 2 + struct.pack("!HH", 4711, 443)
    family = 0x11 if address.version == 4 else 0x21
    return SIGNATURE + struct.pack("!BBH", command, family, len(addresses) + len(tlvs)) + addresses + tlvs


V1 = b"PROXY TCP4 203.0.113.9 10.0.0.1 4711 80\r\n"
HEADERS = {
    "v1": (V1, "203.0.113.9"),
    "v1 IPv6": (b"PROXY TCP6 2001:db8::9 ::1 4711 80\r\n", "2001:db8::9"),
    "v1 unknown": (b"PROXY UNKNOWN\r\n", "127.0.0.1"),
    "v2": (v2("203.0.113.9"), "203.0.113.9"),
    "v2 IPv6 with TLVs": (v2("2001:db8::9", tlvs=b"\x01\x00\x02h2"), "2001:db8::9"),
    "v2 of the balancer itself": (v2("203.0.113.9", command=0x20), "127.0.0.1"),
}


@pytest.mark.parametrize("name", HEADERS)
@pytest.mark.parametrize("cut", [0, 5])
async def test_the_client_is_who_the_balancer_says(name: str, cut: int) -> None:
    """However the header is cut; what follows it is HTTP, and the upstream is told the client."""
    header, client_address = HEADERS[name]
    upstream = Upstream()
    async with upstream.serving(), sidecar(upstream, bounds=SETTINGS, **TRUSTING) as proxy, proxy.client() as client:
        if cut:
            client.send(header[:cut])
            await asyncio.sleep(0.05)
        client.send(header[cut:] + get() + get())
        assert [200, 200] == [(await client.response()).status for _ in range(2)]
    assert {client_address} == {seen.value("x-forwarded-for") for seen in upstream.seen}


async def test_the_header_stands_before_tls(tmp_path: Path) -> None:
    """The handshake begins behind it."""
    trusting = ssl.create_default_context()
    trusting.check_hostname, trusting.verify_mode = False, ssl.CERT_NONE
    upstream, tls = Upstream(), new_context(tmp_path)
    async with upstream.serving(), sidecar(upstream, bounds=SETTINGS, tls=tls, **TRUSTING) as proxy:
        reader, writer = await asyncio.open_connection("127.0.0.1", proxy.port)
        writer.write(V1)
        await writer.drain()
        await writer.start_tls(trusting)
        client = Client(reader, writer)
        assert 200 == (await client.exchange(get())).status
        writer.close()
    assert ("203.0.113.9", "https") == tuple(upstream.seen[0].value(f"x-forwarded-{name}") for name in ("for", "proto"))


async def test_limits_are_the_clients() -> None:
    """Each client that comes through the balancer has its own."""
    upstream = Upstream()
    async with upstream.serving(), sidecar(upstream, bounds=SETTINGS, limit="1/hour", **TRUSTING) as proxy:
        for client_address, status in (("203.0.113.1", 200), ("203.0.113.1", 429), ("203.0.113.2", 200)):
            async with proxy.client() as client:
                client.send(v2(client_address))
                assert status == (await client.exchange(get())).status


async def test_nobody_elses_word_is_taken() -> None:
    """From a peer that is not trusted such a header is a malformed request, and a connection has none."""
    async with Upstream().serving() as upstream, sidecar(upstream, bounds=SETTINGS) as proxy:
        for raw, status in ((V1 + get(), 400), (v2("203.0.113.9") + get(), 400), (get(), 200)):
            async with proxy.client() as client:
                assert status == (await client.exchange(raw)).status
    assert ["127.0.0.1"] == [seen.value("x-forwarded-for") for seen in upstream.seen]


@pytest.mark.parametrize(
    "raw",
    [
        get(), b"PROXY TCP4 203.0.113.9\r\n", b"PROXY TCP4 2001:db8::9 ::1 1 2\r\n", b"PROXY TCP4 a b c d\r\n",
        b"PROXY X" * 99, SIGNATURE + b"\x31\x11\x00\x0c" + bytes(12), SIGNATURE + b"\x21\x11\x00\x04" + bytes(4),
        SIGNATURE + b"\x21\x11\xff\xff" + bytes(12),
    ],
)  # fmt: skip
async def test_a_trusted_peer_that_says_nothing_is_refused(raw: bytes) -> None:
    """Else any client behind it could say what it likes (section 5 of the specification)."""
    upstream = Upstream()
    async with upstream.serving(), sidecar(upstream, bounds=SETTINGS, **TRUSTING) as proxy, proxy.client() as client:
        client.send(raw)
        assert b"" == await client.closed()
    assert [] == upstream.seen


async def test_a_header_that_does_not_come_is_not_waited_for() -> None:
    """Longer than a head is."""
    settings = ProxySettings(lame_duck_ms=0, proxy_protocol=True, head_timeout_ms=200)
    upstream = Upstream()
    async with upstream.serving(), sidecar(upstream, bounds=settings, **TRUSTING) as proxy, proxy.client() as client:
        client.send(b"PRO")
        assert b"" == await client.closed()
        await until(lambda: not len(proxy.service), "it is gone")


@pytest.mark.parametrize("raw", [V1, v2("203.0.113.9"), v2("2001:db8::9", tlvs=bytes(99))])
def test_a_header_is_known_at_its_last_byte(raw: bytes) -> None:
    """Not before, and nothing behind it matters."""
    assert [None] * (len(raw) - 1) == [parse(raw[:size]) for size in range(1, len(raw))]
    assert parse(raw) == parse(raw + b"GET / HTTP/1.1\r\n") == Header(len(raw), parse(raw + b"x").client)  # type: ignore[union-attr]
