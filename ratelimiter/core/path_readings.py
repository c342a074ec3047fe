"""The ways in which servers read one path, and the form in which it is forwarded.

Servers agree on most paths. They differ about encoded slashes and backslashes, dot segments, repeated slashes, control
characters, broken escapes and bytes that are no UTF-8. Each way to read a path is a *reading*, spelled as
`canonical_path` spells it. If all readings of a path meet the same rules, the path harms no limit.
"""

from __future__ import annotations

import re
from itertools import product
from typing import TYPE_CHECKING, NamedTuple
from urllib.parse import quote, unquote_to_bytes

from ratelimiter.core.path import PLAIN_CHARACTERS, canonical_path, origin_path, without_root
from ratelimiter.core.request import MalformedRequest

if TYPE_CHECKING:
    from collections.abc import Iterator

READINGS_MAX = 24  # of one path; a path with more is refused: its sender tries what works

_ENCODED_SLASH = re.compile(rb"%2[Ff]")
_BACKSLASH = re.compile(rb"\\|%5[Cc]")
# Where some servers stop to read: a control character, an escape that is none.
_CUT = re.compile(rb"%(?:[01][0-9A-Fa-f]|7[Ff]|(?![0-9A-Fa-f]{2}))")
_DOTS = re.compile(rb"(?:^|[/\\]|%2[Ff]|%5[Cc])(?:\.|%2[Ee]){1,2}(?=$|[/\\]|%2[Ff]|%5[Cc])")
_EMPTY_SEGMENT = re.compile(rb"(?:[/\\]|%2[Ff]|%5[Cc]){2}")
_NO_TARGET = re.compile(rb"[^!-~]|[#\\]")  # RFC 9112 section 3.2: no request target has these
_OVERLONG = re.compile(rb"[\xc0\xc1][\x80-\xbf]")  # ASCII in two bytes
_ESCAPE = re.compile(rb"%([0-9A-Fa-f]{2})")
# RFC 3986 section 6.2.2.2: only these may be decoded without changing what the path means.
_UNRESERVED = frozenset(b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-._~")

_KEPT, _DROPPED, _LATIN_1, _LENIENT = "kept", "dropped", "latin-1", "lenient"  # bytes that are no UTF-8
_ALL, _WRITTEN, _NONE = "all", "written out", "none"  # dot segments that are resolved


class Readings(NamedTuple):
    """The readings of one path.

    Attributes:
        canonical: the one reading that RFC 3986 gives it; None if it has none.
        others: the readings of servers that differ from that.
    """

    canonical: str | None
    others: tuple[str, ...]

    @property
    def all(self) -> tuple[str, ...]:
        """Every reading, the canonical one first."""
        return self.others if self.canonical is None else (self.canonical, *self.others)


class _Way(NamedTuple):
    """One server's way to read a path."""

    cut: bool  # it stops at a control character or a broken escape
    slash: bool  # an encoded slash separates segments
    backslash: bool  # a backslash does
    text: str  # what becomes of bytes that are no UTF-8
    merge: bool  # repeated slashes are one
    dots: str  # which dot segments are resolved


def check(path: bytes) -> None:
    """Refuse a *path* with a character that no request target has, whatever rules look at.

    Raises:
        MalformedRequest: it has one.
    """
    if _NO_TARGET.search(path):
        raise MalformedRequest("path", "has a character that must be percent-encoded")


def read(target: bytes, root_path: str = "") -> Readings:
    """Return the readings of the path of *target*, relative to *root_path*.

    Raises:
        MalformedRequest: the target is no path at all, or has more than `READINGS_MAX` readings.
    """
    path = origin_path(target)
    if path == b"*":
        return Readings("*", ())
    check(path)
    try:
        canonical: str | None = canonical_path(target, root_path)
    except MalformedRequest:
        canonical = None
    ways = list(_ways(path))
    if len(ways) == 1 and canonical is not None:
        return Readings(canonical, ())
    if len(ways) > READINGS_MAX:
        raise MalformedRequest("path", "can be read in too many ways")
    found = {without_root(_read(path, way), root_path): None for way in ways}
    return Readings(canonical, tuple(reading for reading in found if reading != canonical))


def normalized(target: bytes) -> bytes:
    """Return *target* as it is forwarded where servers could read it differently: RFC 3986 section 6.2.2.

    Dot segments and repeated slashes are gone, and unreserved characters are decoded; a reserved one never is. Its
    canonical path is that of *target*, and it has no other reading. The query stays as it came.

    Raises:
        MalformedRequest: it has no canonical path.
    """
    canonical_path(target)
    path, question, query = target.partition(b"?")
    segments: list[bytes] = []
    segment = b""
    for raw in path.split(b"/"):
        segment = _ESCAPE.sub(_unreserved, raw)
        if segment == b"..":
            del segments[-1:]
        elif segment not in (b"", b"."):
            segments.append(segment)
    closing = b"/" if segments and segment in (b"", b".", b"..") else b""
    return b"/" + b"/".join(segments) + closing + question + query


def _unreserved(match: re.Match[bytes]) -> bytes:
    byte = int(match[1], 16)
    return bytes((byte,)) if byte in _UNRESERVED else match[0].upper()


def _ways(path: bytes) -> Iterator[_Way]:
    """Yield the combinations of what servers do, as far as *path* makes a difference."""
    either, only = (False, True), (False,)
    texts: tuple[str, ...] = (_KEPT,)
    try:
        unquote_to_bytes(path).decode()
    except UnicodeDecodeError:
        texts = (_KEPT, _DROPPED, _LATIN_1, _LENIENT)
    dots: tuple[str, ...] = (_ALL,)
    if _DOTS.search(path) or (_CUT.search(path) and b"." in path):
        dots = (_ALL, _WRITTEN, _NONE) if b"%2" in path else (_ALL, _NONE)
    combinations = product(
        either if _CUT.search(path) else only,
        either if _ENCODED_SLASH.search(path) else only,
        either if _BACKSLASH.search(path) else only,
        texts,
        (True, False) if _EMPTY_SEGMENT.search(path) else (True,),
        dots,
    )
    for combination in combinations:
        yield _Way(*combination)


def _read(path: bytes, way: _Way) -> str:
    """Return *path* as a server reads it."""
    if way.cut and (match := _CUT.search(path)):
        path = path[: match.start()]
    if way.slash:
        path = _ENCODED_SLASH.sub(b"/", path)
    if way.backslash:
        path = _BACKSLASH.sub(b"/", path)
    written = path.split(b"/")[1:]
    if way.dots == _WRITTEN:
        written = _resolved(written, merge=way.merge)
    segments = [_spelled(segment, way.text).encode() for segment in written]
    if way.dots == _ALL:
        segments = _resolved(segments, merge=way.merge)
    elif way.merge:
        segments = [*filter(None, segments[:-1]), *segments[-1:]]
    return "/" + b"/".join(segments).decode()


def _resolved(segments: list[bytes], *, merge: bool) -> list[bytes]:
    """Return *segments* without dot segments (RFC 3986 section 5.2.4); with *merge*, without empty ones, too."""
    kept: list[bytes] = []
    for segment in segments:
        if segment == b"..":
            del kept[-1:]
        elif segment != b"." and (segment or not merge):
            kept.append(segment)
    if kept and segments[-1] in (b"", b".", b"..") and kept[-1]:
        kept.append(b"")
    return kept


def _spelled(segment: bytes, text: str) -> str:
    """Return *segment* decoded and encoded again as rules spell it."""
    decoded = unquote_to_bytes(segment)
    if text == _LATIN_1:
        return quote(decoded.decode("latin-1"), safe=PLAIN_CHARACTERS)
    if text == _LENIENT:
        decoded = _OVERLONG.sub(lambda match: bytes(((match[0][0] & 1) << 6 | match[0][1] & 63,)), decoded)
    if text != _KEPT:
        decoded = decoded.decode("utf-8", "ignore").encode()
    return quote(decoded, safe=PLAIN_CHARACTERS)
