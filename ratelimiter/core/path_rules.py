"""The paths of a request that the rules of a policy are matched against."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ratelimiter.core import path_readings
from ratelimiter.core.path import canonical_path, routed_path
from ratelimiter.core.policy import AmbiguousPaths
from ratelimiter.core.request import MalformedRequest

if TYPE_CHECKING:
    from collections.abc import Sequence

    from ratelimiter.core.policy import Policy
    from ratelimiter.core.request import Request


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
