"""A policy made ready for the hot path: from a request to its rules, and from these to its hits."""

from __future__ import annotations

from itertools import repeat
from typing import TYPE_CHECKING, Any

from ratelimiter.core import path_readings
from ratelimiter.core.facts import Facts
from ratelimiter.core.identity import NOBODY, Identity
from ratelimiter.core.overrides import NO_OVERRIDES
from ratelimiter.core.path import canonical_path, routed_path
from ratelimiter.core.policy import AmbiguousPaths, Policy, key_of
from ratelimiter.core.principal import PrincipalReader, watched_for
from ratelimiter.core.request import MalformedRequest, Request
from ratelimiter.core.rule import Hit, Rule
from ratelimiter.core.tiers import Tiers, tiers_needed

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterable, Mapping, Sequence

    from ratelimiter.core.match import Match
    from ratelimiter.core.overrides import RuntimeOverrides
    from ratelimiter.core.principal import Source
    from ratelimiter.core.requirement import Requirement

PLANS_MAX = 4096  # (method, target) pairs whose rules are remembered
BODIES_MAX = 64  # combinations of rules, met by what requests say, that one rule set remembers
HITS_MAX = 8192  # principals of one plan whose hits are remembered
BYTES_MAX = 4096  # of a request that is remembered; longer ones are worked out anew, so that none can fill the memory
LINE_BYTES = 128  # about what a header line costs beside its value


class RuleSet:
    """The rules and requirements that one method and path met, the rules ready to become hits.

    Attributes:
        rules: those rules, in the order of the file.
        requirements: those requirements, likewise.
        undecided: whether some of the rules are met only if more than method and path says so.
        reads_bodies: whether the body makes a difference to some of the rules.
        unsure: those of the rules that some reader of the request would see not match.
        estimates: whether some of the rules reserve what the body asks for.
    """

    __slots__ = (
        "_decided",
        "_keyed",
        "_matches",
        "_memo",
        "_policy",
        "_reader",
        "_tiers",
        "_watched",
        "estimates",
        "reads_bodies",
        "requirements",
        "rules",
        "undecided",
        "unsure",
    )

    def __init__(  # noqa: PLR0917  # made here alone
        self,
        policy: Policy,
        rules: tuple[Rule, ...],
        reader: PrincipalReader,
        requirements: tuple[Requirement, ...] = (),
        tiers: Tiers | None = None,
        unsure: frozenset[Rule] = frozenset(),
    ) -> None:
        self.rules = rules
        self.unsure = unsure
        self.requirements = requirements
        matches = [*(rule.match for rule in rules), *(requirement.match for requirement in requirements)]
        self.undecided = any(match.undecided for match in matches)
        of_body = any(match.json for match in matches)
        self._matches = matches
        self.reads_bodies = of_body or any(rule.keyed_by_body for rule in rules)
        self._keyed = any(rule.keyed_by for rule in rules)
        self.estimates = any(rule.tokens is not None for rule in rules)
        self._policy = policy
        self._reader = reader
        self._watched = reader.watched
        self._tiers = tiers
        self._memo: dict[tuple[object, ...], tuple[Hit, ...]] = {}
        self._decided: dict[tuple[bool | None, ...], RuleSet] = {}

    def decided(self, facts: Facts, unsure: frozenset[Rule]) -> RuleSet:
        """Return the rules and requirements that the request of *facts* matches.

        Args:
            facts: of the request.
            unsure: rules that stand in for no other, as a reader of the request may see them not match.
        """
        met = tuple([match.meets(facts) for match in self._matches])
        rule_set = self._decided.get(met)
        if rule_set is None:
            if len(self._decided) >= BODIES_MAX:
                self._decided.clear()
            number = len(self.rules)
            # What is unknown is met, but does not stand in for others: whatever the application reads, a limit holds.
            rules = [rule for rule, meets in zip(self.rules, met[:number], strict=True) if meets is not False]
            unknown = {rule for rule, meets in zip(self.rules, met[:number], strict=True) if meets is None}
            wanted = [each for each, meets in zip(self.requirements, met[number:], strict=True) if meets is not False]
            rule_set = RuleSet(
                self._policy, applying(rules, unsure | unknown), self._reader, tuple(wanted), self._tiers
            )
            self._decided[met] = rule_set
        return rule_set

    def hits(self, request: Request) -> tuple[Hit, ...]:
        """Return the charges of *request*, in the order of the rules.

        Raises:
            MalformedRequest: a header that names a principal can be read in two ways.
            BlockedError: its principal is blocked.
        """
        if self._keyed:
            return self.hits_of(request, NOBODY)
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
        keys = self.keys_of(request) if self._keyed else None
        found = () if keys is None else tuple(tuple(each.items()) for each in keys)
        evidence = (request[3], identity.verified, identity.plan, found, *headers)
        hits = self._memo.get(evidence)
        if hits is None:
            hits = self._hits(headers, request.peer, identity.verified, identity.plan, keys)
            if len(self._memo) >= HITS_MAX:
                self._memo.clear()
            length = sum(len(value) + LINE_BYTES for each in found for _, value in each)
            if length + sum(len(value) + LINE_BYTES for _, value in (*headers, *identity.verified)) <= BYTES_MAX:
                self._memo[evidence] = hits
        return hits

    def keys_of(self, request: Request) -> list[dict[Source, bytes]]:
        """Return for each rule what *request* has of the sources that are not in watched headers.

        Raises:
            MalformedRequest: one of them can be read in two ways.
        """
        facts = Facts(request, self._policy.json_bytes_max, lambda: None, lambda: "", identified=False)
        paths = paths_of(request, self._policy) if any(rule.keyed_by_path for rule in self.rules) else ()
        keys = []
        for rule in self.rules:
            captured = [rule.match.captured(path) for path in paths if rule.match.matches(request.method, path)]
            keys.append({source: facts.key(source, captured) for source in rule.keyed_by})
        return keys

    def _hits(
        self,
        headers: list[tuple[bytes, bytes]],
        peer: str | None,
        names: tuple[tuple[str, str], ...] = (),
        plan: str = "",
        keys: Sequence[Mapping[Source, bytes]] | None = None,
    ) -> tuple[Hit, ...]:
        if self._tiers is not None:
            return self._hits_by_tier(self._tiers, headers, peer, names, plan, keys)
        read = self._reader.read
        if keys is not None:
            return tuple(
                Hit(key_of(self._policy, rule, principal, index), quota, rule.cost, rule)
                for rule, found in zip(self.rules, keys, strict=True)
                for principal in [read(rule.principal, headers, peer, names, found)]
                for index, quota in enumerate(rule.quotas)
            )
        principals = {rule.principal: read(rule.principal, headers, peer, names) for rule in self.rules}
        return tuple(
            Hit(key_of(self._policy, rule, principals[rule.principal], index), quota, rule.cost, rule)
            for rule in self.rules
            for index, quota in enumerate(rule.quotas)
        )

    def _hits_by_tier(  # noqa: PLR0917  # as `_hits`
        self,
        tiers: Tiers,
        headers: list[tuple[bytes, bytes]],
        peer: str | None,
        names: tuple[tuple[str, str], ...],
        plan: str,
        keys: Sequence[Mapping[Source, bytes]] | None,
    ) -> tuple[Hit, ...]:
        tiers.check_blocks(headers, peer, names, keys or ())
        plan = tiers.plan(headers, peer, plan)
        hits = []
        for stated, found in zip(self.rules, keys or repeat(None, len(self.rules)), strict=True):
            source, value = self._reader.find(stated.principal, headers, peer, names, found)
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
        self._rule_sets: dict[tuple[object, ...], RuleSet] = {}
        self._memo: dict[tuple[str, bytes, str, str | None], RuleSet] = {}
        # Where no rule has a condition, there is one rule set for everything.
        unconditional = all(each.match.everything for each in conditional)
        self._only = self.rule_set_for(self._rules, policy.requirements) if unconditional else None
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
        keys: dict[str, Mapping[Source, bytes]] = {}
        if any(rule.keyed_by for rule in self._rules):
            rules = RuleSet(self.policy, tuple(hit.rule for hit in hits), self.reader)
            keys = dict(zip((hit.rule.name for hit in hits), rules.keys_of(request), strict=True))
        found = {
            hit.key: name(hit.rule.principal, request.headers, request.peer, verified, keys.get(hit.rule.name))
            for hit in hits
        }
        return {key: text for key, text in found.items() if text}

    def rule_set(self, request: Request, identity: Identity = NOBODY) -> RuleSet:
        """Return the rules that *request* of *identity* matches.

        Raises:
            MalformedRequest: its path can be read in two ways, and a rule looks at paths.
        """
        rule_set = self._rule_set_of_head(request)
        return rule_set.decided(self._facts(request, identity), rule_set.unsure) if rule_set.undecided else rule_set

    def _facts(self, request: Request, identity: Identity) -> Facts:
        def plan() -> str:
            if self.tiers is None:
                return ""
            watched = self.reader.watched
            headers = [header for header in request.headers if header[0].lower() in watched]
            return self.tiers.plan_of(headers, request.peer, identity.verified, identity.plan)

        return Facts(
            request,
            self.policy.json_bytes_max,
            lambda: self.reader.client(request.headers, request.peer),
            plan,
            identified=bool(identity.verified),
        )

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
        if not rule_set.reads_bodies:
            return 0
        lengths = [value for name, value in request.headers if name.lower() == b"content-length"]
        if lengths and lengths[0].isdigit() and int(lengths[0][:20]) > self.policy.json_bytes_max:
            return 0  # too long whatever it says
        return 1 if _encoded(request) else self.policy.json_bytes_max + 1

    def _rule_set_of_head(self, request: Request) -> RuleSet:
        if self._only is not None:
            return self._only
        if self.policy.method_override:
            return self.rule_set_for(*self.met(request))
        # Targets are the client's to choose, so what only differs where no rule looks shares an entry.
        target = request.target.split(b"?", 1)[0] if self._looks_at_paths else b""
        seen = (request.method, target, request.root_path, request.routed_path if self._looks_at_paths else None)
        rule_set = self._memo.get(seen)
        if rule_set is None:
            rule_set = self.rule_set_for(*self.met(request))
            if len(self._memo) >= PLANS_MAX:
                self._memo.clear()
            if sum(len(part) for part in seen if part) <= BYTES_MAX:
                self._memo[seen] = rule_set
        return rule_set

    def met(self, request: Request) -> tuple[tuple[Rule, ...], tuple[Requirement, ...], frozenset[Rule]]:
        """Return the rules and requirements that match *request* by method and path, in the order of the file.

        Beside them: those of the rules that some reader of the request would see not match.

        A path matches in its canonical form, and in the form that the application routes by where that is not ours to
        choose: whichever of the two is dispatched, its rules apply. So it is with the methods of a method override.

        Raises:
            MalformedRequest: the path can be read in two ways, and a rule looks at paths.
        """
        paths = self.paths(request)
        methods = [request.method]
        if self.policy.method_override:
            asked = {value.decode("latin-1").strip() for name, value in request.headers if name.lower() in _OVERRIDES}
            methods += sorted(asked)
        readings = [(method, path) for method in methods for path in paths]

        def met(match: Match) -> bool:
            return any(match.matches(*reading) for reading in readings)

        rules = tuple(rule for rule in self._rules if met(rule.match))
        unsure = [rule for rule in rules if not all(rule.match.matches(*reading) for reading in readings)]
        return rules, tuple(each for each in self.policy.requirements if met(each.match)), frozenset(unsure)

    def paths(self, request: Request) -> tuple[str, ...]:
        """Return the paths that rules are matched against; see `paths_of`."""
        return paths_of(request, self.policy) if self._looks_at_paths else ("/",)

    def forwarded(self, method: str, target: bytes) -> bytes:
        """Return the target that a proxy forwards for *target*.

        It is forwarded as it came, unless servers could take it for a path that meets other rules.

        Raises:
            MalformedRequest: two servers could, and no form of it means one path to all of them.
        """
        if not self._looks_at_paths:
            return target
        readings = path_readings.read(target)
        if alike(self.policy, method, readings.all):
            return target
        if readings.canonical is not None:
            return path_readings.normalized(target)
        if self.policy.ambiguous_paths is AmbiguousPaths.REFUSE:
            canonical_path(target)  # which says why there is none
        return target

    def rule_set_for(
        self,
        rules: tuple[Rule, ...],
        requirements: tuple[Requirement, ...] = (),
        unsure: frozenset[Rule] = frozenset(),
    ) -> RuleSet:
        """Return the rule set of *rules*, all of which match but for what is undecided."""
        met = (rules, requirements, unsure)
        rule_set = self._rule_sets.get(met)
        if rule_set is None:
            rule_set = RuleSet(self.policy, rules, self.reader, requirements, self.tiers, unsure)
            if not rule_set.undecided:
                rule_set = RuleSet(self.policy, applying(rules, unsure), self.reader, requirements, self.tiers)
            self._rule_sets[met] = rule_set
        return rule_set


def applying(rules: Sequence[Rule], unsure: Collection[Rule]) -> tuple[Rule, ...]:
    """Return those of *rules*, all of which match, that apply: one that says `instead` puts away those before it.

    Args:
        rules: in the order of the file.
        unsure: rules that put none away, as it is not sure that they match.
    """
    kept: list[Rule] = []
    for rule in rules:
        if rule.instead and rule not in unsure:
            kept = [other for other in kept if other.always]
        kept.append(rule)
    return tuple(kept)


def paths_of(request: Request, policy: Policy) -> tuple[str, ...]:
    """Return the paths of *request* that rules are matched against: the canonical, and the routed one if it differs.

    A path without a canonical form has all its readings instead, if they meet the same rules, or if the policy says
    `ambiguous_paths: match`; then the rules of each reading apply, or of the routed path where there is one.

    Raises:
        MalformedRequest: it has none, and two readings meet different rules.
    """
    routed = None if request.routed_path is None else routed_path(request.routed_path, request.root_path)
    try:
        canonical = canonical_path(request.target, request.root_path)
    except MalformedRequest as fault:
        matching = policy.ambiguous_paths is AmbiguousPaths.MATCH
        if routed is not None and matching:
            return (routed,)
        readings = path_readings.read(request.target, request.root_path).all
        if routed is not None:
            readings = (*readings, routed)
        if not matching and not alike(policy, request.method, readings):
            raise fault from None
        return readings
    return (canonical,) if routed in (None, canonical) else (canonical, routed)


def alike(policy: Policy, method: str, paths: Sequence[str]) -> bool:
    """Return True if all *paths* meet the same rules and requirements, with the same parameters where these count."""
    rules = [rule for rule in policy.rules if rule.descriptors is None]
    matches = [(rule.match, rule.keyed_by_path) for rule in rules]
    matches += [(each.match, False) for each in policy.requirements]
    methods = {method}
    if policy.method_override:
        methods = methods.union(*[match.methods for match, _ in matches])

    def met(path: str) -> list[object]:
        found = [match.captured(path) if keyed else None for match, keyed in matches]
        return [*found, *[match.matches(each, path) for match, _ in matches for each in sorted(methods)]]

    first, *others = paths
    expected = met(first) if others else []
    return all(expected == met(other) for other in others)


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
