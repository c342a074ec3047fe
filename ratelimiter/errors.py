"""What can go wrong, as a tree.

RateLimiterError
 |- ConfigError    a policy, a dialect or an argument cannot be used; says every problem, where, and what would do
 |- StoreError     the store gave no answer
"""

from __future__ import annotations


class RateLimiterError(Exception):
    """Everything this package raises on purpose."""


class ConfigError(RateLimiterError):
    """A policy, a dialect or an argument cannot be used.

    Attributes:
        problems: one line each: place, value, and what would do.
    """

    def __init__(self, *problems: str) -> None:
        super().__init__("\n".join(problems))
        self.problems = problems


class StoreError(RateLimiterError):
    """The store gave no answer; whether it charged is unknown."""
