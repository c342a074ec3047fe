"""The rules that a request matched, ready to become hits."""

from __future__ import annotations

from itertools import repeat
from typing import TYPE_CHECKING, Any

from ratelimiter.core.facts import Facts
from ratelimiter.core.identity import NOBODY, Identity
from ratelimiter.core.policy import Policy, key_of
from ratelimiter.core.rule import Hit, Rule

if TYPE_CHECKING:
    from collections.abc import Collection, Mapping, Sequence

    from ratelimiter.core.path_rules import PathRules
    from ratelimiter.core.principal import PrincipalReader, Source
    from ratelimiter.core.request import Request
    from ratelimiter.core.requirement import Requirement
    from ratelimiter.core.tiers import Tiers

BODIES_MAX = 64  # combinations of rules, met by what requests say, that one rule set remembers
HITS_MAX = 8192  # principals of one plan whose hits are remembered
LINE_BYTES = 128  # about what a header line costs beside its value
BYTES_MAX = 4096  # of a request that is remembered; longer ones are worked out anew, so that none can fill the memory


class RuleSet:
    """The rules and requirements that one method and path met, the rules ready to become hits.

    Attributes:
        rules: those rules, in the order of the file.
        requirements: those requirements, likewise.
        undecided: True if some of the rules depend on more than method and path.
        reads_bodies: True if the body makes a difference to some of the rules.
        unsure: those of the rules that some reader of the request would see not match.
        estimates: True if some of the rules reserve units by an estimate from the body.
    """

    __slots__ = (
        "_decided",
        "_keyed",
        "_matches",
        "_memo",
        "_path_rules",
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
        path_rules: PathRules,
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
        self._path_rules = path_rules
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
                self._policy,
                applying(rules, unsure | unknown),
                self._reader,
                self._path_rules,
                tuple(wanted),
                self._tiers,
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
        paths = self._path_rules.paths_of(request) if any(rule.keyed_by_path for rule in self.rules) else ()
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
