"""Which requests a rule means: methods, paths of whole segments and wildcards, fields of a JSON body."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, NamedTuple
from urllib.parse import quote, unquote

from ratelimiter.core.path import PLAIN_CHARACTERS

if TYPE_CHECKING:
    from ratelimiter.core.json_body import JsonField

# HEAD is GET without the body (RFC 9110 section 9.3.2), so it spends what GET spends.
ALSO_MEANT = {"GET": "HEAD"}


@dataclass(frozen=True, slots=True)
class Match:
    """The condition of a rule. Everything left out matches everything.

    Args:
        methods: upper-case methods; GET includes HEAD.
        path: `/v1/items`, with `{name}` or `*` for one segment, and a final `/*` or `/**` for everything below (and the
            path itself). A trailing slash is of no account.
        excepted: paths, spelled likewise, that do not match after all.
        ignore_case: compare paths without regard to case, for an application that routes so.
        json: top-level fields of the JSON body that all must have one of their values, whatever the method.

    Raises:
        ValueError: a path is no template that a canonical path could fit.
    """

    methods: frozenset[str] = frozenset()
    path: str | None = None
    excepted: tuple[str, ...] = ()
    ignore_case: bool = False
    json: tuple[JsonField, ...] = ()
    _methods: frozenset[str] = field(init=False, repr=False, compare=False)
    _wanted: _Template = field(init=False, repr=False, compare=False)
    _unwanted: tuple[_Template, ...] = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        methods = frozenset(method.upper() for method in self.methods)
        object.__setattr__(self, "_methods", methods | {ALSO_MEANT[m] for m in methods if m in ALSO_MEANT})
        path = "/**" if self.path is None else self.path
        object.__setattr__(self, "_wanted", _parse_template(path, ignore_case=self.ignore_case))
        unwanted = tuple(_parse_template(path, ignore_case=self.ignore_case) for path in self.excepted)
        object.__setattr__(self, "_unwanted", unwanted)

    @property
    def looks_at_paths(self) -> bool:
        """Whether the path of a request makes a difference."""
        return bool(self._wanted.segments or not self._wanted.below or self._unwanted)

    @property
    def everything(self) -> bool:
        """Whether no request escapes it."""
        return not self.methods and not self.looks_at_paths and not self.json

    def matches(self, method: str, path: str) -> bool:
        """Return whether *method* on canonical *path* meets the condition, as far as it is not about the body."""
        if self._methods and method.upper() not in self._methods:
            return False
        segments = (unquote(path).casefold() if self.ignore_case else path).strip("/").split("/")
        return self._wanted.fits(segments) and not any(template.fits(segments) for template in self._unwanted)


class _Template(NamedTuple):
    """A path with wildcards, taken apart."""

    segments: tuple[str | None, ...]  # None: any one segment
    below: bool  # whatever follows fits, too

    def fits(self, path: list[str]) -> bool:
        wanted = self.segments
        if len(path) != len(wanted) and not (self.below and len(path) > len(wanted)):
            return False
        return all(want is None or want == have for want, have in zip(wanted, path, strict=False))


def _parse_template(template: str, *, ignore_case: bool) -> _Template:
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
    return _Template(tuple(_parse_segment(part, template, ignore_case=ignore_case) for part in parts), below)


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
