"""Warnings of check-config: settings that are valid and probably not intended."""

from __future__ import annotations

from collections import defaultdict
from typing import TYPE_CHECKING

from ratelimiter.config.coverage import but_limit, never_reached, never_refusing
from ratelimiter.config.identity import unsafe_url
from ratelimiter.core.policy import with_quota
from ratelimiter.core.principal import CLIENT, ORG
from ratelimiter.core.rule import REQUEST_HEADER, OnStoreError
from ratelimiter.parsing.document import problem_lines
from ratelimiter.parsing.units import spell_limit
from ratelimiter.stores.limits_bridge import PREFIX, WEAKNESS
from ratelimiter.stores.local_share import first_window_limit, local_limit, outage_limit

if TYPE_CHECKING:
    from collections.abc import Container, Hashable, Iterator

    from ratelimiter.core.policy import Policy
    from ratelimiter.core.principal import Source
    from ratelimiter.core.quota import AnyQuota
    from ratelimiter.core.rule import Rule
    from ratelimiter.parsing.document import Document, Path

_FORWARDING = frozenset(
    {"x-forwarded-for", "forwarded", "x-real-ip", "x-client-ip", "true-client-ip", "cf-connecting-ip", "client-ip"}
)


def warnings(policy: Policy, document: Document | None = None) -> list[str]:
    """Return the warnings about *policy*, one line each, with the place in *document* if there is one."""
    told = [
        *_coverage_warnings(policy),
        *_credential_warnings(policy),
        *_identity_warnings(policy),
        *_twin_warnings(policy),
        *_futile_warnings(policy),
        *_header_warnings(policy, document),
        *_share_warnings(policy),
        *_store_warnings(policy),
    ]
    if document is None:
        return [text for _, text in told]
    return problem_lines(document, (document.problem(path, text) for path, text in told))


def outage(policy: Policy, processes: int = 1) -> list[str]:
    """Return what each rule admits during an outage of the store, one line each; nothing for the embedded store.

    Args:
        policy: the policy.
        processes: number of processes that share the store, at least 1.
    """
    if not _shared(policy):
        return []
    return [
        f"{name}: without the store, {'unlimited' if rule is None else _outage(rule, policy.local_share, processes)}"
        for stated in policy.rules
        for name, rule in _by_plan(stated)
    ]


def _by_plan(rule: Rule) -> Iterator[tuple[str, Rule | None]]:
    """Yield *rule* as each plan has it, with a name for both; None for a plan without a limit."""
    if not rule.plans:
        yield rule.name, rule
    for plan, quota in rule.plans:
        yield f"{rule.name}, plan {plan}", None if quota is None else with_quota(rule, quota)


def _outage(rule: Rule, local_share: float, processes: int) -> str:
    limit = outage_limit(rule, local_share, processes)
    if limit is None:
        return "unlimited"
    who = f"{processes} processes" if processes > 1 else "each process"
    if not limit:
        return "0: refused with 503"
    first = first_window_limit(rule, local_share, processes)
    at_most = f"{who} at most {spell_limit(rule.quota, limit)}"
    if first is None or rule.quota.kind not in ("window", "period"):
        return at_most
    return f"{at_most}; with what the store has admitted, {first} in the one in which it fails"


def _shared(policy: Policy) -> bool:
    return policy.store.partition("://")[0].lower() != "memory"


def _coverage_warnings(policy: Policy) -> Iterator[tuple[Path, str]]:
    if not policy.catch_all and any(rule.descriptors is None for rule in policy.rules):
        yield (
            ("rules",),
            "rules: a request that none matches is admitted; add a rule without match if not intended",
        )


def _credential_warnings(policy: Policy) -> Iterator[tuple[Path, str]]:
    """Yield rules whose principal the caller can invent, where no rule counts its address."""
    verified = frozenset() if policy.identity is None else policy.identity.verified
    made_up = {rule.name: _made_up(rule, verified) for rule in policy.rules}
    anchored = {rule.match for rule in policy.rules if made_up[rule.name] is None}
    if any(match.everything for match in anchored):
        return
    for index, rule in enumerate(policy.rules):
        if rule.match in anchored:
            continue
        text = (
            f"rules[{index}]: {made_up[rule.name]} is not verified, so a caller that invents a new one meets no limit; "
            "add a rule with principal: [client]"
        )
        yield ("rules", index), text


def _made_up(rule: Rule, verified: Container[Source]) -> Source | None:
    """Return the source by which a caller escapes *rule* with an invented name; None if there is none."""
    first = next((source for source in rule.principal if source not in verified), CLIENT)
    return None if first.kind in ("client", "everyone") else first


def _identity_warnings(policy: Policy) -> Iterator[tuple[Path, str]]:
    """Yield keys that an attacker could replace on the network, and verified sources that no rule charges."""
    identity = policy.identity
    if identity is None:
        return
    if identity.tokens is not None and unsafe_url(identity.tokens):
        text = (
            "identity.jwt.keys: an attacker on the network can replace the keys; write a URL that begins with https://"
        )
        yield ("identity", "jwt", "keys"), text
    charged = {source for rule in policy.rules for source in rule.principal}
    required = any(requirement.credentials for requirement in policy.requirements)
    for source in sorted(identity.verified - charged - {ORG}, key=str) if not required else ():
        yield ("identity",), f"identity: no rule charges {source}; write it into principal, before client"


def _twin_warnings(policy: Policy) -> Iterator[tuple[Path, str]]:
    """Yield rules that another rule makes superfluous: the same requests, principals and window."""
    alike: dict[Hashable, list[int]] = defaultdict(list)
    for index, rule in enumerate(policy.rules):
        what = (rule.match, rule.principal, but_limit(rule), rule.burst, rule.cost, rule.mode, rule.plans)
        alike[what, rule.descriptors, rule.tokens].append(index)
    for indexes in alike.values():
        strictest = min(indexes, key=lambda index: policy.rules[index].quota.limit)
        seen: dict[AnyQuota, int] = {}
        for index in indexes:
            first = seen.setdefault(policy.rules[index].quota, index)
            if first != index:
                yield ("rules", index), f"rules[{index}]: is the same as rules[{first}]; leave one out"
            elif policy.rules[strictest].quota.limit < policy.rules[index].quota.limit:
                text = f"rules[{index}]: never refuses before rules[{strictest}] does; leave one out"
                yield ("rules", index), text


def _futile_warnings(policy: Policy) -> Iterator[tuple[Path, str]]:
    """Yield rules that never refuse a request, and rules that apply to none."""
    for index, rule in enumerate(policy.rules):
        if rule.cost == 0 and rule.cost_from is None:
            yield ("rules", index), f"rules[{index}]: never refuses, as its cost is 0; write cost: 1, or leave it out"
    for index, first in never_refusing(policy.rules):
        text = f"rules[{index}]: never refuses, as rules[{first}] counts all its requests and has a smaller limit"
        yield ("rules", index), f"{text}; write instead: true here, or leave it out"
    for index, later in never_reached(policy.rules):
        text = f"rules[{index}]: applies to no request, as rules[{later}] replaces it everywhere"
        yield ("rules", index), f"{text}; write always: true here, or leave it out"


def _header_warnings(policy: Policy, document: Document | None) -> Iterator[tuple[Path, str]]:
    for index, rule in enumerate(policy.rules):
        for source in rule.principal:
            if source.name in _FORWARDING:
                text = (
                    f"rules[{index}]: {source} is written by the caller; "
                    "write client, and your proxies into trusted_proxies"
                )
                yield ("rules", index), text
        if rule.cost_from is not None and rule.cost_from.where == REQUEST_HEADER and not policy.trust.anyone:
            text = f"rules[{index}]: cost_from is never read, as no proxy is trusted; write trusted_proxies, too"
            yield ("rules", index), text
    if policy.plan is not None and policy.plan.headers and not policy.trust.anyone:
        yield ("plan", "from"), "plan.from: is never read, as no proxy is trusted; write trusted_proxies, too"
    stated = document is not None and isinstance(document.value, dict) and "client_header" in document.value
    if stated and not policy.trust.anyone:
        yield ("client_header",), "client_header: is never read, as no proxy is trusted; write trusted_proxies, too"


def _share_warnings(policy: Policy) -> Iterator[tuple[Path, str]]:
    """Yield rules whose cost exceeds the local share of one process."""
    for index, rule in enumerate(policy.rules):
        share = local_limit(rule.quotas[0], policy.local_share)
        if _shared(policy) and rule.on_store_error is OnStoreError.LOCAL and share < rule.cost <= rule.quotas[0].limit:
            text = (
                f"rules[{index}]: its cost of {rule.cost} never fits the local share of {share} while the store is out"
            )
            yield ("rules", index), f"{text}; write a larger local_share"


def _store_warnings(policy: Policy) -> Iterator[tuple[Path, str]]:
    """Yield the weakness of a store that is not strict."""
    if policy.store.lower().startswith(PREFIX):
        yield ("store",), f"store: {WEAKNESS}; write memory:// or a redis:// URL for strict limits"
