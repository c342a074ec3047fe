"""The condition of a rule: on the method, the path, the head, the caller and the body of a request."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, NamedTuple
from urllib.parse import quote, unquote

from ratelimiter.core.path import PLAIN_CHARACTERS

if TYPE_CHECKING:
    from collections.abc import Sequence

    from ratelimiter.core.client_address import Network
    from ratelimiter.core.facts import Facts
    from ratelimiter.core.json_body import JsonField
    from ratelimiter.core.overrides import Pattern

# HEAD is GET without the body (RFC 9110 section 9.3.2), so it spends what GET spends.
ALSO_MEANT = {"GET": "HEAD"}


@dataclass(frozen=True, slots=True)
class Match:
    """The condition of a rule. Everything left out matches everything.

    Args:
        methods: upper-case methods; GET includes HEAD.
        excepted_methods: upper-case methods that do not match after all.
        path: `/v1/items`, with `{name}` or `*` for one segment, and a final `/*` or `/**` for everything below (and the
            path itself). A trailing slash is of no account.
        paths: instead of one path several, of which one must fit.
        excepted: paths, spelled likewise, that do not match after all.
        ignore_case: compare paths without regard to case, for an application that routes so.
        json: fields of the JSON body, by dotted paths, that all must have one of their values, whatever the method.
        conditions: on the host, headers, query parameters and cookies; all must hold.
        networks: of the client's address, in one of which it must be; empty for any.
        plans: one of which the request must be on; empty for any.
        identified: True if the caller must be identified, False if it must not be; None for either.

    Raises:
        ValueError: a path is no template that a canonical path could fit.
    """

    methods: frozenset[str] = frozenset()
    path: str | None = None
    excepted: tuple[str, ...] = ()
    ignore_case: bool = False
    json: tuple[JsonField, ...] = ()
    excepted_methods: frozenset[str] = frozenset()
    paths: tuple[str, ...] = ()
    conditions: tuple[Condition, ...] = ()
    networks: tuple[Network, ...] = ()
    plans: frozenset[str] = frozenset()
    identified: bool | None = None
    _methods: frozenset[str] = field(init=False, repr=False, compare=False)
    _not_methods: frozenset[str] = field(init=False, repr=False, compare=False)
    _wanted: tuple[Template, ...] = field(init=False, repr=False, compare=False)
    _unwanted: tuple[Template, ...] = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        methods = frozenset(method.upper() for method in self.methods)
        object.__setattr__(self, "_methods", methods | {ALSO_MEANT[m] for m in methods if m in ALSO_MEANT})
        unmeant = frozenset(method.upper() for method in self.excepted_methods)
        object.__setattr__(self, "_not_methods", unmeant | {ALSO_MEANT[m] for m in unmeant if m in ALSO_MEANT})
        paths = self.paths or ("/**" if self.path is None else self.path,)
        wanted = tuple(_parse_template(path, ignore_case=self.ignore_case) for path in paths)
        object.__setattr__(self, "_wanted", wanted)
        unwanted = tuple(_parse_template(path, ignore_case=self.ignore_case) for path in self.excepted)
        object.__setattr__(self, "_unwanted", unwanted)

    @property
    def templates(self) -> tuple[Template, ...]:
        """The paths of which one must fit, taken apart."""
        return self._wanted

    @property
    def met_methods(self) -> frozenset[str]:
        """The upper-case methods of which the request must have one, HEAD beside GET; empty for any."""
        return self._methods

    @property
    def hosts(self) -> frozenset[bytes] | None:
        """The hosts of which the request must name one; None if it may be another, or must only fit a pattern."""
        exact = [each.values for each in self.conditions if each.kind == "host" and not each.patterns]
        return exact[0] if exact else None

    @property
    def shape(self) -> tuple[object, ...]:
        """The part of the condition that method and path decide: equal shapes match the same methods and paths."""
        return self._methods, self._not_methods, self._wanted, self._unwanted, self.ignore_case

    @property
    def looks_at_paths(self) -> bool:
        """True if the path of a request makes a difference."""
        return bool(self._unwanted) or not any(not each.segments and each.below for each in self._wanted)

    @property
    def everything(self) -> bool:
        """True if every request meets it."""
        return not (self.methods or self.excepted_methods or self.looks_at_paths or self.undecided)

    @property
    def undecided(self) -> bool:
        """True if method and path alone do not decide it."""
        return bool(self.json or self.conditions or self.networks or self.plans or self.identified is not None)

    @property
    def names(self) -> frozenset[str]:
        """The names of the path parameters that every one of its paths has."""
        named = [{name for name in template.names if name} for template in self._wanted]
        return frozenset(set.intersection(*named)) if named else frozenset()

    def matches(self, method: str, path: str) -> bool:
        """Return True if *method* on canonical *path* meets the condition, as far as it is not about the body."""
        if (self._methods and method.upper() not in self._methods) or method.upper() in self._not_methods:
            return False
        segments = segments_of(path, ignore_case=self.ignore_case)
        fits = any(template.fits(segments) for template in self._wanted)
        return fits and not any(template.fits(segments) for template in self._unwanted)

    def captured(self, path: str) -> dict[str, str]:
        """Return the path parameters of canonical *path* by name, as the first of the paths has them that fits."""
        segments = segments_of(path, ignore_case=self.ignore_case)
        for template in self._wanted:
            if template.fits(segments):
                return {name: have for name, have in zip(template.names, segments, strict=False) if name}
        return {}

    def meets(self, facts: Facts) -> bool | None:
        """Return True if the rest of the condition holds; None if the body is unknown, which counts as met."""
        if self.identified not in (None, facts.identified):
            return False
        if not all(each.holds(facts.values(each.kind, each.name)) for each in self.conditions):
            return False
        if self.networks:
            address = facts.client()
            if address is None or not any(address in net for net in self.networks if net.version == address.version):
                return False
        if self.plans and facts.plan() not in self.plans:
            return False
        if not self.json:
            return True
        fields = facts.json_fields(deep=any("." in wanted.name for wanted in self.json))
        return None if fields is None else fields.meet(self.json)


def segments_of(path: str, *, ignore_case: bool) -> list[str]:
    """Return the segments of canonical *path*, as those of a template are compared with them."""
    return (unquote(path).casefold() if ignore_case else path).strip("/").split("/")


class Condition(NamedTuple):
    """A condition on a header, a query parameter, a cookie or the host: one of several values or patterns."""

    kind: str  # host, header, query or cookie
    name: str  # of a header in lower case; empty for the host
    values: frozenset[bytes]
    patterns: tuple[Pattern, ...] = ()

    def holds(self, found: Sequence[bytes]) -> bool:
        """Return True if any of the values *found* fits: whichever the application reads, rules apply."""
        return any(value in self.values or any(each.fits(value) for each in self.patterns) for value in found)


class Template(NamedTuple):
    """A path with wildcards, taken apart."""

    segments: tuple[str | None, ...]  # None: any one segment
    below: bool  # whatever follows fits, too
    names: tuple[str, ...]  # of the segments; empty for one that has none

    def fits(self, path: list[str]) -> bool:
        """Return True if the segments of *path* are those of the template."""
        wanted = self.segments
        if len(path) != len(wanted) and not (self.below and len(path) > len(wanted)):
            return False
        return all(want is None or want == have for want, have in zip(wanted, path, strict=False))


def _parse_template(template: str, *, ignore_case: bool) -> Template:
    if not template.startswith("/"):
        msg = f"path must begin with a slash, not {template!r}"
        raise ValueError(msg)
    parts = template.removesuffix("/").split("/")[1:] or [""]
    below = parts[-1] in ("*", "**")
    if below:
        parts.pop()
    if ("" in parts and parts != [""]) or {".", ".."} & set(parts):
        msg = f"path {template!r} has an empty or a dot segment, which no canonical path keeps"
        raise ValueError(msg)
    names = tuple(part[1:-1] if part.startswith("{") else "" for part in parts)
    return Template(tuple(_parse_segment(part, template, ignore_case=ignore_case) for part in parts), below, names)


def _parse_segment(part: str, template: str, *, ignore_case: bool) -> str | None:
    if part == "*" or (part.startswith("{") and part.endswith("}") and part.count("{") == part.count("}") == 1):
        return None
    if any(character in part for character in "*{}"):
        msg = (
            f"path {template!r} has a wildcard inside a segment; write a whole segment, like /users/{{id}} or /users/*"
        )
        raise ValueError(msg)
    if re.search("%[0-9A-Fa-f]{2}", part):
        msg = f"path {template!r} is percent-encoded; write the characters themselves"
        raise ValueError(msg)
    return part.casefold() if ignore_case else quote(part, safe=PLAIN_CHARACTERS)
