"""The policy as a value: its rules, and everything else that a policy file says."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field, replace
from enum import StrEnum
from typing import TYPE_CHECKING

from ratelimiter.core.client_address import Trust
from ratelimiter.core.quota import AnyQuota, Bucket, Period, Quota
from ratelimiter.core.rule import NAME_CHARACTERS, NAME_CHARACTERS_MAX, Rule

if TYPE_CHECKING:
    from ratelimiter.core.cors import Cors
    from ratelimiter.core.identity import IdentityPolicy
    from ratelimiter.core.match import Match
    from ratelimiter.core.override_table import OverrideTable
    from ratelimiter.core.overrides import Override, PlanChoice
    from ratelimiter.core.principal import Principal
    from ratelimiter.core.requirement import Requirement

KEY_VERSION = "rl1"
JSON_BYTES_MIN, JSON_BYTES_MAX = 1024, 1_048_576  # of a body that a rule looks into: what a policy may say
HOUR_MS = 3_600_000
UNITS_MS = {"hour": HOUR_MS, "day": 24 * HOUR_MS, "week": 7 * 24 * HOUR_MS}  # of periods that have one length


class AmbiguousPaths(StrEnum):
    """Treatments of a path that two readers could take for different ones."""

    REFUSE = "refuse"
    MATCH = "match"


@dataclass(frozen=True, slots=True)
class Policy:
    """Everything a policy file says.

    Args:
        rules: every rule that matches a request applies to it; names are unique.
        name: keeps this policy's keys apart from those of other policies in the same store; spelled like a rule's name.
        store: URL of the store.
        dialect: name or path of the dialect in which refusals are written.
        headers: header families on every response: `x-ratelimit`, `draft-11`, `draft-06`, `openai`,
            `anthropic`.
        expose_headers: let browsers read those headers (`Access-Control-Expose-Headers`).
        trust: the proxies that may name another client address.
        decision_timeout_ms: a decision comes within this time, whatever the store does.
        local_share: how much of a limit one process admits while the store is out and a rule says local; above
            0 to 1, rounded up to whole units.
        ambiguous_paths: refuse a path that two readers could read differently with 400 (only asked if a rule looks at
            paths), or match whatever the application was given.
        method_override: also apply the rules of the method that an `X-HTTP-Method-Override` header asks for.
        show_principals: True if the admin listener shows the names of the heaviest principals, not only digests.
        json_bytes_max: bytes of a body that a rule looks into, 1,024 to 1,048,576; a longer one meets every rule that
            would.
        secret: key of the principals' digests, at most 64 bytes; the same wherever a store is shared.
        identity: the terms on which callers are identified; None if they are not.
        requirements: what requests must bring beside room within their limits; asked in this order.
        plan: where to find which plan a request is on; None if there are no plans.
        overrides: what is different for some principals; of two that are equally exact the first prevails.
        overrides_file: that some of them were read from; empty for none.
        override_table: overrides of that file, if there are very many of single principals.
        cors: the pages of other origins that may read our answers; None: nothing is said of them.
        domain: of descriptors, the one that is answered for; empty for all, each counted by itself.

    Raises:
        ValueError: two rules share a name, or a value is outside its range; or a plan or an override does not fit.
    """

    rules: tuple[Rule, ...]
    name: str = "default"
    store: str = "memory://"
    dialect: str = "problem"
    headers: tuple[str, ...] = ("x-ratelimit",)
    expose_headers: bool = False
    trust: Trust = field(default_factory=Trust)
    decision_timeout_ms: int = 50
    local_share: float = 1.0
    ambiguous_paths: AmbiguousPaths = AmbiguousPaths.REFUSE
    method_override: bool = False
    show_principals: bool = False
    json_bytes_max: int = 65_536
    secret: bytes = field(default=b"", repr=False)
    identity: IdentityPolicy | None = None
    requirements: tuple[Requirement, ...] = ()
    plan: PlanChoice | None = None
    overrides: tuple[Override, ...] = ()
    overrides_file: str = ""
    override_table: OverrideTable | None = field(default=None, repr=False)
    domain: str = ""
    cors: Cors | None = None

    def __post_init__(self) -> None:
        names = Counter(rule.name for rule in self.rules)
        twice = sorted(name for name, count in names.items() if count > 1)
        if twice:
            msg = f"rule names must differ: {', '.join(twice)}"
            raise ValueError(msg)
        if not 1 <= len(self.name) <= NAME_CHARACTERS_MAX or not NAME_CHARACTERS.issuperset(self.name):
            msg = f"name must be 1 to {NAME_CHARACTERS_MAX} of a-z 0-9 - _ . and not {self.name!r}"
            raise ValueError(msg)
        if not 0 < self.local_share <= 1:
            msg = f"local_share must be above 0 and at most 1, not {self.local_share}"
            raise ValueError(msg)
        if not JSON_BYTES_MIN <= self.json_bytes_max <= JSON_BYTES_MAX:
            msg = f"json_bytes_max must be {JSON_BYTES_MIN} to {JSON_BYTES_MAX}, not {self.json_bytes_max}"
            raise ValueError(msg)
        stated = (*self.overrides, *(() if self.override_table is None else self.override_table.overrides))
        fault = plan_fault(self) or next(filter(None, (override_fault(self, each) for each in stated)), "")
        if fault:
            raise ValueError(fault)
        if len(self.secret) > 64:  # the most that BLAKE2b takes as a key (RFC 7693 section 2.1)
            msg = f"secret must be at most 64 bytes, not {len(self.secret)}"
            raise ValueError(msg)

    @property
    def files(self) -> tuple[str, ...]:
        """The files that it was made of, beside its own."""
        dialect = (self.dialect,) if "/" in self.dialect else ()
        overrides = (self.overrides_file,) if self.overrides_file else ()
        terms = [rule.tokens for rule in self.rules if rule.tokens is not None]
        of_tokens = dict.fromkeys(name for each in terms for name in (each.preset, each.prices_file) if "/" in name)
        return (*dialect, *overrides, *of_tokens, *(() if self.identity is None else self.identity.files))

    @property
    def _matches(self) -> tuple[Match, ...]:
        ours = (rule.match for rule in self.rules if rule.descriptors is None)
        return (*ours, *(requirement.match for requirement in self.requirements))

    @property
    def looks_at_paths(self) -> bool:
        """True if the path of some request makes a difference."""
        return any(match.looks_at_paths for match in self._matches) or any(rule.keyed_by_path for rule in self.rules)

    @property
    def looks_at_bodies(self) -> bool:
        """True if the body of some request makes a difference."""
        of_rules = any(rule.tokens is not None or rule.keyed_by_body for rule in self.rules)
        return of_rules or any(match.json for match in self._matches)

    @property
    def catch_all(self) -> bool:
        """True if every request meets at least one rule."""
        return any(rule.match.everything and rule.descriptors is None for rule in self.rules)


def key_of(policy: Policy, rule: Rule, principal: Principal, quota_index: int) -> bytes:
    """Return the key of one tally: `rl1:{DIGEST}:POLICY:RULE:INDEX`.

    The braces put all of one principal's keys into one slot of a Redis Cluster. Neither name can hold a colon and the
    digest has a fixed length, so different tallies never share a key (7). In the place of the index of a window, which
    is 0 or 1, another kind has its name: what one kind counts is nothing to another.
    """
    kind = rule.quota.kind
    index = quota_index if kind == Quota.kind else kind
    return f"{KEY_VERSION}:{{{principal.digest}}}:{policy.name}:{rule.name}:{index}".encode()


def plans_of(policy: Policy) -> tuple[str, ...]:
    """Return every plan that *policy* knows, the default first."""
    default = () if policy.plan is None else (policy.plan.default,)
    return tuple(dict.fromkeys((*default, *(plan for rule in policy.rules for plan, _ in rule.plans))))


def plan_fault(policy: Policy) -> str:
    """Return the fault of the plans of *policy*; empty when there is none."""
    known = plans_of(policy)
    for rule in policy.rules:
        if rule.plans and policy.plan is None:
            return f"rule {rule.name} has limits by plan, and plan does not say what a request's is; write its default"
        missing = [plan for plan in known if rule.plans and plan not in dict(rule.plans)]
        if missing:
            return f"rule {rule.name} has no limit for plan {missing[0]}; write it, or unlimited"
        for plan, quota in rule.plans:
            fault = quota and _quota_fault(rule, quota)
            if fault:
                return f"rule {rule.name}, plan {plan}: {fault}"
    return ""


def override_fault(policy: Policy, override: Override) -> str:
    """Return why *override* means nothing to *policy*; empty when it means something."""
    rules = [rule for rule in policy.rules if override.rule in ("", rule.name)]
    if not rules:
        return f"{override.rule!r} is no rule; write {' or '.join(rule.name for rule in policy.rules)}"
    if override.plan and override.plan not in plans_of(policy):
        known = " or ".join(plans_of(policy)) or "limits by plan into the rules first"
        return f"{override.plan!r} is no plan; write {known}"
    if override.quota is None:
        return ""
    fitting = [(rule, adapted(rule, override.quota, named=bool(override.rule))) for rule in rules]
    if not any(quota for _, quota in fitting):
        what = f"{override.rule} limits something else" if override.rule else "no rule has this kind and window"
        return f"{what}; write a limit like the rule's own, and name the rule"
    return next(filter(None, (_quota_fault(rule, quota) for rule, quota in fitting if quota is not None)), "")


def _quota_fault(rule: Rule, quota: AnyQuota) -> str:
    try:
        variant = with_quota(rule, quota)
    except ValueError as fault:
        return str(fault)
    most = variant.quotas[0].limit
    return (
        f"the cost of {rule.cost} never fits a limit of {most}; write at least {rule.cost}" if rule.cost > most else ""
    )


def with_quota(rule: Rule, quota: AnyQuota) -> Rule:
    """Return *rule* with another limit and all else its own: its name too, so that what is counted stays.

    Raises:
        ValueError: its burst does not go with that limit.
    """
    return replace(rule, quota=quota, plans=())


def adapted(rule: Rule, quota: AnyQuota, *, named: bool) -> AnyQuota | None:
    """Return *quota*, as an override gives it, as a limit of *rule*; None when it is none.

    The number is the override's, everything else the rule's: its calendar, its time zone, its burst. Only a window may
    have another length, and only if the override names the rule.

    Args:
        rule: any rule.
        quota: the limit of an override.
        named: True if the override is for this rule by name, and not for all.
    """
    own = rule.quota
    if not isinstance(quota, Quota):
        same = quota.kind == own.kind and getattr(quota, "unit", "") == getattr(own, "unit", "")
        return replace(own, limit=quota.limit) if same else None
    if isinstance(own, Period):
        return replace(own, limit=quota.limit) if UNITS_MS.get(own.unit) == quota.window_ms else None
    if not isinstance(own, Quota | Bucket) or not (named or quota.window_ms == own.window_ms):
        return None
    if isinstance(own, Bucket):
        return Bucket(max(own.limit, quota.limit), quota.limit, quota.window_ms)
    return quota
