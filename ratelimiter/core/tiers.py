"""The rules as they apply to each principal: on its plan, and with what was overridden for it."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ratelimiter.core.override_index import OverrideIndex
from ratelimiter.core.overrides import BlockedError, Override, in_force
from ratelimiter.core.policy import adapted, plans_of, with_quota
from ratelimiter.core.principal import CLIENT, credential
from ratelimiter.core.request import MalformedRequest

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping, Sequence

    from ratelimiter.core.overrides import RuntimeOverrides
    from ratelimiter.core.policy import Policy
    from ratelimiter.core.principal import Principal, PrincipalReader, Source
    from ratelimiter.core.quota import AnyQuota
    from ratelimiter.core.rule import Rule

    Header = tuple[bytes, bytes]

PRINCIPALS_MAX = 8192  # whose overrides are remembered, with their digest and nothing else of them
UNKNOWN_MAX = 32  # unknown plans that were logged


def tiers_needed(policy: Policy, orders: RuntimeOverrides) -> bool:
    """Return True if one principal may meet other rules than the next; other policies pay nothing for this."""
    return bool(policy.plan or policy.overrides or policy.override_table or orders.overrides or orders.blocks)


class Tiers:
    """The rules of each principal under one policy and the overrides in force.

    Args:
        policy: whose rules.
        orders: in force now.
        reader: of principals, that watches the headers that name plans, too.
        now_ms: Unix time, to tell which overrides of the policy have ended.
        noted: is told of an unknown plan, once.
    """

    def __init__(
        self,
        policy: Policy,
        orders: RuntimeOverrides,
        reader: PrincipalReader,
        now_ms: int,
        noted: Callable[[str], None],
    ) -> None:
        self._choice = policy.plan
        self._trust = policy.trust
        self._reader = reader
        self._noted = noted
        self._plans = plans_of(policy)
        self._unknown: set[str] = set()
        index = orders.index or OverrideIndex(orders.overrides, orders.blocks)
        self._blocks = index.blocks
        self._sources = tuple(dict.fromkeys(source for rule in policy.rules for source in (*rule.principal, CLIENT)))
        # Run-time before the file's where they are equally exact: sorting keeps their order otherwise.
        self._indexes = (index, OverrideIndex(policy.overrides))
        self._table = policy.override_table
        self._now_ms = now_ms
        self._applying: dict[str, tuple[Override, ...]] = {}  # by digest
        self._variants: dict[tuple[str, AnyQuota], Rule] = {}

    def check_blocks(
        self,
        headers: Sequence[Header],
        peer: str | None,
        names: Iterable[tuple[str, str]],
        keys: Iterable[Mapping[Source, bytes]] = (),
    ) -> None:
        """Refuse the request if any principal that some rule could charge for it is blocked, its address always among
        them: a blocked caller is not admitted under another name, either.

        Raises:
            BlockedError: one is.
        """
        if not self._blocks:
            return
        for source in self._sources:
            try:
                read = [self._reader.find((source,), headers, peer, names, found) for found in (*keys, None)]
            except MalformedRequest:
                continue  # the rules that look there decide if that matters
            for kind, value in read:
                principal = self._reader.principal(kind, value)
                until_ms = self._blocks.until_ms(principal.digest, kind, value, self._now_ms)
                if until_ms is not None:
                    raise BlockedError(until_ms, principal)

    def plan(self, headers: Sequence[Header], peer: str | None, told: str) -> str:
        """Return the plan of a request, less overrides.

        Args:
            headers: those that are watched.
            peer: address of the socket's other end; None on a unix socket.
            told: what its credentials say; empty for nothing.

        Raises:
            MalformedRequest: a trusted peer names a plan in two ways.
        """
        choice = self._choice
        if choice is None:
            return ""
        named = told
        if not named and choice.headers and self._trust.trusts_peer(peer):
            for source in choice.headers:
                named = credential(source, headers, self._reader.watched).decode("latin-1")
                if named:
                    break
        if not named or named in self._plans:
            return named or choice.default
        if named not in self._unknown and len(self._unknown) < UNKNOWN_MAX:
            self._unknown.add(named)
            self._noted(named)
        return choice.default

    def plan_of(self, headers: Sequence[Header], peer: str | None, names: Iterable[tuple[str, str]], told: str) -> str:
        """Return the plan of a request as the application is told it.

        That is `plan`, unless an override of all rules says another for one of its verified principals.

        Args:
            headers: those that are watched.
            peer: address of the socket's other end; None on a unix socket.
            names: source and principal of each of its credentials that was verified.
            told: what its credentials say; empty for nothing.
        """
        for source, name in names:
            value = name.encode()
            for override in self._of(self._reader.principal(source, value), value):
                if override.plan and not override.rule:
                    return override.plan
        return self.plan(headers, peer, told)

    def rule(self, rule: Rule, principal: Principal, value: bytes, plan: str) -> Rule | None:
        """Return *rule* as it applies to *principal*, found as *value*; None when it does not limit it."""
        override = self.override(rule, principal, value)
        if override is None:
            return self._of_plan(rule, plan)
        if override.plan:
            return self._of_plan(rule, override.plan)
        quota = None if override.quota is None else adapted(rule, override.quota, named=bool(override.rule))
        return None if quota is None else self._variant(rule, quota)

    def override(self, rule: Rule, principal: Principal, value: bytes) -> Override | None:
        """Return the override that prevails over *rule* for *principal*, found as *value*; None when none does."""
        for override in self._of(principal, value):
            if override.rule in ("", rule.name):
                quota = override.quota
                if quota is None or adapted(rule, quota, named=bool(override.rule)) is not None:
                    return override
        return None

    def _of(self, principal: Principal, value: bytes) -> tuple[Override, ...]:
        """Return the overrides for *principal*, the one that prevails first."""
        applying = self._applying.get(principal.digest)
        if applying is None:
            found = [each for index in self._indexes for each in index.find(principal.digest, principal.source, value)]
            if self._table is not None:
                found += self._table.find(principal.digest)
            applying = tuple(sorted(in_force(found, self._now_ms), key=lambda each: each.rank)) if found else ()
            if len(self._applying) >= PRINCIPALS_MAX:
                self._applying.clear()
            self._applying[principal.digest] = applying
        return applying

    def _of_plan(self, rule: Rule, plan: str) -> Rule | None:
        for name, quota in rule.plans:
            if name == plan:
                return None if quota is None else self._variant(rule, quota)
        return rule

    def _variant(self, rule: Rule, quota: AnyQuota) -> Rule:
        if quota == rule.quota:
            return rule
        variant = self._variants.get((rule.name, quota))
        if variant is None:
            variant = self._variants[rule.name, quota] = with_quota(rule, quota)
        return variant
