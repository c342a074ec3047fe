"""Overrides: another limit, another plan or a block for some principals; and the kill switch for all."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Iterable

    from ratelimiter.core.client_address import Network
    from ratelimiter.core.override_index import OverrideIndex
    from ratelimiter.core.principal import Principal, Source
    from ratelimiter.core.quota import AnyQuota

PATTERN_BYTES_MAX = 256
WILDCARDS_MAX = 8  # of one pattern, so that no value takes long to compare
FOR_EVER = 0  # instead of a moment: until it is taken back


class Pattern(NamedTuple):
    """A text in which each `*` stands for any bytes, none included; nothing else is special, and case counts."""

    parts: tuple[bytes, ...]  # what stands between the wildcards; two at least

    def fits(self, value: bytes) -> bool:
        """Return True if *value* fits, in time proportional to its length for each wildcard."""
        first, *middle, last = self.parts
        if len(value) < len(first) + len(last) or not value.startswith(first) or not value.endswith(last):
            return False
        at, end = len(first), len(value) - len(last)
        for part in middle:
            found = value.find(part, at, end)
            if found < 0:
                return False
            at = found + len(part)
        return True


def parse_pattern(text: str) -> Pattern | None:
    """Return the pattern that *text* is; None if it has no wildcard.

    Raises:
        ValueError: it is too long, or has too many wildcards.
    """
    encoded = text.encode()
    if len(encoded) > PATTERN_BYTES_MAX or encoded.count(b"*") > WILDCARDS_MAX:
        msg = f"a pattern has at most {PATTERN_BYTES_MAX} bytes and {WILDCARDS_MAX} wildcards; write a shorter one"
        raise ValueError(msg)
    parts = tuple(encoded.split(b"*"))
    return Pattern(parts) if len(parts) > 1 else None


@dataclass(frozen=True, slots=True)
class Override:
    """Another limit, or another plan, for some principals.

    Args:
        digests: of the principal, one for each source that may name it; of a pattern the digest of its text, for
            readers that may not see the text.
        pattern: of the principals instead; None for those of *digests* alone.
        network: of the clients instead; *digests* is the digest of its text then.
        source: where the value that *pattern* fits was found, like `header:x-api-key`; empty for anywhere.
        rule: the name of the rule that it is about; empty for all: with a limit for those of its kind and window.
        quota: the limit; None for another plan, or for none.
        plan: the plan that applies; empty with a limit.
        until_ms: Unix time at which it ends; `FOR_EVER`.

    With neither limit nor plan, its principals are not limited.
    """

    digests: frozenset[str]
    pattern: Pattern | None = field(default=None, repr=False)
    network: Network | None = field(default=None, repr=False, kw_only=True)
    source: str = ""
    rule: str = ""
    quota: AnyQuota | None = None
    plan: str = ""
    until_ms: int = FOR_EVER

    @property
    def rank(self) -> tuple[int, int, bool]:
        """Sort key that puts the one that prevails first.

        Exact before a network, the longest prefix first, before a pattern; then one rule before all.
        """
        if self.network is not None:
            return 1, -self.network.prefixlen, not self.rule
        return 0 if self.pattern is None else 2, 0, not self.rule


class Block(NamedTuple):
    """A principal, or a network of clients, whose requests are all refused."""

    digest: str
    until_ms: int  # Unix time at which it ends; FOR_EVER
    network: Network | None = None


@dataclass(frozen=True, slots=True)
class RuntimeOverrides:
    """The overrides, blocks and the kill switch that operators have set at run time.

    Args:
        version: another one whenever something has changed, if only that counters were reset.
        overrides: beside those of the policy; these prevail where both speak of the same principal equally exactly.
        blocks: the principals that are refused.
        shadow: no rule refuses a request, and all is counted and reported as if they did.
        shadow_until_ms: when that ends, Unix time; `FOR_EVER`.
    """

    version: str = ""
    overrides: tuple[Override, ...] = ()
    blocks: tuple[Block, ...] = ()
    shadow: bool = False
    shadow_until_ms: int = FOR_EVER
    # Of all overrides and blocks, ended ones included, if the maker of this object made an index, too.
    index: OverrideIndex | None = field(default=None, compare=False, repr=False)
    moments: tuple[int, ...] | None = field(default=None, compare=False, repr=False)  # `ends_ms`, if it is known

    def at(self, now_ms: int) -> RuntimeOverrides:
        """Return those of them that are in force at *now_ms*."""
        if all(now_ms < ms for ms in self.ends_ms):
            return self
        return replace(
            self,
            overrides=in_force(self.overrides, now_ms),
            blocks=tuple(block for block in self.blocks if _holds(block.until_ms, now_ms)),
            shadow=self.shadow and _holds(self.shadow_until_ms, now_ms),
        )

    @property
    def ends_ms(self) -> tuple[int, ...]:
        """The moments at which one of them ends, Unix time."""
        if self.moments is not None:
            return self.moments
        moments = [override.until_ms for override in self.overrides] + [block.until_ms for block in self.blocks]
        return tuple(ms for ms in (*moments, self.shadow_until_ms if self.shadow else FOR_EVER) if ms)


NO_OVERRIDES = RuntimeOverrides()


def in_force(overrides: Iterable[Override], now_ms: int) -> tuple[Override, ...]:
    """Return those of *overrides* that have not ended at *now_ms*."""
    return tuple(override for override in overrides if _holds(override.until_ms, now_ms))


def _holds(until_ms: int, now_ms: int) -> bool:
    return until_ms == FOR_EVER or now_ms < until_ms


class BlockedError(Exception):
    """The request's principal is blocked.

    Attributes:
        until_ms: when that ends, Unix time; `FOR_EVER`.
        principal: that is blocked.
    """

    def __init__(self, until_ms: int, principal: Principal) -> None:
        super().__init__("blocked")
        self.until_ms = until_ms
        self.principal = principal


@dataclass(frozen=True, slots=True)
class PlanChoice:
    """The place of a request's plan, where neither an override nor its credentials say it.

    Args:
        default: the plan of principals that have no other.
        headers: that a trusted peer may name the plan in; the first that it did counts.
    """

    default: str
    headers: tuple[Source, ...] = ()
