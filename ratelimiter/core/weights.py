"""The units that a token costs, by its kind. Exact, in millionths, and rounded up once."""

from __future__ import annotations

from dataclasses import dataclass, field
from decimal import Decimal
from typing import TYPE_CHECKING

from ratelimiter.core.usage import FIGURE_MAX, KINDS

if TYPE_CHECKING:
    from collections.abc import Mapping

    from ratelimiter.core.usage import Usage

SCALE = 1_000_000  # a weight has six decimals
WEIGHT_MAX = 1_000_000


@dataclass(frozen=True, slots=True)
class Weights:
    """Units per token of each kind.

    Args:
        input: of what the model read.
        output: of what it made.
        cached: of input that came from a cache; None for that of *input*.
        cache_creation: of input that was written to a cache; None for that of *input*.
        reasoning: of output that was reasoning; None for that of *output*.

    Raises:
        ValueError: a weight is outside 0 to 1,000,000, or has more than six decimals.
    """

    input: Decimal = Decimal(1)
    output: Decimal = Decimal(1)
    cached: Decimal | None = None
    cache_creation: Decimal | None = None
    reasoning: Decimal | None = None
    _scaled: Mapping[str, int] = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        scaled: dict[str, int] = {}
        for kind in KINDS:
            weight = getattr(self, kind)
            if weight is None:
                weight = self.output if kind == "reasoning" else self.input
            if not 0 <= weight <= WEIGHT_MAX or weight * SCALE != int(weight * SCALE):
                msg = f"{kind} must be 0 to {WEIGHT_MAX} with at most six decimals, not {weight}"
                raise ValueError(msg)
            scaled[kind] = int(weight * SCALE)
        object.__setattr__(self, "_scaled", scaled)

    def units(self, usage: Usage) -> int:
        """Return the units that *usage* costs, each token counted once; at most 10^9, rounded up."""
        weight = self._scaled
        plain_input = usage.input - usage.cached - usage.cache_creation
        sum_ = (
            plain_input * weight["input"]
            + usage.cached * weight["cached"]
            + usage.cache_creation * weight["cache_creation"]
            + (usage.output - usage.reasoning) * weight["output"]
            + usage.reasoning * weight["reasoning"]
        )
        return min(-(-sum_ // SCALE), FIGURE_MAX)

    def of(self, kind: str) -> Decimal:
        """Return the units of a token of *kind*, one of `KINDS`."""
        return Decimal(self._scaled[kind]) / SCALE

    @property
    def of_input_max(self) -> int:
        """The most that a token of input can cost, in millionths."""
        return max(self._scaled["input"], self._scaled["cache_creation"])

    @property
    def of_output_max(self) -> int:
        """The most that a token of output can cost, in millionths."""
        return max(self._scaled["output"], self._scaled["reasoning"])

    def reserved(self, input_: int, output: int) -> int:
        """Return the units to reserve for so many tokens whose kinds are not known yet; at most 10^9."""
        sum_ = input_ * self.of_input_max + output * self.of_output_max
        return min(-(-sum_ // SCALE), FIGURE_MAX)


PLAIN = Weights()
