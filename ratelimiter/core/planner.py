"""A policy made ready for the hot path: from a request to its rules, and from these to its hits."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from ratelimiter.core.json_body import JsonFields, read_fields
from ratelimiter.core.overrides import NO_OVERRIDES
from ratelimiter.core.path import canonical_path, routed_path
from ratelimiter.core.policy import AmbiguousPaths, Policy, key_of
from ratelimiter.core.principal import PrincipalReader, watched_for
from ratelimiter.core.request import MalformedRequest, Request
from ratelimiter.core.rule import Hit, Rule
from ratelimiter.core.tiers import Tiers, tiers_needed

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from ratelimiter.core.identity import Identity
    from ratelimiter.core.match import Match
    from ratelimiter.core.overrides import RuntimeOverrides
    from ratelimiter.core.requirement import Requirement

PLANS_MAX = 4096  # (method, target) pairs whose rules are remembered
BODIES_MAX = 64  # combinations of rules, met by what bodies say, whose plans are remembered for one plan
HITS_MAX = 8192  # principals of one plan whose hits are remembered
BYTES_MAX = 4096  # of a request that is remembered; longer ones are worked out anew, so that none can fill the memory
LINE_BYTES = 128  # about what a header line costs beside its value


class RuleSet:
    """The rules and requirements that one method and path met, the rules ready to become hits.

    Attributes:
        rules: those rules, in the order of the file.
        requirements: those requirements, likewise.
        looks_at_bodies: whether some of the rules are met only if the body says so.
        estimates: whether some of the rules reserve what the body asks for.
    """

    __slots__ = (
        "_memo",
        "_of_bodies",
        "_policy",
        "_reader",
        "_tiers",
        "_watched",
        "estimates",
        "looks_at_bodies",
        "requirements",
        "rules",
    )

    def __init__(
        self,
        policy: Policy,
        rules: tuple[Rule, ...],
        reader: PrincipalReader,
        requirements: tuple[Requirement, ...] = (),
        tiers: Tiers | None = None,
    ) -> None:
        self.rules = rules
        self.requirements = requirements
        self.looks_at_bodies = any(rule.match.json for rule in rules)
        self.estimates = any(rule.tokens is not None for rule in rules)
        self._policy = policy
        self._reader = reader
        self._watched = reader.watched
        self._tiers = tiers
        self._memo: dict[tuple[object, ...], tuple[Hit, ...]] = {}
        self._of_bodies: dict[tuple[bool, ...], RuleSet] = {}

    def of_body(self, fields: JsonFields) -> RuleSet:
        """Return the rules that match if the body has these *fields*."""
        met = tuple([fields.meet(rule.match.json) for rule in self.rules])
        rule_set = self._of_bodies.get(met)
        if rule_set is None:
            if len(self._of_bodies) >= BODIES_MAX:
                self._of_bodies.clear()
            rules = tuple(rule for rule, meets in zip(self.rules, met, strict=True) if meets)
            rule_set = RuleSet(self._policy, rules, self._reader, self.requirements, self._tiers)
            self._of_bodies[met] = rule_set
        return rule_set

    def hits(self, request: Request) -> tuple[Hit, ...]:
        """Return the charges of *request*, in the order of the rules.

        Raises:
            MalformedRequest: a header that names a principal can be read in two ways.
            BlockedError: its principal is blocked.
        """
        watched = self._watched
        seen: list[Any] = [request[3]]
        for header in request[2]:  # a comprehension would cost a tenth of a microsecond more
            if header[0].lower() in watched:
                seen.append(header)  # noqa: PERF401
        evidence = tuple(seen)
        hits = self._memo.get(evidence)
        if hits is None:
            headers = seen[1:]
            hits = self._hits(headers, request.peer)
            if len(self._memo) >= HITS_MAX:
                self._memo.clear()
            if sum(len(value) + LINE_BYTES for _, value in headers) <= BYTES_MAX:
                self._memo[evidence] = hits
        return hits

    def hits_of(self, request: Request, identity: Identity) -> tuple[Hit, ...]:
        """Return the charges of *request*, as `hits`, where credentials are verified: they are what *identity* says."""
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
        if self._tiers is not None:
            return self._hits_by_tier(self._tiers, headers, peer, names, plan)
        read = self._reader.read
        principals = {rule.principal: read(rule.principal, headers, peer, names) for rule in self.rules}
        return tuple(
            Hit(key_of(self._policy, rule, principals[rule.principal], index), quota, rule.cost, rule)
            for rule in self.rules
            for index, quota in enumerate(rule.quotas)
        )

    def _hits_by_tier(
        self,
        tiers: Tiers,
        headers: list[tuple[bytes, bytes]],
        peer: str | None,
        names: tuple[tuple[str, str], ...],
        plan: str,
    ) -> tuple[Hit, ...]:
        tiers.check_blocks(headers, peer, names)
        plan = tiers.plan(headers, peer, plan)
        hits = []
        for stated in self.rules:
            source, value = self._reader.find(stated.principal, headers, peer, names)
            principal = self._reader.principal(source, value)
            rule = tiers.rule(stated, principal, value, plan)
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
        noted: is told of an unknown plan, once.

    Attributes:
        looks_at_bodies: whether the body of some request makes a difference.
        tiers: what is not the same for all principals; None if all is.
    """

    def __init__(
        self,
        policy: Policy,
        orders: RuntimeOverrides = NO_OVERRIDES,
        *,
        now_ms: int = 0,
        noted: Callable[[str], None] = lambda _: None,
    ) -> None:
        self.policy = policy
        self.reader = reader_for(policy)
        self.tiers = Tiers(policy, orders, self.reader, now_ms, noted) if tiers_needed(policy, orders) else None
        self._rules = tuple(rule for rule in policy.rules if rule.descriptors is None)
        conditional: tuple[Rule | Requirement, ...] = (*self._rules, *policy.requirements)
        self.looks_at_bodies = policy.looks_at_bodies
        self._looks_at_paths = policy.looks_at_paths
        self._rule_sets: dict[tuple[Rule | Requirement, ...], RuleSet] = {}
        self._memo: dict[tuple[str, bytes, str, str | None], RuleSet] = {}
        # Where no rule has a condition, there is one rule set for everything.
        unconditional = all(each.match.everything for each in conditional)
        self._only = self._rule_set_for(self._rules, policy.requirements) if unconditional else None
        # Bound once: two calls less for every request of such a policy (tests/benchmarks/hot_path.py).
        self.hits = self._hits if self._only is None else self._only.hits

    def _hits(self, request: Request) -> tuple[Hit, ...]:
        """Return the charges of *request*; see `RuleSet.hits`."""
        return self.rule_set(request).hits(request)

    def names(
        self, hits: Iterable[Hit], request: Request, verified: Iterable[tuple[str, str]] = ()
    ) -> dict[bytes, str]:
        """Return the names of the principals of *hits* by key, for people; without those that may not be shown.

        Args:
            hits: charges of *request*.
            request: what they are of.
            verified: source and principal of each of its credentials that was verified.
        """
        name = self.reader.name
        found = {hit.key: name(hit.rule.principal, request.headers, request.peer, verified) for hit in hits}
        return {key: text for key, text in found.items() if text}

    def rule_set(self, request: Request) -> RuleSet:
        """Return the rules that *request* matches.

        Raises:
            MalformedRequest: its path can be read in two ways, and a rule looks at paths.
        """
        rule_set = self._rule_set_of_head(request)
        return self._rule_set_of_body(rule_set, request) if rule_set.looks_at_bodies else rule_set

    def body_wanted(self, request: Request) -> int:
        """How many bytes of the body of *request* make a difference: that many, or all if there are fewer, are to be
        its `body` when its hits are asked for. 0 if none do; the body may then be left unread.
        """
        try:
            rule_set = self._rule_set_of_head(request)
        except MalformedRequest:
            return 0
        if rule_set.estimates:  # of a longer one the beginning, which may say what it asks for
            return 1 if _encoded(request) else self.policy.json_bytes_max + 1
        if not rule_set.looks_at_bodies:
            return 0
        lengths = [value for name, value in request.headers if name.lower() == b"content-length"]
        if lengths and lengths[0].isdigit() and int(lengths[0][:20]) > self.policy.json_bytes_max:
            return 0  # too long whatever it says
        return 1 if _encoded(request) else self.policy.json_bytes_max + 1

    def _rule_set_of_body(self, rule_set: RuleSet, request: Request) -> RuleSet:
        """Return the rules of *rule_set* that the body of *request* meets.

        A body that was not read, is too long or encoded, or is not JSON meets all of them, as the application may read
        anything in it. An empty body meets none that looks at it.
        """
        body = request.body
        if body is None or len(body) > self.policy.json_bytes_max or (body and _encoded(request)):
            return rule_set
        fields = read_fields(body) if body else JsonFields()
        return rule_set if fields is None else rule_set.of_body(fields)

    def _rule_set_of_head(self, request: Request) -> RuleSet:
        if self._only is not None:
            return self._only
        if self.policy.method_override:
            return self._rule_set_for(*self._met_by_all_methods(request))
        # Targets are the client's to choose, so what only differs where no rule looks shares an entry.
        target = request.target.split(b"?", 1)[0] if self._looks_at_paths else b""
        seen = (request.method, target, request.root_path, request.routed_path if self._looks_at_paths else None)
        rule_set = self._memo.get(seen)
        if rule_set is None:
            rule_set = self._rule_set_for(*self.met(request))
            if len(self._memo) >= PLANS_MAX:
                self._memo.clear()
            if sum(len(part) for part in seen if part) <= BYTES_MAX:
                self._memo[seen] = rule_set
        return rule_set

    def met(self, request: Request) -> tuple[tuple[Rule, ...], tuple[Requirement, ...]]:
        """Return the rules and requirements that *request* matches, the body left out, in the order of the file.

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
        """Return the paths that rules are matched against: the canonical one, and the routed one where it differs."""
        if not self._looks_at_paths:
            return ("/",)
        routed = None if request.routed_path is None else routed_path(request.routed_path, request.root_path)
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

    def _rule_set_for(self, rules: tuple[Rule, ...], requirements: tuple[Requirement, ...]) -> RuleSet:
        met: tuple[Rule | Requirement, ...] = (*rules, *requirements)
        rule_set = self._rule_sets.get(met)
        if rule_set is None:
            rule_set = self._rule_sets[met] = RuleSet(self.policy, rules, self.reader, requirements, self.tiers)
        return rule_set


def reader_for(policy: Policy) -> PrincipalReader:
    """Return the reader of principals that *policy* asks for."""
    sources = [source for rule in policy.rules for source in rule.principal]
    of_plans = () if policy.plan is None else policy.plan.headers
    verified = frozenset() if policy.identity is None else policy.identity.verified
    reader = PrincipalReader(sources, policy.trust, policy.secret, verified)
    reader.watched |= watched_for(of_plans)
    return reader


def _encoded(request: Request) -> bool:
    return any(name.lower() == b"content-encoding" for name, _ in request.headers)


_OVERRIDES = frozenset({b"x-http-method-override", b"x-http-method", b"x-method-override"})
