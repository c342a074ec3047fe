"""A policy made ready for the hot path: from a request to the set of rules that it matches."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from ratelimiter.core import path_readings
from ratelimiter.core.facts import Facts
from ratelimiter.core.identity import NOBODY, Identity
from ratelimiter.core.overrides import NO_OVERRIDES
from ratelimiter.core.path import canonical_path
from ratelimiter.core.path_rules import PathRules
from ratelimiter.core.policy import AmbiguousPaths, Policy
from ratelimiter.core.principal import PrincipalReader, watched_for
from ratelimiter.core.request import MalformedRequest, Request
from ratelimiter.core.rule_index import INDEXED_MIN, RuleIndex
from ratelimiter.core.rule_set import BYTES_MAX, RuleSet, applying
from ratelimiter.core.tiers import Tiers, tiers_needed

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping, Sequence

    from ratelimiter.core.match import Match
    from ratelimiter.core.overrides import RuntimeOverrides
    from ratelimiter.core.principal import Source
    from ratelimiter.core.requirement import Requirement
    from ratelimiter.core.rule import Hit, Rule

PLANS_MAX = 4096  # (method, target) pairs whose rules are remembered, and combinations of rules


class Planner:
    """A policy made ready for the hot path: what was worked out for a target or a principal is remembered,
    boundedly.

    Args:
        policy: what is made ready.
        orders: of operators, those in force.
        now_ms: Unix time, to tell which overrides of the policy have ended.
        noted: is told of an unknown plan, once.
        built: a planner of the same policy, to take its indexes over.
        indexed_min: more rules than this are found by index, and so are more requirements.

    Attributes:
        looks_at_bodies: True if the body of some request makes a difference.
        tiers: what is not the same for all principals; None if all is.
    """

    def __init__(
        self,
        policy: Policy,
        orders: RuntimeOverrides = NO_OVERRIDES,
        *,
        now_ms: int = 0,
        noted: Callable[[str], None] = lambda _: None,
        built: Planner | None = None,
        indexed_min: int = INDEXED_MIN,
    ) -> None:
        self.policy = policy
        self.reader = reader_for(policy)
        self.tiers = Tiers(policy, orders, self.reader, now_ms, noted) if tiers_needed(policy, orders) else None
        self._rules = tuple(rule for rule in policy.rules if rule.descriptors is None)
        conditional: tuple[Rule | Requirement, ...] = (*self._rules, *policy.requirements)
        self.looks_at_bodies = policy.looks_at_bodies
        self._looks_at_paths = policy.looks_at_paths
        self._path_rules: PathRules
        self._index: RuleIndex[Rule] | None = None
        self._requirement_index: RuleIndex[Requirement] | None = None
        if built is not None:
            self._path_rules, self._index = built._path_rules, built._index
            self._requirement_index = built._requirement_index
        else:
            self._path_rules = PathRules(policy, indexed_min)
            if len(self._rules) > indexed_min:
                self._index = RuleIndex(self._rules)
            if len(policy.requirements) > indexed_min:
                self._requirement_index = RuleIndex(policy.requirements)
        self._host_indexes = tuple(
            index for index in (self._index, self._requirement_index) if index is not None and index.looks_at_hosts
        )
        self._rule_sets: dict[tuple[object, ...], RuleSet] = {}
        self._memo: dict[tuple[object, ...], RuleSet] = {}
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
            rules = RuleSet(self.policy, tuple(hit.rule for hit in hits), self.reader, self._path_rules)
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
        """Return the number of body bytes to read before `hits` is called; 0 if the body is irrelevant.

        *request* then has that many bytes of its body, or all if there are fewer.
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
        routed = request.routed_path if self._looks_at_paths else None
        seen: tuple[Any, ...] = (request.method, target, request.root_path, routed)
        if self._host_indexes:  # hosts that no rule asks for share an entry, too
            seen = (*seen, *[index.hosts_of(request) for index in self._host_indexes])
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

        likely: Sequence[Rule] = self._rules
        if self._index is not None:
            likely = self._index.candidates(methods, self._index.hosts_of(request), paths)
        required: Sequence[Requirement] = self.policy.requirements
        if (index := self._requirement_index) is not None:
            required = index.candidates(methods, index.hosts_of(request), paths)
        rules = tuple(rule for rule in likely if met(rule.match))
        unsure = [rule for rule in rules if not all(rule.match.matches(*reading) for reading in readings)]
        return rules, tuple(each for each in required if met(each.match)), frozenset(unsure)

    def paths(self, request: Request) -> tuple[str, ...]:
        """Return the paths that rules are matched against; see `PathRules.paths_of`."""
        return self._path_rules.paths_of(request) if self._looks_at_paths else ("/",)

    def forwarded(self, method: str, target: bytes) -> bytes:
        """Return the target that a proxy forwards for *target*.

        It is forwarded as it came, unless servers could take it for a path that meets other rules.

        Raises:
            MalformedRequest: two servers could, and no form of it means one path to all of them.
        """
        if not self._looks_at_paths:
            return target
        readings = path_readings.read(target)
        if self._path_rules.alike(method, readings.all):
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
            rule_set = RuleSet(self.policy, rules, self.reader, self._path_rules, requirements, self.tiers, unsure)
            if not rule_set.undecided:
                kept = applying(rules, unsure)
                rule_set = RuleSet(self.policy, kept, self.reader, self._path_rules, requirements, self.tiers)
            if len(self._rule_sets) >= PLANS_MAX:  # a client can name any set of hosts, and any of methods to override
                self._rule_sets.clear()
            self._rule_sets[met] = rule_set
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
