"""Messages of `envoy.service.ratelimit.v3`, read and written by hand; field numbers as of Envoy 1.38."""

from __future__ import annotations

from struct import Struct
from typing import NamedTuple

from ratelimiter.core.descriptors import Entry, Override
from ratelimiter.service.grpc.protobuf import ProtobufError, delimited, embedded, fields, number, text, varint, whole

OK, OVER_LIMIT = 1, 2  # RateLimitResponse.Code
REMAINING_MAX = 0xFFFFFFFF  # what an unlimited descriptor has left

# RateLimitUnit of an override and RateLimitResponse.RateLimit.Unit, which alone has weeks; months and years as the
# reference implementation counts them.
UNITS_MS = {1: 1000, 2: 60_000, 3: 3_600_000, 4: 86_400_000, 5: 30 * 86_400_000, 6: 365 * 86_400_000}
UNITS = {ms: unit for unit, ms in UNITS_MS.items()} | {7 * 86_400_000: 7}

_DOUBLE = Struct("<d")
_MARK = b"\xff\xfeNUMBER"  # 8 bytes that no UTF-8 text holds, where a number is to stand
_reasons: dict[str, bytes] = {}  # of decisions, of which there are a dozen


class Descriptor(NamedTuple):
    """One descriptor of a call."""

    entries: tuple[Entry, ...]
    override: Override | None = None
    hits: int | None = None  # units of its own; None for those of the call
    gives_back: bool = False  # is_negative_hits


class RateLimitRequest(NamedTuple):
    """A call, its descriptors unread."""

    domain: str
    descriptors: list[bytes]
    hits: int  # units of each descriptor that has none of its own


def read_request(message: bytes) -> RateLimitRequest:
    """Return a RateLimitRequest.

    Raises:
        ProtobufError: it is none.
    """
    domain, descriptors, hits = "", [], 0
    for field, value in fields(message):
        if field == 1:
            domain = text(value)
        elif field == 2:
            descriptors.append(embedded(value))
        elif field == 3:
            hits = number(value) & REMAINING_MAX
    return RateLimitRequest(domain, descriptors, hits or 1)


def read_descriptor(message: bytes) -> Descriptor:
    """Return a RateLimitDescriptor.

    Raises:
        ProtobufError: it is none, or a key of it is empty.
    """
    entries: list[Entry] = []
    override, hits, gives_back = None, None, False
    for field, value in fields(message):
        if field == 1:
            entries.append(_read_entry(embedded(value)))
        elif field == 2:
            override = _read_override(embedded(value))
        elif field == 3:
            hits = sum(number(item) for name, item in fields(embedded(value)) if name == 1)
        elif field == 4:
            gives_back = bool(number(value))
    return Descriptor(tuple(entries), override, hits, gives_back)


def _read_entry(message: bytes) -> Entry:
    key = value = ""
    for field, item in fields(message):
        if field == 1:
            key = text(item)
        elif field == 2:
            value = text(item)
    if not key:
        msg = "an entry of a descriptor has no key"
        raise ProtobufError(msg)
    return key, value


def _read_override(message: bytes) -> Override:
    limit = unit = 0
    for field, item in fields(message):
        if field == 1:
            limit = number(item)
        elif field == 2:
            unit = number(item)
    if unit not in UNITS_MS:
        msg = f"the limit of a descriptor has the unit {unit}; write 1 (second) to 6 (year)"
        raise ProtobufError(msg)
    return Override(limit, UNITS_MS[unit])


class StatusTemplate:
    """The status and the figures of one rule, less their numbers: written for every descriptor of every call.

    Args:
        code: OK or OVER_LIMIT.
        name: of the rule.
        limit: units that it admits; None for a rule that counts nothing, whose status has no limit.
        unit: of the limit; 0 if there is none of its length.
    """

    __slots__ = ("_figures", "_status", "name")

    def __init__(self, code: int, name: str, limit: int | None, unit: int) -> None:
        self.name = name
        self._status = whole(1, code)
        if limit is not None:
            told = whole(1, min(limit, REMAINING_MAX)) + whole(2, unit) + delimited(3, name.encode())
            self._status += delimited(2, told)
        # A double takes 8 bytes whatever it is, so that all lengths are known: cut where the two numbers stand.
        over = _pair("over", b"\x20" + varint(code == OVER_LIMIT))
        told = over + _pair("remaining", b"\x11" + _MARK) + _pair("reset_seconds", b"\x11" + _MARK)
        before, between, _ = _pair(name, delimited(5, told)).split(_MARK)
        self._figures = before, between

    def status(self, remaining: int, reset_s: int) -> bytes:
        """Return a DescriptorStatus as a field of a response."""
        message = self._status
        if remaining:
            message += b"\x18" + varint(remaining if remaining < REMAINING_MAX else REMAINING_MAX)  # noqa: FURB136
        if reset_s:
            seconds = varint(reset_s)
            message += bytes((0x22, len(seconds) + 1, 0x08)) + seconds
        return b"\x12" + varint(len(message)) + message

    def figures(self, remaining: int, reset_s: int) -> bytes:
        """Return an entry of a Struct: the figures of the rule."""
        before, between = self._figures
        return before + _DOUBLE.pack(remaining) + between + _DOUBLE.pack(reset_s)


UNMATCHED = delimited(2, whole(1, OK))  # the status of a descriptor that no rule means


def header(name: bytes, value: bytes) -> bytes:
    """Return a HeaderValue as a field of response_headers_to_add."""
    return delimited(3, delimited(1, name) + delimited(2, value))


def metadata(reason: str, rules: bytes) -> bytes:
    """Return dynamic_metadata as a field of a response: why, and *rules*, of each its `figures`."""
    why = _reasons.get(reason)
    if why is None:
        why = _reasons[reason] = _pair("reason", delimited(3, reason.encode()))
    value = b"\x2a" + varint(len(rules)) + rules  # struct_value
    told = b"\x0a\x05rules\x12" + varint(len(value)) + value  # an entry of the map
    told = b"\x0a" + varint(len(told)) + told
    return b"\x32" + varint(len(why) + len(told)) + why + told


def _pair(name: str, value: bytes) -> bytes:
    return delimited(1, delimited(1, name.encode()) + delimited(2, value))
