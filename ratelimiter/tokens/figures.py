"""The figures of one answer, gathered from its documents: per member the last one wins, and nothing is ever summed over
events.
"""

from __future__ import annotations

import json
from enum import StrEnum
from typing import TYPE_CHECKING, Any

from ratelimiter.core.usage import FIGURE_MAX, Usage, usage_of
from ratelimiter.tokens.json_scanner import OTHER, JsonScanner, Other, whole
from ratelimiter.tokens.needles import matters

if TYPE_CHECKING:
    from collections.abc import Mapping

    from ratelimiter.tokens.json_scanner import Tree, Value
    from ratelimiter.tokens.preset import Form, Member, MemberPath, Preset

    Found = dict[tuple[int, MemberPath], int | Other]

EVENT_BYTES_MAX = 65_536  # of an event that is parsed at once; longer ones are scanned piece by piece
WAITING_EVENT_BYTES_MAX = 4_096  # of an event that waits; longer ones have figures seldom, and are parsed at once
WAITING_MAX, WAITING_BYTES_MAX = 64, 32_768  # events that wait, and their bytes


class Cause(StrEnum):
    """Reasons for an answer's usage to be unknown. The reserved units stand then."""

    MISSING = "missing"  # it ended regularly and has no figures
    BAD_FIGURE = "bad_figure"  # a figure is not an integer from 0 to 10^9
    CUT = "cut"  # it ended before its end
    DISCONNECTED = "disconnected"  # the client left before its end
    FAILED = "failed"  # the provider ended it with an error
    NOT_JSON = "not_json"  # its body is not JSON
    ENCODING = "encoding"  # its content encoding is damaged, or cannot be decoded here
    TOO_LARGE = "too_large"  # it expands too much when decoded, or a frame is too long
    DAMAGED = "damaged"  # a frame's checksum or length is wrong


class Figures:
    """Figures and marks of one answer so far.

    Some streams repeat their figures in every event. So events that have figures and no mark wait a while: of several,
    the newest is parsed first, and an older one only if it names a figure that the newer ones do not have.

    Args:
        preset: says where they are.

    Attributes:
        ended: the stream has said everything; nothing is read any more.
        failed: the stream ended with an error of the provider.
    """

    __slots__ = ("_preset", "_values", "_waiting", "_waiting_bytes", "ended", "failed")

    def __init__(self, preset: Preset) -> None:
        self._preset = preset
        self._values: Found = {}
        self._waiting: list[bytes] = []
        self._waiting_bytes = 0
        self.ended = False
        self.failed = False

    @property
    def end_required(self) -> bool:
        """True if the figures of a stream are final only after its end was told."""
        return self._preset.end_required

    def document(self, data: bytes, event: str = "") -> None:
        """Take in one whole event.

        Args:
            data: of the event. What is no JSON has no figures.
            event: its name, if it has one.
        """
        preset = self._preset
        named = event in preset.end_events or event in preset.fail_events
        if len(data) <= WAITING_EVENT_BYTES_MAX and not named and not matters(data, preset.mark_needles):
            self._waiting.append(data)
            self._waiting_bytes += len(data)
            if len(self._waiting) >= WAITING_MAX or self._waiting_bytes > WAITING_BYTES_MAX:
                self._catch_up()
            return
        self._catch_up()
        if data in preset.end_texts:
            self.ended = True
        else:
            self.take(self._read(data), event)

    def _read(self, data: bytes) -> Mapping[int, Value]:
        """Return the members of one whole document, by their index in the preset's tree."""
        values = parsed(data, self._preset.tree) if len(data) <= EVENT_BYTES_MAX else None
        if values is None:
            scanner = JsonScanner(self._preset.tree)
            scanner.feed(data)
            scanner.end()
            values = scanner.values if scanner.complete else {}
        return values

    def _catch_up(self) -> None:
        """Take in the events that wait, from the newest to the oldest."""
        if not self._waiting:
            return
        found: Found = {}
        lacking: list[bytes] | None = None  # names of figures that are not found yet
        for data in reversed(self._waiting):
            if lacking is not None and not any(name in data for name in lacking):
                continue
            for index, value in self._read(data).items():
                for use in self._preset.uses[index]:
                    if found.get(use, OTHER) is OTHER:
                        found[use] = _figure(value)
            lacking = [
                name for name, uses in self._preset.quoted if any(found.get(use, OTHER) is OTHER for use in uses)
            ]
        self._waiting.clear()
        self._waiting_bytes = 0
        self._merge(found)

    def take(self, values: Mapping[int, Value], event: str = "") -> None:
        """Take in the members of one whole document, by their index in the preset's tree."""
        preset = self._preset
        self._catch_up()
        self._merge({use: _figure(value) for index, value in values.items() for use in preset.uses[index]})
        for index, value in values.items():
            if index in preset.ends_at and _marks(preset.ends_at[index], value):
                self.ended = True
            elif index in preset.fails_at and _marks(preset.fails_at[index], value):
                self.failed = True
        if event:
            self.ended = self.ended or event in preset.end_events
            self.failed = self.failed or event in preset.fail_events

    def _merge(self, found: Found) -> None:
        for use, value in found.items():
            if value is OTHER:  # told apart from an absent one only where no good one was seen before
                self._values.setdefault(use, OTHER)
            else:
                self._values[use] = value

    def usage(self) -> Usage | Cause:
        """Return what was used by the figures so far; else why that is not known."""
        self._catch_up()
        cause = Cause.MISSING
        for number, form in enumerate(self._preset.forms):
            found = self._usage_of(number, form)
            if isinstance(found, Usage):
                return found
            if found is Cause.BAD_FIGURE:
                cause = found
        return cause

    def _usage_of(self, number: int, form: Form) -> Usage | Cause:
        sums = {kind: self._sum(number, members) for kind, members in form.sums.items()}
        if Cause.BAD_FIGURE in (sums["input"], sums["output"]):
            return Cause.BAD_FIGURE
        if None in (sums["input"], sums["output"]) or not any(key[0] == number for key in self._values):
            return Cause.MISSING
        # A part that is not known is none: its tokens are then charged as plain input or output.
        figures = {kind: found if isinstance(found, int) else 0 for kind, found in sums.items()}
        if figures["input"] + figures["output"] > FIGURE_MAX:
            return Cause.BAD_FIGURE
        return usage_of(figures.pop("input"), figures.pop("output"), **figures)

    def _sum(self, number: int, members: tuple[Member, ...]) -> int | Cause | None:
        sum_ = 0
        for path, optional in members:
            value = self._values.get((number, path))
            if value is OTHER:
                return Cause.BAD_FIGURE
            if value is None and not optional:
                return None
            sum_ += value or 0
        return sum_


def _figure(value: Value) -> int | Other:
    return value if type(value) is int and value <= FIGURE_MAX else OTHER


def _marks(wanted: frozenset[str | bool | None], value: Value) -> bool:
    return None in wanted or (isinstance(value, str | bool) and value in wanted)


def parsed(data: bytes, tree: Tree) -> dict[int, Value] | None:
    """Return the members of *tree* that the document *data* has; None if it has to be scanned to know.

    The result is that of the scanner; this is only faster, for documents of ordinary size and depth.
    """
    if data[:1] != b"{":
        return None
    try:
        text = data.decode()
        document, end = _scan(text, 0)
    except (ValueError, RecursionError, StopIteration):
        return None
    if end != len(text) and text[end:].strip(" \t\n\r"):
        return None
    values: dict[int, Value] = {}
    _collect(document, tree, values)
    return values


def _collect(document: dict[str, Any], tree: Tree, values: dict[int, Value]) -> None:
    for name, child in tree.items():
        found = document.get(name)
        if found is None:
            continue
        if isinstance(child, dict):
            if isinstance(found, dict):
                _collect(found, child, values)
        elif type(found) is int:
            values[child] = found if 0 <= found <= FIGURE_MAX else OTHER
        else:
            values[child] = found if isinstance(found, str | bool | Other) else OTHER


# Without the decoder's own look for blanks around the document, which costs as much as a short document.
_scan = json.JSONDecoder(parse_float=lambda text: whole(text.encode()), parse_constant=lambda _: OTHER).scan_once  # type: ignore[attr-defined]
