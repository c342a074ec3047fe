from __future__ import annotations

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

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
