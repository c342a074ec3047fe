"""Units from tokens, by weights and by prices: each token once, rounded up once."""

from __future__ import annotations

from decimal import Decimal
from fractions import Fraction
from math import ceil

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ratelimiter.core.prices import Prices
from ratelimiter.core.usage import Usage, usage_of
from ratelimiter.core.weights import PLAIN, Weights

weight = st.decimals(0, 1000, places=6)
usages = st.builds(usage_of, *[st.integers(0, 10**6)] * 5)


@given(usage=usages)
def test_without_weights_a_unit_is_a_token(usage: Usage) -> None:
    """Parts add nothing: the units are input and output."""
    assert usage.total == PLAIN.units(usage)


@given(usage=usages, input_=weight, output=weight, parts=st.tuples(*[weight | st.none()] * 3))
def test_each_token_is_weighed_once(
    usage: Usage, input_: Decimal, output: Decimal, parts: tuple[Decimal | None, ...]
) -> None:
    """Units are the exact sum over disjoint kinds, rounded up."""
    cached, creation, reasoning = parts
    found = Weights(input_, output, cached, creation, reasoning).units(usage)

    def of(each: Decimal | None, other: Decimal) -> Fraction:
        return Fraction(other if each is None else each)

    exact = (
        (usage.input - usage.cached - usage.cache_creation) * Fraction(input_)
        + usage.cached * of(cached, input_)
        + usage.cache_creation * of(creation, input_)
        + (usage.output - usage.reasoning) * Fraction(output)
        + usage.reasoning * of(reasoning, output)
    )
    assert min(ceil(exact), 10**9) == found


@given(usage=usages, input_=weight, output=weight, creation=weight)
def test_what_is_reserved_covers_the_usage(usage: Usage, input_: Decimal, output: Decimal, creation: Decimal) -> None:
    """Reserving the tokens of a usage without knowing their kinds is never less than the usage costs."""
    weights = Weights(input_, output, cached=Decimal(0), cache_creation=creation)

    assert weights.units(usage) <= weights.reserved(usage.input, usage.output)


@pytest.mark.parametrize("bad", ["-1", "1000001", "0.0000001"])
def test_a_weight_out_of_range_is_refused(bad: str) -> None:
    """A weight is 0 to 1,000,000 with at most six decimals."""
    with pytest.raises(ValueError, match="output must be 0 to 1000000"):
        Weights(output=Decimal(bad))


PRICES = Prices(
    (
        ("gpt-x", (("input", Decimal("2.5")), ("output", Decimal(10)), ("cached", Decimal("0.25")))),
        ("gpt-x-mini*", (("input", Decimal("0.15")), ("output", Decimal("0.6")))),
        ("gpt-*", (("input", Decimal(5)), ("output", Decimal(5)))),
    ),
    credit=Decimal("0.0001"),
)


@pytest.mark.parametrize(
    ("model", "input_", "output"),
    [
        ("gpt-x", "0.025", "0.1"),
        ("gpt-x-mini-2026", "0.0015", "0.006"),
        ("gpt-x-large", "0.05", "0.05"),
        ("claude", "0.05", "0.1"),
        (None, "0.05", "0.1"),
    ],
)
def test_prices_come_to_credits(model: str | None, input_: str, output: str) -> None:
    """The exact name wins, then the longest beginning; a model without a price costs the highest of the table."""
    weights = PRICES.weights(model)

    assert (Decimal(input_), Decimal(output)) == (weights.input, weights.output)


def test_a_call_in_money() -> None:
    """A million tokens in, half of them cached, and 100,000 out cost 2.375 in money: 23,750 credits of 0.0001."""
    assert 23_750 == PRICES.weights("gpt-x").units(Usage(1_000_000, 100_000, 500_000))


def test_an_empty_table_is_refused() -> None:
    """A table without a price would make every model free."""
    with pytest.raises(ValueError, match="at least one model"):
        Prices((), Decimal(1))
    with pytest.raises(ValueError, match="credit must be above 0"):
        Prices((("a", (("input", Decimal(1)),)),), Decimal(0))
