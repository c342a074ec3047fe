"""The whole document: which requests are charged to whom, how much, and what happens when they may not be."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from enum import StrEnum
from fractions import Fraction
from math import ceil
from typing import TYPE_CHECKING, NamedTuple
from urllib.parse import quote

from ratelimiter.core.json_body import Fields, read_fields
from ratelimiter.core.match import Match
from ratelimiter.core.overrides import NO_ORDERS, Orders, Override, PlanChoice
from ratelimiter.core.principal import CLIENT, PrincipalReader, Source, Trust, watched_for
from ratelimiter.core.quota import LIMIT_MAX, WINDOW_MS_MAX, AnyQuota, Balance, Period, Quota, Slots
from ratelimiter.core.request import PLAIN_CHARACTERS, MalformedRequest, Request, canonical_path
from ratelimiter.core.tiers import Terms, override_fault, plan_fault, terms_needed

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from ratelimiter.core.descriptors import DescriptorMatch
    from ratelimiter.core.identity import Identity, IdentityPolicy
    from ratelimiter.core.principal import Principal
    from ratelimiter.core.requirement import Requirement

KEY_VERSION = "rl1"
LONG_WINDOWS = 10  # how many windows the second quota of a burst spans
NAME_CHARACTERS = frozenset("abcdefghijklmnopqrstuvwxyz0123456789-_.")
NAME_CHARACTERS_MAX = 64
PLANS_MAX = 4096  # (method, target) pairs whose rules are remembered
BODIES_MAX = 64  # combinations of rules, met by what bodies say, whose plans are remembered for one plan
HITS_MAX = 8192  # principals of one plan whose hits are remembered
BYTES_MAX = 4096  # of a request that is remembered; longer ones are worked out anew, so that none can fill the memory
JSON_BYTES_MIN, JSON_BYTES_MAX = 1024, 1_048_576  # of a body that a rule looks into: what a policy may say
LINE_BYTES = 128  # about what a header line costs beside its value


class OnStoreError(StrEnum):
    """What becomes of a request when the store gives no answer in time."""

    ALLOW = "allow"
    DENY = "deny"
    LOCAL = "local"


class Mode(StrEnum):
    """Whether a rule's refusal is carried out."""

    ENFORCE = "enforce"
    SHADOW = "shadow"


class CostFrom(NamedTuple):
    """Which header says what a request costs."""

    where: str  # one of `COST_PLACES`
    name: str  # of the header, in lower case


REQUEST_HEADER = "request_header"  # known before the decision
RESPONSE_HEADER = "response_header"  # known after it, and settled then
COST_PLACES = (REQUEST_HEADER, RESPONSE_HEADER)


@dataclass(frozen=True, slots=True)
class Rule:
    """One limit on the requests that match, kept for each principal.

    Args:
        name: 1 to 64 of `a-z 0-9 - _ .`; part of the key, so renaming a rule starts its counters anew.
        quota: how much, of whatever kind.
        burst: units above the limit that one window may hold; over ten windows they are granted once. Only of windows:
            what a bucket grants at once is its own limit.
        match: which requests; all by default.
        principal: where to look for who is charged, in order; the client's address when none is found.
        cost: units that one request is charged; 0 counts nothing and never refuses.
        mode: enforce, or shadow: count and report, never refuse.
        on_store_error: what to do without the store. Of credits `local` means `deny`: an outage must not hand any out.
        count: only responses of these counts: statuses like `401`, classes like `4xx`; empty counts every request. It
            is charged before and given back after, so there is no moment between a look and a charge.
        cost_from: the header that says what a request costs; of a response *cost* is then the most, reserved before.
        plans: the quota of each plan that has another one; None for a plan without a limit. All of *quota*'s kind.
        warn_at: the share of the limit, above 0 to 1, from which on it is reported as nearly used up.
        quiet: whether clients are not told of it in header fields until it refuses; its limit then is not told either,
            if a rule that is not quiet applies, too.
        descriptors: of calls to the decision service; such a rule applies to these and to no request. None for a rule
            that applies to requests.

    Attributes:
        quotas: what a request is charged to: one, or two with a burst.
        shadow: whether it is in shadow mode.
        silent: whether an admitted client is told nothing of it.
        settles: whether something of its requests is only known after the decision, and settled then.
        leased: whether its hits are leases.
        near: with so few units remaining, or fewer, the limit is nearly used up.

    Raises:
        ValueError: a value is outside its range.
    """

    name: str
    quota: AnyQuota
    burst: int = 0
    match: Match = field(default_factory=Match)
    principal: tuple[Source, ...] = (CLIENT,)
    cost: int = 1
    mode: Mode = Mode.ENFORCE
    on_store_error: OnStoreError = OnStoreError.LOCAL
    count: frozenset[str] = frozenset()
    cost_from: CostFrom | None = None
    plans: tuple[tuple[str, AnyQuota | None], ...] = ()
    warn_at: float = 0.8
    quiet: bool = False
    descriptors: DescriptorMatch | None = None
    quotas: tuple[AnyQuota, ...] = field(init=False)
    shadow: bool = field(init=False)
    silent: bool = field(init=False)
    settles: bool = field(init=False)
    leased: bool = field(init=False)
    near: int = field(init=False)

    def __post_init__(self) -> None:
        if not 1 <= len(self.name) <= NAME_CHARACTERS_MAX or not NAME_CHARACTERS.issuperset(self.name):
            msg = f"name must be 1 to {NAME_CHARACTERS_MAX} of a-z 0-9 - _ . and not {self.name!r}"
            raise ValueError(msg)
        if self.burst and not isinstance(self.quota, Quota):
            msg = f"burst must be 0 with a limit of this kind ({self.quota.kind}), not {self.burst}"
            raise ValueError(msg)
        if not 0 <= self.burst <= LIMIT_MAX - self.quota.limit * LONG_WINDOWS and self.burst:
            msg = f"burst must be 0 to {LIMIT_MAX} less {LONG_WINDOWS} times the limit, not {self.burst}"
            raise ValueError(msg)
        if self.burst and self.quota.window_ms * LONG_WINDOWS > WINDOW_MS_MAX:
            longest_ms = WINDOW_MS_MAX // LONG_WINDOWS
            msg = f"a burst spans {LONG_WINDOWS} windows, so window_ms must be at most {longest_ms} with one"
            raise ValueError(msg)
        if not 0 <= self.cost <= LIMIT_MAX:
            msg = f"cost must be 0 to {LIMIT_MAX}, not {self.cost}"
            raise ValueError(msg)
        self._check_what_is_settled()
        without_store = OnStoreError(self.on_store_error)
        if self.quota.credits and without_store is OnStoreError.LOCAL:
            without_store = OnStoreError.DENY
        object.__setattr__(self, "mode", Mode(self.mode))
        object.__setattr__(self, "on_store_error", without_store)
        object.__setattr__(self, "quotas", _quotas(self.quota, self.burst))
        object.__setattr__(self, "shadow", self.mode is Mode.SHADOW)
        object.__setattr__(self, "silent", self.shadow or self.quiet)
        later = bool(self.count) or _told_by_response(self.cost_from)
        slots = isinstance(self.quota, Slots)
        object.__setattr__(self, "settles", later or slots)
        object.__setattr__(self, "leased", slots or (later and isinstance(self.quota, Period | Balance)))

        # In decimals, as it was written: in binary 0.7 of ten is less than seven.
        warned_at = ceil(self.quota.limit * Fraction(str(self.warn_at)))
        object.__setattr__(self, "near", self.quota.limit - warned_at)

    def _check_what_is_settled(self) -> None:
        for status in self.count:
            if not _STATUS.fullmatch(status):
                msg = f"count must be of statuses like 401 or classes like 4xx, not {status!r}"
                raise ValueError(msg)
        if isinstance(self.quota, Slots) and (self.count or _told_by_response(self.cost_from)):
            msg = "count and cost_from response_header do nothing for what runs at the same time: all is given back"
            raise ValueError(msg)
        if self.cost_from is not None:
            where, name = self.cost_from
            if where not in COST_PLACES:
                msg = f"cost_from must be of one of {', '.join(COST_PLACES)}, not {where!r}"
                raise ValueError(msg)
            if not name or name != name.lower():
                msg = f"the header of cost_from must be named in lower case, not {name!r}"
                raise ValueError(msg)
        plans = [plan for plan, _ in self.plans]
        if len(plans) > len(set(plans)):
            msg = f"plans must differ: {', '.join(plans)}"
            raise ValueError(msg)
        others = sorted({quota.kind for _, quota in self.plans if quota is not None} - {self.quota.kind})
        if others:
            msg = f"plans must have a limit of the rule's kind ({self.quota.kind}), not of {', '.join(others)}"
            raise ValueError(msg)
        if not 0 < self.warn_at <= 1:
            msg = f"warn_at must be above 0 and at most 1, not {self.warn_at}"
            raise ValueError(msg)


def _told_by_response(source: CostFrom | None) -> bool:
    return source is not None and source.where == RESPONSE_HEADER


_STATUS = re.compile(r"[1-5]([0-9]{2}|xx)")


def _quotas(quota: AnyQuota, burst: int) -> tuple[AnyQuota, ...]:
    if not burst or not isinstance(quota, Quota):
        return (quota,)
    longer = Quota(quota.limit * LONG_WINDOWS + burst, quota.window_ms * LONG_WINDOWS)
    return (Quota(quota.limit + burst, quota.window_ms), longer)


class Hit(NamedTuple):
    """One charge of *cost* against one key and quota. A named tuple, like all that the hot path builds."""

    key: bytes
    quota: AnyQuota
    cost: int
    rule: Rule
    # 0: what is charged stays charged. Else the charge is a lease, and this names it: a random number below 2^48,
    # another for each request. It ends by itself `quota.lease_ttl_ms` after it was made or last renewed.
    lease: int = 0


class AmbiguousPaths(StrEnum):
    """What to do with a path that two readers could take for different ones."""

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
        headers: header families on every response: `x-ratelimit`, `draft-11`, `draft-06`.
        expose_headers: let browsers read those headers (`Access-Control-Expose-Headers`).
        trust: who may speak for another address.
        decision_timeout_ms: a decision comes within this time, whatever the store does.
        local_share: how much of a limit one process admits while the store is out and a rule says local; above
            0 to 1, rounded up to whole units.
        ambiguous_paths: refuse a path that two readers could read differently with 400 (only asked if a rule looks at
            paths), or match whatever the application was given.
        method_override: also apply the rules of the method that an `X-HTTP-Method-Override` header asks for.
        show_principals: whether the admin listener shows who the heaviest principals are, and not only their digests.
        json_bytes_max: bytes of a body that a rule looks into, 1,024 to 1,048,576; a longer one meets every rule that
            would.
        secret: key of the principals' digests, at most 64 bytes; the same wherever a store is shared.
        identity: how callers prove who they are; None for not at all.
        requirements: what requests must bring beside room within their limits; asked in this order.
        plan: where to find which plan a request is on; None if there are no plans.
        overrides: what is different for some principals; of two that are equally exact the first prevails.
        overrides_file: that some of them were read from; empty for none.
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
    domain: str = ""

    def __post_init__(self) -> None:
        names = [rule.name for rule in self.rules]
        twice = sorted({name for name in names if names.count(name) > 1})
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
        fault = plan_fault(self) or next(filter(None, (override_fault(self, each) for each in self.overrides)), "")
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
        return (*dialect, *overrides, *(() if self.identity is None else self.identity.files))

    @property
    def _matches(self) -> tuple[Match, ...]:
        ours = (rule.match for rule in self.rules if rule.descriptors is None)
        return (*ours, *(requirement.match for requirement in self.requirements))

    @property
    def looks_at_paths(self) -> bool:
        """Whether the path of some request makes a difference."""
        return any(match.looks_at_paths for match in self._matches)

    @property
    def looks_at_bodies(self) -> bool:
        """Whether the body of some request makes a difference."""
        return any(match.json for match in self._matches)

    @property
    def catch_all(self) -> bool:
        """Whether every request meets at least one rule."""
        return any(rule.match.everything and rule.descriptors is None for rule in self.rules)


def key_of(policy: Policy, rule: Rule, principal: Principal, quota_index: int) -> bytes:
    """The key of one tally: `rl1:{DIGEST}:POLICY:RULE:INDEX`.

    The braces put all of one principal's keys into one slot of a Redis Cluster. Neither name can hold a colon and the
    digest has a fixed length, so different tallies never share a key (7). In the place of the index of a window, which
    is 0 or 1, another kind has its name: what one kind counts is nothing to another.
    """
    kind = rule.quota.kind
    index = quota_index if kind == Quota.kind else kind
    return f"{KEY_VERSION}:{{{principal.digest}}}:{policy.name}:{rule.name}:{index}".encode()


class Plan:
    """The rules and requirements that one method and path met, the rules ready to become hits.

    Attributes:
        rules: those rules, in the order of the file.
        requirements: those requirements, likewise.
        looks_at_bodies: whether some of the rules are met only if the body says so.
    """

    __slots__ = ("_memo", "_of_bodies", "_policy", "_reader", "_terms", "looks_at_bodies", "requirements", "rules")

    def __init__(
        self,
        policy: Policy,
        rules: tuple[Rule, ...],
        reader: PrincipalReader,
        requirements: tuple[Requirement, ...] = (),
        terms: Terms | None = None,
    ) -> None:
        self.rules = rules
        self.requirements = requirements
        self.looks_at_bodies = any(rule.match.json for rule in rules)
        self._policy = policy
        self._reader = reader
        self._terms = terms
        self._memo: dict[tuple[object, ...], tuple[Hit, ...]] = {}
        self._of_bodies: dict[tuple[bool, ...], Plan] = {}

    def of_body(self, fields: Fields) -> Plan:
        """The rules that are met if the body has these *fields*."""
        met = tuple([fields.meet(rule.match.json) for rule in self.rules])
        plan = self._of_bodies.get(met)
        if plan is None:
            if len(self._of_bodies) >= BODIES_MAX:
                self._of_bodies.clear()
            rules = tuple(rule for rule, meets in zip(self.rules, met, strict=True) if meets)
            plan = Plan(self._policy, rules, self._reader, self.requirements, self._terms)
            self._of_bodies[met] = plan
        return plan

    def hits(self, request: Request) -> tuple[Hit, ...]:
        """The charges of *request*, in the order of the rules.

        Raises:
            MalformedRequest: a header that names a principal can be read in two ways.
            BlockedError: it is of somebody who is blocked.
        """
        watched = self._reader.watched
        headers = [header for header in request[2] if header[0].lower() in watched]
        evidence = (request[3], *headers)
        hits = self._memo.get(evidence)
        if hits is None:
            hits = self._hits(headers, request.peer)
            if len(self._memo) >= HITS_MAX:
                self._memo.clear()
            if sum(len(value) + LINE_BYTES for _, value in headers) <= BYTES_MAX:
                self._memo[evidence] = hits
        return hits

    def hits_of(self, request: Request, identity: Identity) -> tuple[Hit, ...]:
        """The charges of *request*, as `hits`, where credentials are verified: they are what *identity* says."""
        watched = self._reader.watched
        headers = [header for header in request[2] if header[0].lower() in watched]
        evidence = (request[3], identity.verified, identity.plan, *headers)
        hits = self._memo.get(evidence)
        if hits is None:
            hits = self._hits(headers, request.peer, identity.verified, identity.plan)
            if len(self._memo) >= HITS_MAX:
                self._memo.clear()
            if sum(len(value) + LINE_BYTES for _, value in (*headers, *identity.verified)) <= BYTES_MAX:
                self._memo[evidence] = hits
        return hits

    def _hits(
        self,
        headers: list[tuple[bytes, bytes]],
        peer: str | None,
        names: tuple[tuple[str, str], ...] = (),
        plan: str = "",
    ) -> tuple[Hit, ...]:
        if self._terms is not None:
            return self._hits_on_terms(self._terms, headers, peer, names, plan)
        read = self._reader.read
        principals = {rule.principal: read(rule.principal, headers, peer, names) for rule in self.rules}
        return tuple(
            Hit(key_of(self._policy, rule, principals[rule.principal], index), quota, rule.cost, rule)
            for rule in self.rules
            for index, quota in enumerate(rule.quotas)
        )

    def _hits_on_terms(
        self,
        terms: Terms,
        headers: list[tuple[bytes, bytes]],
        peer: str | None,
        names: tuple[tuple[str, str], ...],
        plan: str,
    ) -> tuple[Hit, ...]:
        terms.check_blocks(headers, peer, names)
        plan = terms.plan(headers, peer, plan)
        hits = []
        for stated in self.rules:
            source, value = self._reader.find(stated.principal, headers, peer, names)
            principal = self._reader.principal(source, value)
            rule = terms.rule(stated, principal, value, plan)
            if rule is not None:
                hits += [
                    Hit(key_of(self._policy, rule, principal, index), quota, rule.cost, rule)
                    for index, quota in enumerate(rule.quotas)
                ]
        return tuple(hits)


class Planner:
    """A policy made ready for the hot path: what was worked out for a target or a principal is remembered,
    boundedly.

    Args:
        policy: what is made ready.
        orders: of operators, those in force.
        now_ms: Unix time, to tell which overrides of the policy have ended.
        noted: is told of a plan that nobody knows, once.

    Attributes:
        looks_at_bodies: whether the body of some request makes a difference.
        terms: what is not the same for all principals; None if all is.
    """

    def __init__(
        self,
        policy: Policy,
        orders: Orders = NO_ORDERS,
        *,
        now_ms: int = 0,
        noted: Callable[[str], None] = lambda _: None,
    ) -> None:
        self.policy = policy
        self.reader = reader_for(policy)
        self.terms = Terms(policy, orders, self.reader, now_ms, noted) if terms_needed(policy, orders) else None
        self._rules = tuple(rule for rule in policy.rules if rule.descriptors is None)
        conditional: tuple[Rule | Requirement, ...] = (*self._rules, *policy.requirements)
        self.looks_at_bodies = policy.looks_at_bodies
        self._looks_at_paths = policy.looks_at_paths
        self._plans: dict[tuple[Rule | Requirement, ...], Plan] = {}
        self._memo: dict[tuple[str, bytes, str, str | None], Plan] = {}
        # Where no rule has a condition, there is one plan for everything.
        unconditional = all(each.match.everything for each in conditional)
        self._only = self._planned(self._rules, policy.requirements) if unconditional else None
        # Bound once: two calls less for every request of such a policy (tests/benchmarks/hot_path.py).
        self.hits = self._hits if self._only is None else self._only.hits

    def _hits(self, request: Request) -> tuple[Hit, ...]:
        """The charges of *request*; see `Plan.hits`."""
        return self.plan(request).hits(request)

    def names(
        self, hits: Iterable[Hit], request: Request, verified: Iterable[tuple[str, str]] = ()
    ) -> dict[bytes, str]:
        """Whom *hits* of *request* are about, for people, by key; without those whom nobody may be shown.

        Args:
            hits: charges of *request*.
            request: what they are of.
            verified: source and principal of each of its credentials that was verified.
        """
        name = self.reader.name
        found = {hit.key: name(hit.rule.principal, request.headers, request.peer, verified) for hit in hits}
        return {key: text for key, text in found.items() if text}

    def plan(self, request: Request) -> Plan:
        """The rules that *request* meets.

        Raises:
            MalformedRequest: its path can be read in two ways, and a rule looks at paths.
        """
        plan = self._plan_of_head(request)
        return self._plan_of_body(plan, request) if plan.looks_at_bodies else plan

    def body_wanted(self, request: Request) -> int:
        """How many bytes of the body of *request* make a difference: that many, or all if there are fewer, are to be
        its `body` when its hits are asked for. 0 if none do; the body may then be left unread.
        """
        try:
            if not self._plan_of_head(request).looks_at_bodies:
                return 0
        except MalformedRequest:
            return 0
        lengths = [value for name, value in request.headers if name.lower() == b"content-length"]
        if lengths and lengths[0].isdigit() and int(lengths[0][:20]) > self.policy.json_bytes_max:
            return 0  # too long whatever it says
        return 1 if _encoded(request) else self.policy.json_bytes_max + 1

    def _plan_of_body(self, plan: Plan, request: Request) -> Plan:
        """Of *plan* what the body of *request* meets. One that was not read, is too long or encoded, or is not JSON
        meets everything: nobody can say what the application makes of it. An empty one meets nothing.
        """
        body = request.body
        if body is None or len(body) > self.policy.json_bytes_max or (body and _encoded(request)):
            return plan
        fields = read_fields(body) if body else Fields()
        return plan if fields is None else plan.of_body(fields)

    def _plan_of_head(self, request: Request) -> Plan:
        if self._only is not None:
            return self._only
        if self.policy.method_override:
            return self._planned(*self._met_by_all_methods(request))
        # Targets are the client's to choose, so what only differs where no rule looks shares an entry.
        target = request.target.split(b"?", 1)[0] if self._looks_at_paths else b""
        seen = (request.method, target, request.root_path, request.routed_path if self._looks_at_paths else None)
        plan = self._memo.get(seen)
        if plan is None:
            plan = self._planned(*self.met(request))
            if len(self._memo) >= PLANS_MAX:
                self._memo.clear()
            if sum(len(part) for part in seen if part) <= BYTES_MAX:
                self._memo[seen] = plan
        return plan

    def met(self, request: Request) -> tuple[tuple[Rule, ...], tuple[Requirement, ...]]:
        """The rules and the requirements whose condition *request* meets as far as it is not about the body, in the
        order of the file.

        A path matches in its canonical form, and in the form that the application routes by where that is not ours to
        choose: whichever of the two is dispatched, its rules apply.

        Raises:
            MalformedRequest: the path can be read in two ways, and a rule looks at paths.
        """
        paths = self.paths(request)

        def met(match: Match) -> bool:
            return any(match.matches(request.method, path) for path in paths)

        policy = self.policy
        rules = tuple(rule for rule in self._rules if met(rule.match))
        return rules, tuple(requirement for requirement in policy.requirements if met(requirement.match))

    def paths(self, request: Request) -> tuple[str, ...]:
        """The paths that rules are matched against: the canonical one, and the routed one where it differs."""
        if not self._looks_at_paths:
            return ("/",)
        routed = None if request.routed_path is None else _routed(request.routed_path, request.root_path)
        try:
            canonical = canonical_path(request.target, request.root_path)
        except MalformedRequest:
            if routed is None or self.policy.ambiguous_paths is AmbiguousPaths.REFUSE:
                raise
            return (routed,)
        return (canonical,) if routed in (None, canonical) else (canonical, routed)

    def _met_by_all_methods(self, request: Request) -> tuple[tuple[Rule, ...], tuple[Requirement, ...]]:
        asked = {value.decode("latin-1").strip() for name, value in request.headers if name.lower() in _OVERRIDES}
        methods: Iterable[str] = (request.method, *sorted(asked))
        met = [self.met(request._replace(method=method)) for method in methods]
        rules = {rule for each, _ in met for rule in each}
        requirements = {requirement for _, each in met for requirement in each}
        return (
            tuple(rule for rule in self._rules if rule in rules),
            tuple(requirement for requirement in self.policy.requirements if requirement in requirements),
        )

    def _planned(self, rules: tuple[Rule, ...], requirements: tuple[Requirement, ...]) -> Plan:
        met: tuple[Rule | Requirement, ...] = (*rules, *requirements)
        plan = self._plans.get(met)
        if plan is None:
            plan = self._plans[met] = Plan(self.policy, rules, self.reader, requirements, self.terms)
        return plan


def reader_for(policy: Policy) -> PrincipalReader:
    """What reads principals as *policy* says."""
    sources = [source for rule in policy.rules for source in rule.principal]
    of_plans = () if policy.plan is None else policy.plan.headers
    verified = frozenset() if policy.identity is None else policy.identity.verified
    reader = PrincipalReader(sources, policy.trust, policy.secret, verified)
    reader.watched |= watched_for(of_plans)
    return reader


def _encoded(request: Request) -> bool:
    return any(name.lower() == b"content-encoding" for name, _ in request.headers)


_OVERRIDES = frozenset({b"x-http-method-override", b"x-http-method", b"x-method-override"})


def _routed(path: str, root_path: str) -> str:
    """The routed path as rules spell paths: relative to *root_path*, plain characters plain, all others encoded."""
    root = root_path.rstrip("/")
    if root and (path == root or path.startswith(root + "/")):
        path = path[len(root) :] or "/"
    return quote(path, safe=PLAIN_CHARACTERS + "/", errors="surrogatepass")
