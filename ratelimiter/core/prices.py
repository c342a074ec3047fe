"""Prices of models in money, and their worth in credits."""

from __future__ import annotations

from dataclasses import dataclass, field
from decimal import ROUND_CEILING, Decimal
from typing import TYPE_CHECKING

from ratelimiter.core.usage import KINDS
from ratelimiter.core.weights import SCALE, Weights

if TYPE_CHECKING:
    from collections.abc import Mapping


@dataclass(frozen=True, slots=True)
class Prices:
    """A price table: money per tokens of each model, with a credit as the unit that is charged.

    Args:
        models: model and its prices: kind and money for *per* tokens. `gpt-x*` means all models whose name begins so;
            the exact name wins, then the longest beginning.
        credit: money that one credit stands for, above 0.
        per: tokens that a price is for.

    Attributes:
        others: weights of a model that the table does not name: the highest price of each kind, so that a budget holds.

    Raises:
        ValueError: the table is empty, or a price or *credit* is out of range.
    """

    models: tuple[tuple[str, tuple[tuple[str, Decimal], ...]], ...]
    credit: Decimal
    per: int = 1_000_000
    others: Weights = field(init=False, repr=False, compare=False)
    _exact: Mapping[str, Weights] = field(init=False, repr=False, compare=False)
    _beginnings: tuple[tuple[str, Weights], ...] = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        if not self.models:
            msg = "a price table names at least one model"
            raise ValueError(msg)
        if self.credit <= 0:
            msg = f"credit must be above 0, not {self.credit}"
            raise ValueError(msg)
        weights = {model: self._weights(dict(price)) for model, price in self.models}
        beginnings = {model[:-1]: found for model, found in weights.items() if model.endswith("*")}
        set_ = object.__setattr__
        set_(self, "_exact", {model: found for model, found in weights.items() if not model.endswith("*")})
        set_(self, "_beginnings", tuple(sorted(beginnings.items(), key=lambda item: -len(item[0]))))
        set_(self, "others", _highest(list(weights.values())))

    def _weights(self, price: Mapping[str, Decimal]) -> Weights:
        return Weights(**{kind: self._credits(money) for kind, money in price.items()})

    def _credits(self, money: Decimal) -> Decimal:
        exact = money / (self.per * self.credit)
        return (exact * SCALE).to_integral_value(ROUND_CEILING) / SCALE

    def weights(self, model: str | None) -> Weights:
        """Return the credits per token of *model*; those of the dearest of each kind if it is not in the table."""
        if model is None:
            return self.others
        found = self._exact.get(model)
        if found is None:
            found = next((weights for start, weights in self._beginnings if model.startswith(start)), self.others)
        return found


def _highest(weights: list[Weights]) -> Weights:
    of = {kind: max(each.of(kind) for each in weights) for kind in KINDS}
    return Weights(**of)
