"""The index of a policy's rules by path, host and method: the few that a request may match, without a look at the rest.

A tree has a branch for each literal segment of a path and one for a wildcard, so a lookup walks the segments of the
request. At each end the entries are sorted by host and method. The index answers with a superset, in the order of the
file; `Match.matches` and `Match.meets` decide, as they do without an index. Exceptions and conditions other than
the host are theirs alone.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Generic, Protocol, TypeVar

from ratelimiter.core.facts import host_of
from ratelimiter.core.match import segments_of

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from ratelimiter.core.match import Match, Template
    from ratelimiter.core.request import Request

# Up to here, a look at every rule costs no more than a walk through the tree (python -m tests.benchmarks.rules).
INDEXED_MIN = 4
# Hosts times methods of one rule that are entries of their own. A rule with more is found under any host and method:
# its entries would take the memory of their product with its paths.
ENTRIES_MAX = 256

_ANY_HOST, _ANY_METHOD = None, ""
_Key = tuple[bytes | None, str]  # host and method


class _Conditional(Protocol):
    @property
    def match(self) -> Match: ...


T = TypeVar("T", bound=_Conditional)


class RuleIndex(Generic[T]):
    """An index of *items*, which have a `match`: rules, requirements or conditions on paths.

    Args:
        items: in the order of the file.
        paths_only: find them by path alone, under every host and method.
    """

    def __init__(self, items: Sequence[T], *, paths_only: bool = False) -> None:
        self._items = items
        self._trees: dict[bool, _Node] = {}  # by `ignore_case`: such rules are found by other segments
        self._hosts: set[bytes] = set()
        for position, item in enumerate(items):
            match = item.match
            keys = [(_ANY_HOST, _ANY_METHOD)] if paths_only else list(_keys_of(match))
            self._hosts.update(host for host, _ in keys if host is not None)
            tree = self._trees.setdefault(match.ignore_case, _Node())
            for template in match.templates:
                tree.add(template, keys, position)

    @property
    def looks_at_hosts(self) -> bool:
        """True if the host of a request makes a difference to `candidates`."""
        return bool(self._hosts)

    def hosts_of(self, request: Request) -> tuple[bytes, ...]:
        """Return the hosts that *request* names and some item asks for, sorted: a closed set, unlike the sent ones."""
        if not self._hosts:
            return ()
        named = {host_of(value) for name, value in request.headers if name.lower() == b"host"}
        return tuple(sorted(named & self._hosts))

    def candidates(self, methods: Iterable[str], hosts: Iterable[bytes], paths: Iterable[str]) -> list[T]:
        """Return a superset of the items that match one of *methods* on one of *paths*, in the order of the file.

        Args:
            methods: as they were sent.
            hosts: of the request; see `hosts_of`.
            paths: every path of the request that rules are matched against.
        """
        of_method = (_ANY_METHOD, *{method.upper() for method in methods})
        keys = [(host, method) for host in (_ANY_HOST, *hosts) for method in of_method]
        found: set[int] = set()
        for path in paths:
            for ignore_case, tree in self._trees.items():
                for entries in tree.find(segments_of(path, ignore_case=ignore_case)):
                    for key in keys:
                        found.update(entries.get(key, ()))
        return [self._items[position] for position in sorted(found)]


class _Node:
    """A node of the tree: the templates that begin with the segments on the way to it."""

    __slots__ = ("below", "ends", "literals", "wildcard")

    def __init__(self) -> None:
        self.literals: dict[str, _Node] = {}
        self.wildcard: _Node | None = None
        self.ends: dict[_Key, list[int]] = {}  # of templates that fit just this path
        self.below: dict[_Key, list[int]] = {}  # of templates that fit everything below, too

    def add(self, template: Template, keys: Iterable[_Key], position: int) -> None:
        """Enter *position* where *template* ends, under each of *keys*."""
        node = self
        for segment in template.segments:
            if segment is None:
                node.wildcard = node.wildcard or _Node()
                node = node.wildcard
            else:
                node = node.literals.setdefault(segment, _Node())
        entries = node.below if template.below else node.ends
        for key in keys:
            entries.setdefault(key, []).append(position)

    def find(self, segments: Sequence[str]) -> list[dict[_Key, list[int]]]:
        """Return the entries of every template that fits *segments*.

        The steps are bounded by the nodes of the policy, whatever the path: each node is reached in one way.
        """
        found = []
        nodes = [self]
        for segment in segments:
            reached = []
            for node in nodes:
                if node.below:
                    found.append(node.below)
                if segment in node.literals:
                    reached.append(node.literals[segment])
                if node.wildcard is not None:
                    reached.append(node.wildcard)
            nodes = reached
            if not nodes:
                return found
        for node in nodes:
            found += [node.below, node.ends]
        return found


def _keys_of(match: Match) -> Iterable[_Key]:
    """Return the hosts and methods under which *match* is found. It never matches a request that has none of them."""
    hosts: Iterable[bytes | None] = (_ANY_HOST,) if match.hosts is None else match.hosts
    methods: Iterable[str] = match.met_methods or (_ANY_METHOD,)
    keys = [(host, method) for host in hosts for method in methods]
    return keys if len(keys) <= ENTRIES_MAX else [(_ANY_HOST, _ANY_METHOD)]
