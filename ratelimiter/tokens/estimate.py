"""The tokens of a request, estimated before the call from its bytes and from what it asks for."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from ratelimiter.core.usage import FIGURE_MAX

if TYPE_CHECKING:
    from ratelimiter.core.token_terms import EstimateTerms
    from ratelimiter.core.weights import Weights
    from ratelimiter.tokens.request_reader import Wanted

KIB = 1024
SPREAD = 2  # the ratio stays within this factor of where it began, so that no caller can bend it further
SCALE = 4096  # of the numbers that ratios are kept as
# A ratio follows answers with more tokens than it said at once, and others slowly: it is to be about the highest of the
# usual ones, as the dense texts of one caller would else overdraw the window.
RISE, FALL = 4, 64
OBSERVED_BYTES_MIN = 64  # of a request whose answer teaches something; shorter ones are mostly names and braces
MODELS_MAX = 64  # whose ratios are kept apart; later ones share one, so that invented names cost no memory
OTHER_MODELS = ""


class Estimate(NamedTuple):
    """Tokens that a request may use."""

    input: int  # guessed
    output: int  # bound that the request sets, or the policy for it
    bounded: bool  # the request itself has set it


class Estimator:
    """Guesses for the requests of one rule, and learns from their answers.

    Args:
        terms: of the policy.
    """

    __slots__ = ("_first", "_highest", "_lowest", "_per_kib", "terms")

    def __init__(self, terms: EstimateTerms) -> None:
        self.terms = terms
        self._first = max(1, round(KIB / terms.bytes_per_token))
        self._lowest = max(1, self._first // SPREAD)
        self._highest = self._first * SPREAD
        self._per_kib: dict[str, int] = {}  # by model, tokens in 1,024 bytes times `SCALE`

    def estimate(self, wanted: Wanted, size: int) -> Estimate:
        """Return what a request will use.

        Args:
            wanted: what it asks for.
            size: bytes of its body.
        """
        terms = self.terms
        counted = -(-size * self._rate(wanted.model) // (KIB * SCALE))
        if wanted.unseen:
            counted += terms.unseen
        output = terms.output if wanted.output is None else wanted.output
        return Estimate(
            min(counted, FIGURE_MAX), min(output * wanted.times, FIGURE_MAX), bounded=wanted.output is not None
        )

    def _rate(self, model: str | None) -> int:
        if self.terms.strict:
            return self._highest * SCALE
        known = self._per_kib
        return known.get(model or OTHER_MODELS) or known.get(OTHER_MODELS) or self._first * SCALE

    def observe(self, wanted: Wanted, size: int, input_: int) -> None:
        """Learn from an answer: a request of *size* bytes was *input_* tokens."""
        if size < OBSERVED_BYTES_MIN or wanted.unseen:
            return
        model = wanted.model or OTHER_MODELS
        known = self._per_kib
        if model not in known and len(known) >= MODELS_MAX:
            model = OTHER_MODELS
        before = known.get(model, self._first * SCALE)
        seen = min(max(input_ * KIB // size, self._lowest), self._highest)
        change = seen * SCALE - before
        known[model] = before + (change // RISE if change > 0 else -(-change // FALL))

    def ratio(self, model: str | None) -> float:
        """Return the bytes per token that requests to *model* are guessed by now."""
        return KIB * SCALE / self._rate(model)


def reserved_units(estimate: Estimate, weights: Weights, capacity: int, *, strict: bool) -> int:
    """Return the units to reserve.

    A guess must not refuse for good what might fit: the guessed part is cut to what *capacity* leaves. What the request
    itself allows as output is not: if that alone exceeds *capacity*, so does the result, and the request never fits.

    Args:
        estimate: tokens.
        weights: units per token.
        capacity: the most units that the limit can ever admit at once.
        strict: cut nothing.
    """
    units = weights.reserved(estimate.input, estimate.output)
    if strict or units <= capacity:
        return units
    sure = weights.reserved(0, estimate.output) if estimate.bounded else 0
    return max(sure, capacity)
