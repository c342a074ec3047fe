"""A log format: how a line becomes a record, and which facts its lines can tell at all."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable

    from ratelimiter.replay.record import Record

    ReadLine = Callable[[str], Record | None]


class Stamp(StrEnum):
    """The moment of a request that the time in its line is of."""

    START = "start"
    END = "end"
    EITHER = "either"  # Apache writes the start and nginx the end, in lines that look the same


@dataclass(frozen=True, slots=True)
class Format:
    """One way to write an access log.

    Args:
        name: as `--format` has it.
        stamp: the moment that the lines are stamped with.
        resolution_ms: of the stamps, 1 or 1000.
        tells: facts that a line can hold: `client`, `forwarded`, `duration`, `size`, `host`, `user`, `query`,
            `principal`, `header:NAME`, `response:NAME`.
        open: return a reader for the lines of one file. It returns None for a line that is no entry (a heading), and
            raises Unread for one that cannot be read.
        headers_open: any request header may be in a line, as the server logs them all.
        client_first: a line begins with the address of the client and a blank.
    """

    name: str
    stamp: Stamp
    resolution_ms: int
    tells: frozenset[str]
    open: Callable[[], ReadLine]
    headers_open: bool = False
    client_first: bool = False

    @property
    def starts_known(self) -> bool:
        """True if the lines say when requests began."""
        return self.stamp is Stamp.START or (self.stamp is Stamp.END and "duration" in self.tells)

    def tells_header(self, name: str) -> bool:
        """Return True if lines of this format can hold the request header *name*."""
        return self.headers_open or f"header:{name}" in self.tells
