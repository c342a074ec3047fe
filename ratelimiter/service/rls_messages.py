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


def status(code: int, *, remaining: int, reset_s: int, name: str = "", limit: int = 0, unit: int = 0) -> bytes:
    """Return a DescriptorStatus as a field of a response; without a name it has no limit."""
    message = whole(1, code)
    if name:
        message += delimited(2, whole(1, min(limit, REMAINING_MAX)) + whole(2, unit) + delimited(3, name.encode()))
    message += whole(3, min(remaining, REMAINING_MAX))
    if reset_s:
        message += delimited(4, whole(1, reset_s))
    return delimited(2, message)


def header(name: bytes, value: bytes) -> bytes:
    """Return a HeaderValue as a field of response_headers_to_add."""
    return delimited(3, delimited(1, name) + delimited(2, value))


def figures(name: str, *, over: bool, remaining: int, reset_s: int) -> bytes:
    """Return an entry of a Struct: the figures of a rule."""
    told = _pair("over", b"\x20" + varint(over)) + _pair("remaining", _number(remaining))
    return _pair(name, delimited(5, told + _pair("reset_seconds", _number(reset_s))))


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


def _number(value: int) -> bytes:
    return b"\x11" + _DOUBLE.pack(value)
