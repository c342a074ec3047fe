"""A search for the few events of a stream that matter, at the speed of a text search."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator

# A letter or underscore written as an escape: what hides a name from the search for its text.
_ESCAPED_LETTER = re.compile(rb"\\u00[4-7]")
_ESCAPE = b"\\u00"


def matters(data: bytes, needles: tuple[bytes, ...]) -> bool:
    """Return True if *data* may have one of the texts *needles*, as it is or in escapes."""
    for needle in needles:
        if needle in data:
            return True
    return b"\\" in data and _ESCAPE in data and _ESCAPED_LETTER.search(data) is not None


def spans(data: bytes, needles: tuple[bytes, ...], boundary: re.Pattern[bytes]) -> Iterator[tuple[int, int]]:
    """Yield where the events of *data* begin and end that may have one of *needles*.

    Each text is searched for once over all of *data*, so the steps are linear in its length.

    Args:
        data: whole events.
        needles: texts of those that matter.
        boundary: what stands behind each event.
    """
    size = len(data)
    nexts = [_next(data, needle, 0) for needle in needles]
    next_escape = _next_escape(data, 0)
    first = min(next_escape, *nexts)
    start = 0
    while first < size:
        found = boundary.search(data, start)
        stop = size if found is None else found.end()
        if first < stop:
            yield start, stop
            first = next_escape if next_escape >= stop else _next_escape(data, stop)
            next_escape = first
            for index, place in enumerate(nexts):
                if place < stop:
                    place = nexts[index] = _next(data, needles[index], stop)  # noqa: PLW2901  # as it is now
                first = min(first, place)
        start = stop


def _next(data: bytes, needle: bytes, start: int) -> int:
    place = data.find(needle, start)
    return len(data) if place < 0 else place


def _next_escape(data: bytes, start: int) -> int:
    place = data.find(b"\\", start)  # much faster than the whole escape, which is seldom there
    place = place if place < 0 else data.find(_ESCAPE, place)
    if place < 0:
        return len(data)
    found = _ESCAPED_LETTER.search(data, place)
    return len(data) if found is None else found.start()
