"""The paths of a request that the rules of a policy are matched against."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from ratelimiter.core import path_readings
from ratelimiter.core.path import canonical_path, routed_path
from ratelimiter.core.policy import AmbiguousPaths
from ratelimiter.core.request import MalformedRequest
from ratelimiter.core.rule_index import INDEXED_MIN, RuleIndex

if TYPE_CHECKING:
    from collections.abc import Sequence

    from ratelimiter.core.match import Match
    from ratelimiter.core.policy import Policy
    from ratelimiter.core.request import Request


class PathRules:
    """The conditions of a policy that look at methods and paths, made ready to compare the readings of a path.

    Args:
        policy: its rules without descriptors, and its requirements.
        indexed_min: more conditions than this are found by index.
    """

    def __init__(self, policy: Policy, indexed_min: int = INDEXED_MIN) -> None:
        self._matching = policy.ambiguous_paths is AmbiguousPaths.MATCH
        rules = [rule for rule in policy.rules if rule.descriptors is None]
        conditions = [_PathRule(rule.match, rule.keyed_by_path) for rule in rules]
        conditions += [_PathRule(each.match, False) for each in policy.requirements]
        # Conditions that differ in what paths do not decide, such as the host, are compared once.
        self._conditions = tuple({(each.match.shape, each.keyed): each for each in conditions}.values())
        self._methods: frozenset[str] = frozenset()
        if policy.method_override:
            self._methods = self._methods.union(*[each.match.methods for each in conditions])
        indexed = len(self._conditions) > indexed_min
        self._index = RuleIndex(self._conditions, paths_only=True) if indexed else None

    def paths_of(self, request: Request) -> tuple[str, ...]:
        """Return the paths of *request* that rules are matched against: the canonical, and the routed if it differs.

        A path without a canonical form has all its readings instead, if they meet the same rules, or if the policy
        says `ambiguous_paths: match`. The rules of each reading apply then, or of the routed path if there is one.

        Raises:
            MalformedRequest: it has none, and two readings meet different rules.
        """
        routed = None if request.routed_path is None else routed_path(request.routed_path, request.root_path)
        try:
            canonical = canonical_path(request.target, request.root_path)
        except MalformedRequest as fault:
            if routed is not None and self._matching:
                return (routed,)
            readings = path_readings.read(request.target, request.root_path).all
            if routed is not None:
                readings = (*readings, routed)
            if not self._matching and not self.alike(request.method, readings):
                raise fault from None
            return readings
        return (canonical,) if routed in (None, canonical) else (canonical, routed)

    def alike(self, method: str, paths: Sequence[str]) -> bool:
        """Return True if all *paths* meet the same conditions, with the same parameters where keys have them."""
        if len(paths) < 2:
            return True
        # A condition that the index does not name fits none of the paths: it cannot tell them apart.
        compared = self._conditions if self._index is None else self._index.candidates((), (), paths)
        methods = sorted({method} | self._methods)

        def met(path: str) -> list[object]:
            found = [match.captured(path) if keyed else None for match, keyed in compared]
            return [*found, *[match.matches(each, path) for match, _ in compared for each in methods]]

        first, *others = paths
        expected = met(first)
        return all(expected == met(other) for other in others)


class _PathRule(NamedTuple):
    """The condition of a rule, and True beside it if path parameters are part of the rule's key."""

    match: Match
    keyed: bool
