"""What a rule says of tokens, and what it refuses to say."""

from __future__ import annotations

from decimal import Decimal
from typing import Any

import pytest

from ratelimiter.core.prices import Prices
from ratelimiter.core.token_terms import MODELS_MAX, EstimateTerms, TokenTerms
from ratelimiter.core.usage import FIGURE_MAX, Usage
from ratelimiter.core.weights import Weights


@pytest.mark.parametrize(
    ("settings", "problem"),
    [
        ({"bytes_per_token": 0.4}, "bytes_per_token must be 0.5 to 64, not 0.4"),
        ({"bytes_per_token": 65}, "bytes_per_token must be 0.5 to 64, not 65"),
        ({"output": -1}, "output must be 0 to 1000000000, not -1"),
        ({"unseen": FIGURE_MAX + 1}, "unseen must be 0 to 1000000000, not 1000000001"),
    ],
)
def test_estimates_refuse_nonsense(settings: dict[str, Any], problem: str) -> None:
    """A reservation of a wrong size would admit too much or nothing at all."""
    with pytest.raises(ValueError, match=f"^{problem}$"):
        EstimateTerms(**settings)


def test_the_bounds_themselves_are_allowed() -> None:
    """Each bound that a message names is a value that does."""
    assert EstimateTerms(0.5, 0, FIGURE_MAX) == EstimateTerms(bytes_per_token=0.5, output=0, unseen=FIGURE_MAX)
    assert 64 == EstimateTerms(64, FIGURE_MAX, 0).bytes_per_token


def test_metrics_show_a_bounded_number_of_models() -> None:
    """Each model is a time series; more of them than the bound are refused when the policy is read."""
    models = tuple(f"m{number}" for number in range(MODELS_MAX + 1))

    assert models[1:] == TokenTerms("openai", models=models[1:]).models
    with pytest.raises(ValueError, match="models must be at most 100, not 101"):
        TokenTerms("openai", models=models)


def test_a_token_is_worth_what_its_model_costs() -> None:
    """Without prices every model has the rule's weights; with them an unnamed model costs as much as the dearest."""
    weights = Weights(output=Decimal(4))
    prices = Prices(
        (
            ("small", (("input", Decimal(1)), ("output", Decimal(2)))),
            ("large", (("input", Decimal(3)), ("output", Decimal(6)))),
        ),
        credit=Decimal("0.000001"),
    )
    used = Usage(10, 100)

    plain, priced = TokenTerms("openai", weights), TokenTerms("openai", weights, prices)
    assert [410, 410, 410] == [plain.weights_of(model).units(used) for model in ("small", "large", None)]
    assert [210, 630, 630, 630] == [
        priced.weights_of(model).units(used) for model in ("small", "large", "unheard-of", None)
    ]
