"""The id of a request: the caller's own if it is well-formed, else a new one."""

from __future__ import annotations

import os
import re
import time
from dataclasses import dataclass
from itertools import count
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

_DIGITS = "0123456789ABCDEFGHJKMNPQRSTVWXYZ"  # Crockford's base 32
_PAIRS = tuple(high + low for high in _DIGITS for low in _DIGITS)  # of ten bits each
_VERSION_4 = "89ab"  # RFC 9562 section 5.4: the two bits of the variant, for each value of the other two


UUID, TOKEN = "uuid", "token"
_WELL_FORMED = {
    UUID: re.compile(rb"[0-9A-Fa-f]{8}-(?:[0-9A-Fa-f]{4}-){3}[0-9A-Fa-f]{12}"),  # RFC 9562 section 4
    TOKEN: re.compile(rb"[A-Za-z0-9_-]{1,64}"),
}


@dataclass(frozen=True, slots=True)
class RequestIds:
    """The way an API names requests.

    Args:
        header: header field of the id, in requests and responses; lower case.
        form: `uuid` (version 4), or `token`: *prefix*, then 15 characters that sort by time.
        prefix: of generated tokens.
        everywhere: on every response; else on errors only.
    """

    header: bytes = b"x-request-id"
    form: str = UUID
    prefix: str = ""
    everywhere: bool = True

    def well_formed(self, value: bytes) -> bool:
        """Return True if a caller's id may be kept: a UUID, or 1 to 64 of `A-Z a-z 0-9 _ -`."""
        return _WELL_FORMED[self.form].fullmatch(value) is not None


def request_ids_of(entry: Mapping[str, Any] | None) -> RequestIds | None:
    """Return the request ids that the entry of a document describes; None if it has none."""
    if entry is None:
        return None
    return RequestIds(
        entry.get("header", "X-Request-Id").lower().encode(),
        entry["form"],
        entry.get("prefix", ""),
        entry.get("responses", "all") == "all",
    )


def choose(ids: RequestIds, headers: Iterable[tuple[bytes, bytes]]) -> str:
    """Return the id in *headers* if there is one and it is well-formed; else a new one.

    Args:
        ids: the way the API names requests.
        headers: header fields of the request, names in lower case.
    """
    name = ids.header
    found = [value for header, value in headers if header == name]
    if len(found) == 1 and ids.well_formed(found[0]):
        return found[0].decode("ascii")
    return generate(ids)


def generate(ids: RequestIds) -> str:
    """Return a new id: a random UUID (version 4), or the prefix and 15 characters that sort by time."""
    return _uuid4() if ids.form == UUID else ids.prefix + _tokens()


def _uuid4() -> str:
    # uuid.UUID costs three times this, for an object that is not needed.
    digits = os.urandom(16).hex()
    variant = _VERSION_4[int(digits[16], 16) & 3]
    return f"{digits[:8]}-{digits[8:12]}-4{digits[13:16]}-{variant}{digits[17:20]}-{digits[20:]}"


class _Tokens:
    """Ten characters of Unix time in ms and five more, as a ULID begins.

    25 random bits would repeat within a millisecond now and then, so the five are a counter from a random start: a
    process repeats itself only after 2^25 ids in one millisecond.
    """

    def __init__(self) -> None:
        self._seconds = -1
        self._head = ""
        self.reseed()

    def reseed(self) -> None:
        """Start counting elsewhere: a forked process would repeat the ids of its parent."""
        self._next = count(int.from_bytes(os.urandom(4), "big")).__next__

    def __call__(self) -> str:
        now_ms = time.time_ns() // 1_000_000
        # The first eight characters change about once a second.
        if now_ms >> 10 != self._seconds:
            high = now_ms >> 10
            self._head = "".join([_PAIRS[high >> shift & 1023] for shift in (30, 20, 10, 0)])
            self._seconds = high
        # An odd factor maps 25 bits onto themselves one to one, and neighbours far apart.
        rest = self._next() * 0x13C6EF5 & 0x1FFFFFF
        return f"{self._head}{_PAIRS[now_ms & 1023]}{_PAIRS[rest >> 15]}{_PAIRS[rest >> 5 & 1023]}{_DIGITS[rest & 31]}"


_tokens = _Tokens()
os.register_at_fork(after_in_child=_tokens.reseed)
