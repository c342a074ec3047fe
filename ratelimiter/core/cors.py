"""Cross-origin requests: the pages of other origins that may read our answers, and the answer to their preflights.

The words are those of the Fetch Standard (section 3.2, "CORS protocol").
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from ratelimiter.core.headers import ceil_s
from ratelimiter.core.reply import Reply

if TYPE_CHECKING:
    from collections.abc import Iterable

    Header = tuple[bytes, bytes]

ANSWER, PASS = "answer", "pass"
PREFLIGHTS = (ANSWER, PASS)
METHODS = ("GET", "HEAD", "POST", "PUT", "PATCH", "DELETE")
_ORIGIN = re.compile(r"(?:https?://(?:\*\.)?[a-z0-9.-]+|https?://\[[0-9a-f:.]+\])(?::[0-9]{1,5})?|\*|null")
_SAFE = re.compile(rb"[A-Za-z0-9!#$%&'*+.^_`|~,\- ]{1,1000}")  # a list of header names


@dataclass(frozen=True, slots=True)
class Cors:
    """The pages of other origins that may read our answers.

    Args:
        origins: like `https://app.example.com`; `https://*.example.com` for every name below; `*` for all.
        expose: names of response headers that scripts may read; by default those that the answer brings.
        credentials: scripts may send cookies and the like, and read the answer.
        methods: that preflights allow.
        headers: names of request headers that preflights allow; empty for those that are asked for.
        max_age_ms: time for which a browser may keep the answer to a preflight.
        preflights: `answer` them here, or `pass` them to the service; neither is charged.

    Raises:
        ValueError: an origin is none, or `*` stands with credentials.
    """

    origins: tuple[str, ...]
    expose: tuple[str, ...] = ()
    credentials: bool = False
    methods: tuple[str, ...] = METHODS
    headers: tuple[str, ...] = ()
    max_age_ms: int = 600_000
    preflights: str = ANSWER
    _origins: re.Pattern[bytes] = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        for origin in self.origins:
            if not _ORIGIN.fullmatch(origin):
                msg = f"{origin!r} is not an origin like https://app.example.com or https://*.example.com"
                raise ValueError(msg)
        if "*" in self.origins and self.credentials:
            msg = "'*' excludes credentials: any page could act for its visitor; list the origins"
            raise ValueError(msg)
        patterns = [re.escape(origin).replace(r"\*", r"[a-z0-9.-]+") for origin in self.origins]
        pattern = ".*" if "*" in self.origins else "|".join(patterns)
        object.__setattr__(self, "_origins", re.compile(pattern.encode()))

    def origin(self, headers: Iterable[Header]) -> bytes:
        """Return the allowed origin of a request with *headers*; empty if it has none, or one that is not allowed."""
        found = [value for name, value in headers if name.lower() == b"origin"]
        return found[0] if len(found) == 1 and self._origins.fullmatch(found[0].lower()) else b""

    def answer_headers(self, headers: Iterable[Header], names: Iterable[bytes] = ()) -> list[Header]:
        """Return the headers of an answer of ours to a request with *headers*.

        Args:
            headers: of the request.
            names: of the headers that the answer brings, for scripts to read if `expose` says nothing.
        """
        origin = self.origin(headers)
        told = self._allowed(origin)
        if origin:
            exposed = [name.encode() for name in self.expose] or sorted({name.lower() for name in names})
            if exposed:
                told.append((b"access-control-expose-headers", b", ".join(exposed)))
        return told

    def is_preflight(self, method: str, headers: Iterable[Header]) -> bool:
        """Return True for a preflight of an allowed origin."""
        if method != "OPTIONS":
            return False
        headers = list(headers)
        asked = any(name.lower() == b"access-control-request-method" for name, _ in headers)
        return asked and bool(self.origin(headers))

    def preflight(self, headers: Iterable[Header]) -> Reply:
        """Return the answer to a preflight with *headers*."""
        headers = list(headers)
        told = self._allowed(self.origin(headers))
        asked = [value for name, value in headers if name.lower() == b"access-control-request-headers"]
        allowed = b", ".join([name.encode() for name in self.headers])
        if not allowed and len(asked) == 1 and _SAFE.fullmatch(asked[0]):
            allowed = asked[0]
            told = [*[header for header in told if header[0] != b"vary"], (b"vary", _VARY_PREFLIGHT)]
        told.append((b"access-control-allow-methods", ", ".join(self.methods).encode()))
        if allowed:
            told.append((b"access-control-allow-headers", allowed))
        told.append((b"access-control-max-age", b"%d" % ceil_s(self.max_age_ms)))
        return Reply(204, told, b"")

    def _allowed(self, origin: bytes) -> list[Header]:
        if "*" in self.origins:
            return [(b"access-control-allow-origin", b"*")] if origin else []
        told: list[Header] = [(b"vary", b"Origin")]  # also without: a cache must not give this answer to a page
        if origin:
            told.insert(0, (b"access-control-allow-origin", origin))
            if self.credentials:
                told.append((b"access-control-allow-credentials", b"true"))
        return told


_VARY_PREFLIGHT = b"Origin, Access-Control-Request-Headers"
