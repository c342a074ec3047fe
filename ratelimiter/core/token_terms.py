"""The part of a rule about language models: the API, the weight of a token, and the units to reserve."""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import StrEnum
from typing import TYPE_CHECKING

from ratelimiter.core.usage import FIGURE_MAX
from ratelimiter.core.weights import PLAIN, Weights

if TYPE_CHECKING:
    from ratelimiter.core.prices import Prices

BYTES_PER_TOKEN = 4  # of English text and JSON around it; adapts from there
MODELS_MAX = 100  # names that metrics may show


class OnDisconnect(StrEnum):
    """The course of an answer whose client has left."""

    KEEP = "keep"  # it ends, and the reservation stands
    DRAIN = "drain"  # it is read to its end, as providers bill on, and then settled


@dataclass(frozen=True, slots=True)
class EstimateTerms:
    """The terms on which a policy estimates tokens.

    Args:
        bytes_per_token: of requests, to begin with.
        output: tokens to reserve for the output of a request that sets no bound.
        unseen: tokens to reserve for input that a request refers to and does not contain.
        strict: reserve an upper bound rather than a likely number, and never less than that to make a request fit.

    Raises:
        ValueError: a value is out of range.
    """

    bytes_per_token: float = BYTES_PER_TOKEN
    output: int = 4096
    unseen: int = 10_000
    strict: bool = False

    def __post_init__(self) -> None:
        if not 0.5 <= self.bytes_per_token <= 64:
            msg = f"bytes_per_token must be 0.5 to 64, not {self.bytes_per_token}"
            raise ValueError(msg)
        for name in ("output", "unseen"):
            if not 0 <= getattr(self, name) <= FIGURE_MAX:
                msg = f"{name} must be 0 to {FIGURE_MAX}, not {getattr(self, name)}"
                raise ValueError(msg)


@dataclass(frozen=True, slots=True)
class TokenTerms:
    """The terms on which a rule counts tokens.

    Args:
        preset: name or path of the preset of the API.
        weights: units per token, where *prices* says nothing.
        prices: credits per token, by model; None if a unit is no money.
        estimate: what to reserve before the call.
        on_disconnect: the course of an answer whose client has left.
        models: names that metrics show; all others are one.
        prices_file: that *prices* was read from; empty for none.

    Raises:
        ValueError: *models* are too many.
    """

    preset: str
    weights: Weights = PLAIN
    prices: Prices | None = None
    estimate: EstimateTerms = field(default_factory=EstimateTerms)
    on_disconnect: OnDisconnect = OnDisconnect.KEEP
    models: tuple[str, ...] = ()
    prices_file: str = ""

    def __post_init__(self) -> None:
        if len(self.models) > MODELS_MAX:
            msg = f"models must be at most {MODELS_MAX}, not {len(self.models)}"
            raise ValueError(msg)

    def weights_of(self, model: str | None) -> Weights:
        """Return the units per token of *model*."""
        return self.weights if self.prices is None else self.prices.weights(model)
