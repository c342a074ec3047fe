from __future__ import annotations

import re
from ipaddress import ip_network

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ratelimiter.core.override_index import OverrideIndex
from ratelimiter.core.overrides import FOR_EVER, NO_OVERRIDES, Block, Override, RuntimeOverrides, parse_pattern

letters = st.text("ab*", max_size=6)


@pytest.mark.parametrize(
    ("pattern", "fitting", "others"),
    [
        ("batch-*", [b"batch-", b"batch-1", b"batch-\xff"], [b"batch", b"xbatch-1", b"Batch-1"]),
        ("*-eu", [b"-eu", b"a-eu"], [b"a-eu1", b"eu"]),
        ("a*b*c", [b"abc", b"a1b2c", b"abbc"], [b"ac", b"acb", b"ab"]),
        ("aa*aa", [b"aaaa", b"aaxaa"], [b"aaa", b"aa"]),
        ("*", [b"", b"anything"], []),
        ("a.*", [b"a.", b"a.b"], [b"ab"]),
    ],
)
def test_patterns(pattern: str, fitting: list[bytes], others: list[bytes]) -> None:
    """A star stands for any bytes, none included; nothing else is special, and case counts."""
    parsed = parse_pattern(pattern)
    assert parsed is not None
    assert fitting == [value for value in (*fitting, *others) if parsed.fits(value)]


@given(letters, st.text("abc", max_size=8))
def test_patterns_are_as_a_regular_expression_has_them(pattern: str, value: str) -> None:
    """Held against the standard library's matcher."""
    parsed = parse_pattern(pattern)
    expected = re.fullmatch(".*".join(map(re.escape, pattern.split("*"))), value) is not None
    if parsed is None:
        assert "*" not in pattern
    else:
        assert expected == parsed.fits(value.encode())


def test_no_pattern() -> None:
    """Without a star it is one value."""
    assert parse_pattern("alice") is None


@pytest.mark.parametrize("text", ["*" * 9, "a*" + "b" * 256])
def test_patterns_have_bounds(text: str) -> None:
    """None takes long to compare."""
    with pytest.raises(ValueError, match="write a shorter one"):
        parse_pattern(text)


def test_orders_end_by_themselves() -> None:
    """At its moment an order no longer holds; one without never ends."""
    lasting = Override(frozenset({"a"}), plan="x")
    orders = RuntimeOverrides(
        "v",
        (Override(frozenset({"b"}), plan="x", until_ms=100), lasting),
        (Block("c", 200), Block("d", FOR_EVER)),
        shadow=True,
        shadow_until_ms=300,
    )
    assert (100, 200, 300) == orders.ends_ms
    assert orders == orders.at(99)
    assert (lasting,) == orders.at(100).overrides
    assert (Block("d", FOR_EVER),) == orders.at(200).blocks
    assert [True, False] == [orders.at(299).shadow, orders.at(300).shadow]
    assert NO_OVERRIDES == NO_OVERRIDES.at(10**15)


def test_orders_that_know_their_ends_are_not_searched() -> None:
    """The reader of fifty thousand overrides gives their moments along; they are the ones that count."""
    orders = RuntimeOverrides("v", (Override(frozenset({"a"}), until_ms=100),), moments=(100,))

    assert (100,) == orders.ends_ms
    assert () == orders.at(100).overrides


def client(address: str) -> tuple[str, str, bytes]:
    return f"digest of {address}", "client", address.encode()


NETWORK = ip_network("10.0.0.0/8")


def test_overrides_are_found_by_whom_they_name() -> None:
    """A principal by its digest, an address by its network, anything else by a pattern of its own source."""
    exact = Override(frozenset({"digest of 10.0.0.1"}))
    network = Override(frozenset({"n"}), network=NETWORK)
    pattern = Override(frozenset({"p"}), parse_pattern("k*"), source="header:x-api-key")
    anywhere = Override(frozenset({"q"}), parse_pattern("*0.1"))
    index = OverrideIndex([exact, network, pattern, anywhere])

    assert [exact, network, anywhere] == index.find(*client("10.0.0.1"))
    assert [network] == index.find(*client("10.0.0.2"))
    assert [] == index.find(*client("192.0.2.9"))
    assert [pattern] == index.find("d", "header:x-api-key", b"k1")
    assert [] == index.find("d", "bearer", b"k1")
    assert [] == index.find("d", "header:x-api-key", b"10.0.0.2")


@pytest.mark.parametrize(
    ("digest", "source", "value", "now_ms", "expected"),
    [
        ("a", "bearer", b"a", 99, 100),
        ("a", "bearer", b"a", 100, None),
        ("b", "bearer", b"b", 0, None),
        ("c", "client", b"10.0.0.1", 10**15, FOR_EVER),
        ("c", "client", b"192.0.2.1", 0, None),
        ("c", "header:x-api-key", b"10.0.0.1", 0, None),
        ("a", "client", b"10.0.0.1", 100, FOR_EVER),
    ],
)
def test_blocks_of_principals_and_networks(
    digest: str, source: str, value: bytes, now_ms: int, expected: int | None
) -> None:
    """A block holds until its moment, for the principal or for every client of the network, and for no other."""
    blocks = OverrideIndex((), [Block("a", 100), Block("n", FOR_EVER, NETWORK)]).blocks

    assert blocks
    assert expected == blocks.until_ms(digest, source, value, now_ms)
    assert not OverrideIndex().blocks
