"""Networks are found by the longest prefix, whatever form an address or a network is written in."""

from __future__ import annotations

import ipaddress

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ratelimiter.core.client_address import client_id, parse_address
from ratelimiter.core.prefix_table import PrefixTable, parse_network


def found(table: PrefixTable[str], address: str, ipv6_prefix: int = 64) -> list[str]:
    return table.find(client_id(parse_address(address), ipv6_prefix))


def table_of(*networks: str, ipv6_prefix: int = 64) -> PrefixTable[str]:
    return PrefixTable((parse_network(network, ipv6_prefix), network) for network in networks)


def test_the_longest_prefix_comes_first() -> None:
    """All networks that hold an address, the smallest first; none for one outside, nor for a unix socket."""
    table = table_of("10.0.0.0/8", "0.0.0.0/0", "10.1.0.0/16", "10.1.2.3/32", "2001:db8::/32", "::/0")

    assert ["10.1.2.3/32", "10.1.0.0/16", "10.0.0.0/8", "0.0.0.0/0"] == found(table, "10.1.2.3")
    assert ["10.0.0.0/8", "0.0.0.0/0"] == found(table, "10.2.0.1")
    assert ["0.0.0.0/0"] == found(table, "11.0.0.0")
    assert ["2001:db8::/32", "::/0"] == found(table, "2001:db8:ffff::1")
    assert [] == PrefixTable[str]().find("10.0.0.1") == table.find("local")
    assert not PrefixTable[str]()


@pytest.mark.parametrize(
    "address", ["203.0.113.9", "::ffff:203.0.113.9", "64:ff9b::203.0.113.9", "2002:cb00:7109::1", "203.0.113.9:4711"]
)
@pytest.mark.parametrize(
    "network", ["203.0.113.0/24", "::ffff:203.0.113.0/120", "64:ff9b::203.0.113.0/120", "2002:cb00:7100::/40"]
)
def test_no_form_slips_through(address: str, network: str) -> None:
    """An IPv4 address is in its network, however both are written: plain, mapped, NAT64 or 6to4."""
    assert [network] == found(table_of(network), address)
    assert [] == found(table_of(network), "203.0.114.9")


@pytest.mark.parametrize(
    ("text", "ipv6_prefix", "hint"),
    [
        ("10.0.0.1/8", 64, "write 10.0.0.0/8"),
        ("2001:db8::1/64", 64, "write 2001:db8::/64"),
        ("10.0.0.0/33", 64, "write one like"),
        ("ten/8", 64, "write one like"),
        ("2001:db8::/96", 64, r"write 2001:db8::/64"),
        ("2001:db8::/64", 56, r"write 2001:db8::/56"),
        ("64:ff9b::/96", 64, "write the IPv4 network"),
        ("2002::/16", 64, "write the IPv4 network"),
    ],
)
def test_what_cannot_be_honoured_is_refused(text: str, ipv6_prefix: int, hint: str) -> None:
    """Host bits, no network at all, less than one client, and forms that are charged as something else."""
    with pytest.raises(ValueError, match=hint):
        parse_network(text, ipv6_prefix)


@given(st.lists(st.tuples(st.integers(0, 2**32 - 1), st.integers(0, 32)), max_size=20), st.integers(0, 2**32 - 1))
def test_agrees_with_a_scan(rows: list[tuple[int, int]], address: int) -> None:
    """What is found is what a comparison with every network finds, the longest prefix first."""
    networks = [ipaddress.IPv4Network((start, length), strict=False) for start, length in rows]
    table: PrefixTable[ipaddress.IPv4Network] = PrefixTable((network, network) for network in networks)
    holding = [network for network in networks if ipaddress.IPv4Address(address) in network]

    assert sorted(holding, key=lambda network: -network.prefixlen) == table.find(str(ipaddress.IPv4Address(address)))


def test_fifty_thousand_networks_cost_a_look_up_per_length() -> None:
    """A look-up touches one dictionary per prefix length, not the networks: counted, not timed."""
    networks = [ipaddress.IPv4Network((number << 12, 20 + number % 3), strict=False) for number in range(50_000)]
    table: PrefixTable[int] = PrefixTable((network, number) for number, network in enumerate(networks))

    assert [20, 21, 22] == sorted({length for version, length in table._values if version == 4})
    assert 3 == len(table._values)
    assert table.find(str(networks[40_000][1]))


def test_a_network_smaller_than_a_client_is_none_of_its() -> None:
    """One IPv6 client is a whole /64: a table made for finer clients does not hold it in a part of itself."""
    table = table_of("2001:db8::/80", "2001:db8::/48", ipv6_prefix=128)

    assert ["2001:db8::/48"] == found(table, "2001:db8::1", 64)
    assert ["2001:db8::/80", "2001:db8::/48"] == found(table, "2001:db8::1", 128)
