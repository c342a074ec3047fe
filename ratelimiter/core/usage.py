"""The tokens that one call of a language model used, in one meaning for every provider."""

from __future__ import annotations

from typing import NamedTuple

FIGURE_MAX = 10**9  # of one figure and of a sum; the largest cost that a store charges

KINDS = ("input", "output", "cached", "cache_creation", "reasoning")


class Usage(NamedTuple):
    """Tokens of one call. The last three are parts of the first two and never added to them."""

    input: int  # everything the model read, cache reads and writes included
    output: int  # everything the model made, reasoning included
    cached: int = 0  # part of input: read from a cache
    cache_creation: int = 0  # part of input: written to a cache
    reasoning: int = 0  # part of output

    @property
    def total(self) -> int:
        """Input and output. Computed: providers disagree on what their own total contains."""
        return self.input + self.output


def usage_of(input_: int, output: int, cached: int = 0, cache_creation: int = 0, reasoning: int = 0) -> Usage:
    """Return the usage with each part no larger than the whole it belongs to."""
    cached = min(cached, input_)
    return Usage(input_, output, cached, min(cache_creation, input_ - cached), min(reasoning, output))
