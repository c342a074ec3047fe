"""Operator's commands: peek, reset, block, override, top up, and the kill switch.

Each command returns plain values, ready for JSON, and writes one audit line: operator, command, principal by digest,
and the value that was replaced. Neither holds the value of a principal.

The commands share the reading of principals and the writing of orders, so they share this file, although it is longer
than 400 lines.
"""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

from ratelimiter.admin.audit import audit
from ratelimiter.admin.expiry import NO_EXPIRY, Expiry
from ratelimiter.core.decision import decide
from ratelimiter.core.override_index import BlockIndex
from ratelimiter.core.overrides import FOR_EVER, NO_OVERRIDES, Override, RuntimeOverrides
from ratelimiter.core.planner import reader_for
from ratelimiter.core.policy import key_of, override_fault, plans_of
from ratelimiter.core.principal import CLIENT, Principal
from ratelimiter.core.quota import Balance
from ratelimiter.core.rule import Hit
from ratelimiter.core.settlement import topup
from ratelimiter.core.tiers import Tiers
from ratelimiter.engine.override_watcher import SHADOW, field_of_block, field_of_override, orders_of, override_from
from ratelimiter.errors import ConfigError, StoreError
from ratelimiter.parsing.principal_notation import (
    Named,
    digests_of,
    network_digest,
    parse_named,
    pattern_digest,
    sources_of,
    value_of,
)
from ratelimiter.parsing.units import UNLIMITED, spell_limit
from ratelimiter.stores.overrides import OverridesFullError

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from ratelimiter.core.client_address import Network
    from ratelimiter.core.policy import Policy
    from ratelimiter.core.rule import Rule
    from ratelimiter.stores.base import Store
    from ratelimiter.stores.overrides import OverrideStore

TOLD = 20  # audit lines by default


class Operator:
    """One operator at one store.

    Args:
        policy: gives the policy in force.
        store: keeps the counters; without a fallback in front, so that a failure is reported.
        who: the name in audit lines, like `token:alice`.
        reason: the reason for the changes, in audit lines; empty for none.
        done: is called after each change, so that this process applies it at once.

    Raises:
        ConfigError: the store keeps no overrides.
    """

    def __init__(
        self,
        policy: Callable[[], Policy],
        store: Store,
        who: str,
        *,
        reason: str = "",
        done: Callable[[], Awaitable[None]] | None = None,
    ) -> None:
        self._policy = policy
        self._store = store
        self._who = who
        self._because = {"reason": reason} if reason else {}
        self._done = done
        book = store.override_store(policy().name)
        if book is None:
            msg = "store: keeps no orders; write memory:// or a redis:// URL"
            raise ConfigError(msg)
        self._book: OverrideStore = book

    def as_who(self, who: str) -> Operator:
        """Return the same operator under another name."""
        return Operator(self._policy, self._store, who, reason=self._because.get("reason", ""), done=self._done)

    async def peek(self, principal: str, *, plan: str = "") -> dict[str, Any]:
        """Return the counters of *principal* by every rule that may charge it, and its overrides. Changes nothing.

        Args:
            principal: as `ratelimiter.parsing.principal_notation.parse_named` reads it.
            plan: whose limits are shown where limits are by plan; the default plan if empty.

        Raises:
            ConfigError: an argument means nothing to the policy.
            StoreError: the store gave no answer.
        """
        policy = self._policy()
        named, digest = self._one(principal)
        if plan and plan not in plans_of(policy):
            msg = f"plan: {plan!r} is no plan; write {' or '.join(plans_of(policy)) or 'none'}"
            raise ConfigError(msg)
        orders, now_ms = await self._orders(policy)
        terms = Tiers(policy, orders, reader_for(policy), now_ms, lambda _: None)
        found = Principal(named.source, digest)
        value = value_of(named, policy)
        plan = plan or ("" if policy.plan is None else policy.plan.default)
        looks = []
        for stated in self._rules(named, ""):
            rule = terms.rule(stated, found, value, plan)
            looks.append((stated, rule, terms.override(stated, found, value)))
        hits = [
            Hit(key_of(policy, rule, found, index), quota, 0, rule)
            for _, rule, _ in looks
            if rule is not None
            for index, quota in enumerate(rule.quotas)
        ]
        outcomes: dict[str, dict[str, Any]] = {}
        if hits:
            receipt = await self._store.charge(hits)
            used = {hit.rule.name: tally.used for hit, tally in reversed(list(zip(hits, receipt.tallies, strict=True)))}
            for outcome in decide(hits, receipt).outcomes:
                name = outcome.rule.name
                outcomes[name] = {"used": used[name], "remaining": outcome.remaining, "reset_ms": outcome.reset_ms}
        told = [
            {
                "rule": stated.name,
                "limit": UNLIMITED if rule is None else spell_limit(rule.quota),
                "kind": stated.quota.kind,
                **outcomes.get(stated.name, {"used": 0, "remaining": None, "reset_ms": 0}),
                "override": None if override is None else _told_override(override),
            }
            for stated, rule, override in looks
        ]
        blocked_ms = BlockIndex(orders.blocks).until_ms(digest, named.source, value, now_ms)
        self._say("peek", {"digest": digest})
        return {
            "digest": digest,
            "plan": plan or None,
            "blocked": None if blocked_ms is None else {"until_ms": blocked_ms or None},
            "shadow": orders.shadow,
            "rules": told,
        }

    async def reset(self, principal: str, *, rule: str = "", balances: bool = False) -> dict[str, Any]:
        """Delete the counters of *principal*; every process asks the store again within a second.

        Args:
            principal: as `peek` takes it.
            rule: name of the rule; all rules if empty.
            balances: True to reset balances, too: each is full again then, and no top-up remains.

        Raises:
            ConfigError: an argument means nothing to the policy.
            StoreError: the store gave no answer; some counters may be deleted.
        """
        policy = self._policy()
        named, digest = self._one(principal)
        rules = [each for each in self._rules(named, rule) if balances or rule or not isinstance(each.quota, Balance)]
        if rule and isinstance(rules[0].quota, Balance) and not balances:
            msg = (
                f"rule: {rule} keeps a balance, which a reset would fill and rid of its top-ups; ask for balances, too"
            )
            raise ConfigError(msg)
        found = Principal(named.source, digest)
        # Both windows of a burst, though the rule may have none by now.
        keys = dict.fromkeys(key_of(policy, each, found, index) for each in rules for index in (0, 1))

        async def erase() -> None:
            await self._book.erase(list(keys))

        names = [each.name for each in rules]
        await self._do("reset", {"digest": digest, "rule": rule or None, "new": {"rules": names}}, first=erase)
        return {"digest": digest, "rules": names}

    async def block(self, principal: str, expiry: Expiry = NO_EXPIRY) -> dict[str, Any]:
        """Refuse every request of *principal* until the block expires.

        Raises:
            ConfigError: an argument means nothing to the policy, or there are too many overrides.
            StoreError: the store gave no answer; the change may be applied.
        """
        digest, network = self._blocked(principal)
        until_ms = await self._until_ms(expiry)
        told = {"digest": digest, "new": {"blocked": True}, "until_ms": until_ms or None}
        entry = {"blocked": True} if network is None else {"blocked": True, "network": str(network)}
        await self._do("block", told, field_of_block(digest), (until_ms, entry))
        return {"digest": digest, "until_ms": until_ms or None}

    async def unblock(self, principal: str) -> dict[str, Any]:
        """Remove the block of *principal*; its limits apply again.

        Raises:
            ConfigError: an argument means nothing to the policy.
            StoreError: the store gave no answer; the change may be applied.
        """
        digest, _ = self._blocked(principal)
        old = await self._do("unblock", {"digest": digest, "new": None}, field_of_block(digest))
        return {"digest": digest, "was_blocked": bool(old)}

    async def set_override(
        self, principal: str, *, rule: str = "", limit: str = "", plan: str = "", expiry: Expiry = NO_EXPIRY
    ) -> dict[str, Any]:
        """Give *principal*, or every principal of a pattern, another limit or plan.

        Replaces the override of the same principal and rule.

        Args:
            principal: as `peek` takes it; with `*` in its value, a pattern.
            rule: name of the rule; if empty, all rules, with a limit those of its kind and window.
            limit: in the notation of a policy, or `unlimited`.
            plan: instead of a limit.
            expiry: the end of the override.

        Raises:
            ConfigError: an argument means nothing to the policy, or there are too many overrides.
            StoreError: the store gave no answer; the change may be applied.
        """
        who, entry = self._whom(principal)
        entry |= {name: text for name, text in (("rule", rule), ("limit", limit), ("plan", plan)) if text}
        try:
            override = override_from(entry, FOR_EVER)
            fault = override_fault(self._policy(), override)
        except ValueError as error:
            fault = str(error)
        if fault:
            msg = f"override: {fault}"
            raise ConfigError(msg)
        until_ms = await self._until_ms(expiry)
        new: dict[str, Any] = {name: entry[name] for name in ("limit", "plan") if name in entry}
        told = {"digest": who, "rule": rule or None, "new": new, "until_ms": until_ms or None}
        old = await self._do("override set", told, field_of_override(who, rule), (until_ms, entry))
        return {"digest": who, "rule": rule or None, **new, "until_ms": until_ms or None, "replaced": bool(old)}

    async def remove_override(self, principal: str, *, rule: str = "") -> dict[str, Any]:
        """Remove the runtime override of *principal* and *rule*; an override of the policy file stands.

        Raises:
            ConfigError: an argument means nothing to the policy.
            StoreError: the store gave no answer; the change may be applied.
        """
        who, _ = self._whom(principal)
        told = {"digest": who, "rule": rule or None, "new": None}
        old = await self._do("override remove", told, field_of_override(who, rule))
        return {"digest": who, "rule": rule or None, "was_set": bool(old)}

    async def orders(self) -> dict[str, Any]:
        """Return all overrides, those of the policy file included, all blocks, and the kill switch.

        Raises:
            StoreError: the store gave no answer.
        """
        policy = self._policy()
        orders, _ = await self._orders(policy)
        self._say("override list", {})
        return {
            "overrides": [
                *(_told_override(override) | {"from": "store"} for override in orders.overrides),
                *(_told_override(override) | {"from": "file"} for override in policy.overrides),
            ],
            "blocks": [
                {"digest": block.digest, "until_ms": block.until_ms or None}
                | ({} if block.network is None else {"network": str(block.network)})
                for block in orders.blocks
            ],
            "shadow": {"on": orders.shadow, "until_ms": orders.shadow_until_ms or None},
        }

    async def shadow(self, *, on: bool, expiry: Expiry = NO_EXPIRY) -> dict[str, Any]:
        """Turn the kill switch on or off: while it is on, all rules are in shadow mode.

        All rules count as before. Blocks and `require` stay in force.

        Raises:
            ConfigError: an argument cannot be used.
            StoreError: the store gave no answer; the change may be applied.
        """
        until_ms = await self._until_ms(expiry) if on else FOR_EVER
        told = {"new": {"on": on}, "until_ms": until_ms or None}
        old = await self._do("shadow", told, SHADOW, (until_ms, {"on": True}) if on else None)
        return {"on": on, "until_ms": until_ms or None, "was_on": bool(old)}

    async def topup(self, principal: str, units: int, *, rule: str = "") -> dict[str, Any]:
        """Credit a balance of *principal* with *units*.

        Args:
            principal: as `peek` takes it.
            units: 1 to 10^9.
            rule: name of the rule with the balance, if there are several.

        Raises:
            ConfigError: an argument means nothing to the policy, or the balance would be too large.
            StoreError: the store gave no answer; the units may be credited: peek before you try again.
        """
        policy = self._policy()
        named, digest = self._one(principal)
        balances = [each for each in self._rules(named, rule) if isinstance(each.quota, Balance)]
        if len(balances) != 1:
            names = ", ".join(each.name for each in balances)
            what = f"is not one rule with a balance; name one of {names}" if balances else "has no balance"
            msg = f"rule: {rule or 'what is given'} {what}"
            raise ConfigError(msg)
        balance = balances[0]
        try:
            hit = topup(key_of(policy, balance, Principal(named.source, digest), 0), balance.quota, units, balance)
        except ValueError as fault:
            msg = f"units: {fault}"
            raise ConfigError(msg) from None
        available = 0

        async def credit() -> None:
            nonlocal available
            receipt = await self._store.charge([hit])
            if not receipt.admitted:
                msg = f"units: {units} more than there is would be too large a balance; credit less"
                raise ConfigError(msg)
            available = balance.quota.limit - receipt.tallies[0].used

        await self._do("topup", {"digest": digest, "rule": balance.name, "new": {"units": units}}, first=credit)
        return {"digest": digest, "rule": balance.name, "units": units, "available": available}

    async def told(self, number: int = TOLD) -> list[dict[str, Any]]:
        """Return the last *number* audit lines of all operators, the latest first.

        Raises:
            StoreError: the store gave no answer.
        """
        lines = await self._book.told(number)
        return [json.loads(line) for line in lines]

    # --- Shared by the commands

    def _one(self, text: str) -> tuple[Named, str]:
        """Return the principal that *text* names, and its digest under the policy."""
        named = self._named(text)
        if named.pattern is not None:
            msg = "principal: what is given is a pattern; write one principal, as only overrides are for several"
            raise ConfigError(msg)
        if self._network(named) is not None:
            msg = "principal: a network has no counters of its own; write the address of one client in it"
            raise ConfigError(msg)
        try:
            digests = digests_of(named, self._policy())
        except ValueError as fault:
            msg = f"principal: {fault}"
            raise ConfigError(msg) from None
        return named, next(iter(digests))

    def _network(self, named: Named) -> Network | None:
        try:
            return named.network(self._policy().trust.ipv6_prefix)
        except ValueError as fault:
            msg = f"principal: {fault}"
            raise ConfigError(msg) from None

    def _blocked(self, text: str) -> tuple[str, Network | None]:
        """Return the digest under which a principal or a network of clients is blocked, and the network."""
        network = self._network(self._named(text))
        return (self._one(text)[1], None) if network is None else (network_digest(network), network)

    def _whom(self, text: str) -> tuple[str, dict[str, str]]:
        """Return the digest of a principal or pattern, and the first fields of an override for it."""
        named = self._named(text)
        network = self._network(named)
        if network is not None:
            who = network_digest(network)
            return who, {"who": who, "network": str(network)}
        if named.pattern is None:
            _, digest = self._one(text)
            return digest, {"who": digest}
        known = [str(source) for source in sources_of(self._policy())]
        if named.source not in known:
            msg = f"principal: no rule charges {named.source}; write {' or '.join(known)}"
            raise ConfigError(msg)
        who = pattern_digest(named.source, named.value)
        return who, {"who": who, "pattern": named.value, "source": named.source}

    @staticmethod
    def _named(text: str) -> Named:
        try:
            return parse_named(text)
        except ValueError as fault:
            msg = f"principal: {fault}"
            raise ConfigError(msg) from None

    def _rules(self, named: Named, name: str) -> list[Rule]:
        """Return the rules that may charge *named*; with *name*, the one of that name."""
        rules = [
            rule
            for rule in self._policy().rules
            if named.source in ("digest", str(CLIENT)) or named.source in map(str, rule.principal)
        ]
        if not name:
            return rules
        found = [rule for rule in rules if rule.name == name]
        if not found:
            msg = f"rule: {name!r} is no rule that charges {named.source}; write {' or '.join(r.name for r in rules)}"
            raise ConfigError(msg)
        return found

    async def _orders(self, policy: Policy) -> tuple[RuntimeOverrides, int]:
        page = await self._book.read()
        return orders_of(page, policy, 0, lambda *_: None) if page.fields else NO_OVERRIDES, page.now_ms

    async def _until_ms(self, expiry: Expiry) -> int:
        """Return the end of an order by the store's clock."""
        if expiry == NO_EXPIRY:
            return FOR_EVER
        return expiry.at_ms((await self._book.read()).now_ms)

    async def _do(
        self,
        verb: str,
        told: dict[str, Any],
        field: str = "",
        value: tuple[int, dict[str, Any]] | None = None,
        *,
        first: Callable[[], Awaitable[None]] | None = None,
    ) -> Any:
        """Carry out one command and write its audit line; return the value that was replaced, or None."""
        line = {"who": self._who, "verb": verb, **self._because, **told}
        try:
            if first is not None:
                await first()
            spelled = None if value is None else (value[0], json.dumps(value[1]))
            old = await self._book.write(json.dumps(line).removesuffix("}"), field, spelled)
        except OverridesFullError:
            msg = "orders: there are as many as can be kept; remove some first"
            raise ConfigError(msg) from None
        except (StoreError, ConfigError) as error:
            self._say(verb, told | {"failed": getattr(error, "kind", "refused")})
            raise
        before = json.loads(old) if old else None
        self._say(verb, told | {"old": before})
        if self._done is not None:
            await self._done()
        return before

    def _say(self, verb: str, told: dict[str, Any]) -> None:
        audit.info("%s", json.dumps({"who": self._who, "verb": verb, **self._because, **told}))


def _told_override(override: Override) -> dict[str, Any]:
    return {
        "digest": ",".join(sorted(override.digests)),
        "pattern": None if override.pattern is None else b"*".join(override.pattern.parts).decode(),
        "source": override.source or None,
        "rule": override.rule or None,
        "limit": None if override.plan else UNLIMITED if override.quota is None else spell_limit(override.quota),
        "plan": override.plan or None,
        "until_ms": override.until_ms or None,
    } | ({} if override.network is None else {"network": str(override.network)})
