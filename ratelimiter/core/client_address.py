"""The address of the client: its own, or the one that a trusted proxy names for it."""

from __future__ import annotations

import ipaddress
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable

HOPS_MAX = 32  # addresses read from the right of a forwarding header; more is an attack, not a path
IPV6_PREFIX = 64  # one subscriber's network at least (RFC 6177 section 2), so rotating within it is no escape

_NAT64 = ipaddress.IPv6Network("64:ff9b::/96")  # RFC 6052 section 2.1: the IPv4 address is in the last 32 bits
LOCAL = "local"  # the client at the other end of a unix socket

# IPv6 networks whose clients are charged by the IPv4 address behind the prefix; and whether all of one is all of IPv4.
IPV4_INSIDE = (
    (ipaddress.IPv6Network("::ffff:0:0/96"), True),
    (_NAT64, False),
    (ipaddress.IPv6Network("2002::/16"), False),  # 6to4, RFC 3056
)

Network = ipaddress.IPv4Network | ipaddress.IPv6Network
Address = ipaddress.IPv4Address | ipaddress.IPv6Address


@dataclass(frozen=True, slots=True)
class Trust:
    """The proxies whose word about the client's address is taken.

    Args:
        proxies: networks of proxies; the client is the first address from the right that is in none of them.
        hops: or, where proxies have no fixed addresses: how many of them stand before us.
        header: `x-forwarded-for`, `forwarded` (RFC 7239), or a header of one address such as `x-real-ip`.
        ipv6_prefix: bits of an IPv6 address that name one client, 32 to 128.

    Raises:
        ValueError: both *proxies* and *hops* are given, or a number is out of range.
    """

    proxies: tuple[Network, ...] = ()
    hops: int = 0
    header: str = "x-forwarded-for"
    ipv6_prefix: int = IPV6_PREFIX

    def __post_init__(self) -> None:
        object.__setattr__(self, "header", self.header.lower())
        if self.proxies and self.hops:
            msg = "trusted_proxies and trusted_hops exclude each other"
            raise ValueError(msg)
        if not 0 <= self.hops <= HOPS_MAX:
            msg = f"trusted_hops must be 0 to {HOPS_MAX}, not {self.hops}"
            raise ValueError(msg)
        if not 32 <= self.ipv6_prefix <= 128:
            msg = f"ipv6_prefix must be 32 to 128, not {self.ipv6_prefix}"
            raise ValueError(msg)

    @property
    def anyone(self) -> bool:
        """True if any forwarding header is read at all."""
        return bool(self.proxies or self.hops)

    def trusts_peer(self, peer: str | None) -> bool:
        """Return whether *peer*, the address of a socket's other end or None for a unix socket, may name others."""
        if peer is None or self.hops:
            return self.anyone
        address = parse_address(peer)
        return address is not None and self.trusts(address)

    def trusts(self, address: Address) -> bool:
        """Return whether *address* is one of the proxies."""
        return any(address in network for network in self.proxies if network.version == address.version)


def parse_address(text: str) -> Address | None:
    """Return the address that *text* names, decided by its bits and not its notation; None when it names none.

    Takes off a port, brackets, quotes and an IPv6 zone. An IPv4-mapped address is the IPv4 address inside it.
    """
    text = text.strip().strip('"')
    if text.startswith("["):
        text = text[1:].partition("]")[0]
    elif text.count(":") == 1:
        text = text.partition(":")[0]
    text = text.partition("%")[0]
    try:
        address = ipaddress.ip_address(text)
    except ValueError:
        return None
    return (address.ipv4_mapped or address) if isinstance(address, ipaddress.IPv6Address) else address


def forwarded_for(values: Iterable[str], header: str) -> list[str]:
    """Return the node names that forwarding headers list, left to right, at most the last `HOPS_MAX` of them."""
    joined = ",".join(values)
    if header != "forwarded":
        return [item.strip() for item in joined.split(",")[-HOPS_MAX:]]
    nodes = []
    for element in joined.split(",")[-HOPS_MAX:]:  # a quoted comma is in no valid node name (RFC 7239 section 6)
        pairs = (pair.partition("=") for pair in element.split(";"))
        nodes.append(next((value.strip() for name, _, value in pairs if name.strip().lower() == "for"), ""))
    return nodes


def resolve_client(peer: str | None, nodes: list[str], trust: Trust) -> Address | None:
    """Return the client's address, walking from the right: each proxy appends, so only the tail is of trusted hosts.

    The walk stops before the first node that is no address, and never skips over it.

    Returns None when the peer has no address: a unix socket.
    """
    client = parse_address(peer) if peer is not None else None
    if not trust.anyone:
        return client
    if trust.hops:
        # The nearest proxy is the peer and the node it wrote is the last: the client is hops from the right.
        named = parse_address(nodes[-trust.hops]) if len(nodes) >= trust.hops else None
        return named or client
    # A unix socket's other end is on this machine, as the proxy that trusted_proxies speaks of must be.
    for node in reversed(nodes):
        if client is not None and not trust.trusts(client):
            break
        address = parse_address(node)
        if address is None:
            break
        client = address
    return client


def client_id(address: Address | None, ipv6_prefix: int) -> str:
    """Return the part of *address* that names one client: all of IPv4, the prefix of IPv6, `local` for a unix socket.

    NAT64 (64:ff9b::/96) and 6to4 addresses are charged as the IPv4 address inside them: the prefix would put all of
    IPv4 into one bucket, or give one caller 65,536 of them. They are not trusted as that address (`Trust.trusts`).
    """
    if isinstance(address, ipaddress.IPv6Address):
        if address in _NAT64:
            return str(ipaddress.IPv4Address(int(address) & 0xFFFFFFFF))
        if address.sixtofour is not None:
            return str(address.sixtofour)
        if ipv6_prefix < 128:
            return str(ipaddress.ip_network((address, ipv6_prefix), strict=False))
    return str(address) if address is not None else LOCAL
