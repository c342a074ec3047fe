"""Rules that never refuse a request: another rule matches all their requests and refuses first."""

from __future__ import annotations

from collections import defaultdict
from dataclasses import fields, replace
from typing import TYPE_CHECKING

from ratelimiter.core.match import ALSO_MEANT, Match
from ratelimiter.core.principal import EVERYONE
from ratelimiter.core.quota import Quota, Slots
from ratelimiter.core.rule import Mode, Rule

if TYPE_CHECKING:
    from collections.abc import Hashable, Iterator, Sequence

    from ratelimiter.core.quota import AnyQuota

ANY = object()  # in the place of a first segment: the rule matches every path, or any first segment
# Fields of a match that are compared below. A condition that this module does not know must be equal in both rules.
KNOWN = ("methods", "path", "excepted", "json", "ignore_case")
OTHERS = tuple(field.name for field in fields(Match) if field.init and field.name not in KNOWN)


def never_refusing(rules: Sequence[Rule]) -> Iterator[tuple[int, int]]:
    """Yield pairs of a rule that never refuses and the rule that always refuses before it, by index."""
    strictest: dict[Hashable, int] = {}  # of rules that differ in their limit alone, the others add nothing
    for index, rule in enumerate(rules):
        if rule.mode is Mode.ENFORCE and rule.descriptors is None and not rule.count and not rule.plans:
            alike = rule.match, rule.principal, but_limit(rule), rule.burst, rule.cost
            first = strictest.setdefault(alike, index)
            if rule.quota.limit < rules[first].quota.limit:
                strictest[alike] = index
    by_place: dict[Hashable, list[int]] = defaultdict(list)
    for index in strictest.values():
        by_place[_first_segment(rules[index].match)].append(index)
    for index, rule in enumerate(rules):
        if rule.descriptors is not None or rule.plans or rule.instead:
            continue
        places = {ANY, _first_segment(rule.match)}
        for other in sorted(candidate for place in places for candidate in by_place[place]):
            if other != index and _refuses_first(rules[other], rule) and not _same(rules[other], rule):
                yield index, other
                break


def never_reached(rules: Sequence[Rule]) -> Iterator[tuple[int, int]]:
    """Yield pairs of a rule that applies to no request and the later rule that replaces it everywhere, by index."""
    replacing = [index for index, rule in enumerate(rules) if rule.instead]
    for index, rule in enumerate(rules):
        if rule.descriptors is None and not rule.always:
            later = (other for other in replacing if other > index and covers(rules[other].match, rule.match))
            found = next(later, None)
            if found is not None:
                yield index, found


def covers(wide: Match, narrow: Match) -> bool:
    """Return True if every request that *narrow* matches is matched by *wide*; False if that is not certain."""
    if wide.methods and not (narrow.methods and _meant(narrow.methods) <= _meant(wide.methods)):
        return False
    if wide.json not in ((), narrow.json) or set(wide.excepted) - set(narrow.excepted):
        return False
    default = Match()
    if any(getattr(wide, name) not in (getattr(default, name), getattr(narrow, name)) for name in OTHERS):
        return False
    if wide.path in (None, narrow.path) and (wide.path is None or wide.ignore_case == narrow.ignore_case):
        return True
    return wide.ignore_case == narrow.ignore_case and _covers_path(wide.path, narrow.path)


def _meant(methods: frozenset[str]) -> frozenset[str]:
    upper = frozenset(method.upper() for method in methods)
    return upper | {ALSO_MEANT[method] for method in upper if method in ALSO_MEANT}


def _covers_path(wide: object, narrow: object) -> bool:
    if not isinstance(wide, str) or not isinstance(narrow, str):
        return False  # several paths, or none: not certain
    segments, below = segments_of(wide)
    others, others_below = segments_of(narrow)
    if len(segments) > len(others) or (not below and (len(segments) != len(others) or others_below)):
        return False
    return all(is_wildcard(segment) or segment == other for segment, other in zip(segments, others, strict=False))


def segments_of(path: str, *, whole: bool = False) -> tuple[list[str], bool]:
    """Return the segments of a path template, and True if it matches everything below them; a *whole* path does not."""
    segments = path.strip("/").split("/") if path.strip("/") else []
    below = not whole and bool(segments) and segments[-1] in ("*", "**")
    return (segments[:-1] if below else segments), below


def is_wildcard(segment: str) -> bool:
    """Return True if *segment* of a template fits any segment."""
    return segment == "*" or (segment.startswith("{") and segment.endswith("}"))


def _first_segment(match: Match) -> Hashable:
    path: object = match.path
    if not isinstance(path, str):
        return ANY
    segments, _ = segments_of(path)
    if not segments or is_wildcard(segments[0]) or match.ignore_case:
        return ANY
    return segments[0]


def _same(one: Rule, other: Rule) -> bool:
    """Return True for rules that `lint` reports as twins already."""
    return (one.match, one.principal) == (other.match, other.principal) and but_limit(one) == but_limit(other)


def but_limit(rule: Rule) -> AnyQuota:
    """Return the quota of *rule* without its limit."""
    return replace(rule.quota, limit=1)


def _refuses_first(first: Rule, rule: Rule) -> bool:
    """Return True if *first* refuses every request that *rule* would refuse."""
    if first.principal not in (rule.principal, (EVERYONE,)) or not covers(first.match, rule.match):
        return False
    if not rule.cost or first.cost < rule.cost or rule.cost_from is not None or first.cost_from is not None:
        return False
    if first.tokens is not None or rule.tokens is not None:
        return False
    if isinstance(first.quota, Quota) and isinstance(rule.quota, Quota):
        windows = -(-rule.quota.window_ms // first.quota.window_ms)
        return (first.quota.limit + first.burst) * windows <= rule.quota.limit
    if isinstance(first.quota, Slots):
        return isinstance(rule.quota, Slots) and first.quota.limit <= rule.quota.limit
    return but_limit(first) == but_limit(rule) and first.quota.limit <= rule.quota.limit
