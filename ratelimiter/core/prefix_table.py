"""Values of networks, found by the longest prefix."""

from __future__ import annotations

import ipaddress
from typing import TYPE_CHECKING, Generic, TypeVar

from ratelimiter.core.client_address import IPV4_INSIDE, LOCAL, Network

if TYPE_CHECKING:
    from collections.abc import Iterable

Value = TypeVar("Value")

BITS = {4: 32, 6: 128}


class PrefixTable(Generic[Value]):
    """Networks and their values. A look-up costs one dictionary access for each prefix length that occurs, however many
    networks there are.

    Args:
        rows: networks with their values; several of one network keep their order.
    """

    __slots__ = ("_lengths", "_values")

    def __init__(self, rows: Iterable[tuple[Network, Value]] = ()) -> None:
        self._values: dict[tuple[int, int], dict[int, list[Value]]] = {}  # by version and prefix length, by prefix
        self._lengths: dict[int, list[int]] = {4: [], 6: []}  # prefix lengths that occur, the longest first
        for network, value in rows:
            self.add(network, value)

    def __bool__(self) -> bool:
        """Return True if there is a network."""
        return bool(self._values)

    def add(self, network: Network, value: Value) -> None:
        """Add a network."""
        version, length = network.version, network.prefixlen
        values = self._values.get((version, length))
        if values is None:
            values = self._values[version, length] = {}
            self._lengths[version] = sorted((*self._lengths[version], length), reverse=True)
        prefix = int(network.network_address) >> (BITS[version] - length)
        values.setdefault(prefix, []).append(value)

    def find(self, client: str) -> list[Value]:
        """Return the values of all networks that hold *client*, those of the longest prefix first.

        Args:
            client: what `client_id` makes of an address: an address, an IPv6 network of one client, or `local`.
        """
        if client == LOCAL:
            return []
        network = ipaddress.ip_network(client)
        version, address = network.version, int(network.network_address)
        found: list[Value] = []
        for length in self._lengths[version]:
            if length <= network.prefixlen:
                found += self._values[version, length].get(address >> (BITS[version] - length), ())
        return found


def parse_network(text: str, ipv6_prefix: int) -> Network:
    """Read a network of clients in CIDR notation.

    A network of IPv4-mapped, NAT64 (64:ff9b::/96) or 6to4 (2002::/16) addresses is the IPv4 network inside it, as their
    clients are charged by that address.

    Args:
        text: like `10.0.0.0/8` or `2001:db8::/32`.
        ipv6_prefix: the bits of an IPv6 address that name one client.

    Raises:
        ValueError: it is not a network, has host bits, or tells apart addresses that are one client.
    """
    try:
        network = ipaddress.ip_network(text)
    except ValueError:
        try:
            whole = ipaddress.ip_network(text, strict=False)
        except ValueError:
            msg = "this is not a network; write one like 10.0.0.0/8 or 2001:db8::/32"
            raise ValueError(msg) from None
        msg = f"the network has bits behind its prefix; write {whole}"
        raise ValueError(msg) from None
    if isinstance(network, ipaddress.IPv4Network):
        return network
    for outer, means_all in IPV4_INSIDE:
        if network.subnet_of(outer):
            length = min(32, network.prefixlen - outer.prefixlen)
            if not length and not means_all:
                msg = f"clients in {outer} are charged by the IPv4 address inside; write the IPv4 network"
                raise ValueError(msg)
            inside = (int(network.network_address) >> (128 - outer.prefixlen - 32)) & 0xFFFFFFFF
            return ipaddress.IPv4Network((inside, length))
    if network.prefixlen > ipv6_prefix:
        whole = network.supernet(new_prefix=ipv6_prefix)
        msg = f"this is finer than the /{ipv6_prefix} of one client (ipv6_prefix); write {whole}"
        raise ValueError(msg)
    return network
