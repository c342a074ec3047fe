"""Text formats of proxies that no format string of nginx or Apache describes: Envoy, HAProxy, AWS ALB, Traefik."""

from __future__ import annotations

import re
from datetime import UTC
from typing import TYPE_CHECKING

from ratelimiter.errors import ConfigError
from ratelimiter.replay.format import Format, Stamp
from ratelimiter.replay.format_fields import field_named
from ratelimiter.replay.record import (
    NO_REQUEST,
    UNFIT,
    Record,
    Unread,
    first_of,
    host_of,
    split_request,
    value_or_none,
)
from ratelimiter.replay.text_format import SYSLOG, unescaped
from ratelimiter.replay.times import SECOND_MS, clf_reader, iso_reader

if TYPE_CHECKING:
    from collections.abc import Callable
    from datetime import tzinfo

    from ratelimiter.replay.format import ReadLine

# Envoy writes user agents with their quotes as they came. So it is read from the left as far as nothing can be forged
# (neither method nor target can hold a blank, nor a forwarded address a quote), and from the right for the rest.
_ENVOY = re.compile(
    r'\[([^\] ]++)\] "([^ "]++) ([^ ]++) ([^ "]++)" (\d{1,3}) [^ ]++ (?:[^ ]++ [^ ]++ "[^"]*+" )?+'
    r'(\d++) (\d++) (\d++) (?:\d++|-) "([0-9A-Fa-f.:, \[\]-]*+)" "'
)
_HAPROXY = re.compile(
    SYSLOG + r"([^ ]++) \[(\d\d/[A-Z][a-z]{2}/\d{4}:\d\d:\d\d:\d\d\.\d{3})\] [^ ]++ [^ ]++ "
    r"(?:-?\d++/){3,4}\+?(-?\d++) (\d{3}|-1) \+?(\d++) [^ ]++ [^ ]++ [^ ]{4} [^ ]++ [^ ]++ "
    r'(?:\{([^}]*+)\} )?+(?:\{([^}]*+)\} )?+"([^"]*+)"?'
)
_HASHED = re.compile(r"#([0-9A-F]{2})")
_ALB = re.compile(
    r'[a-z0-9]++ ([^ ]++) [^ ]++ ([^ ]++) [^ ]++ [-\d.]++ [-\d.]++ [-\d.]++ (\d{3}|-) [^ ]++ \d++ (\d++) "([^"]*+)" '
    r'"([^"]*+)" [^ ]++ [^ ]++ [^ ]++ "[^"]*+" "([^"]*+)" "[^"]*+" [^ ]++ ([^ ]++) '
)
_TRAEFIK = re.compile(
    r'((?:[^ ,\["]++, )*+[^ ,\["]++) [^ ]++ ((?:(?! \[).)*+) \[(\d\d/[A-Z][a-z]{2}/\d{4}:\d\d:\d\d:\d\d [+-]\d{4})\] '
    r'"([^"]*+)" (\d{3}|-) (\d++|-) "((?:[^"\\]|\\.)*+)" "((?:[^"\\]|\\.)*+)" \d++ "[^"]*+" "[^"]*+" (\d++)ms'
)
_ADDRESSES = re.compile(r"[0-9A-Fa-f.:\[\]]++(?:, ?[0-9A-Fa-f.:\[\]]++)*+")


def named_principal(name: str, principal: str, fields: tuple[str, ...]) -> Callable[[Record], str | None]:
    """Return a reader of the field *principal* of a record of the format *name*, which has *fields*.

    Raises:
        ConfigError: it is none of them.
    """
    name_of_field = field_named(principal)
    if name_of_field not in fields:
        msg = f"--principal: {principal!r} is not in the format {name}; it has {', '.join(fields)}"
        raise ConfigError(msg)
    index = Record._fields.index(name_of_field)

    def read(record: Record) -> str | None:
        value = record[index]
        return value if isinstance(value, str) else None

    return read


def _opened(name: str, read: ReadLine, principal: str, fields: tuple[str, ...]) -> Callable[[], ReadLine]:
    if not principal:
        return lambda: read
    find = named_principal(name, principal, fields)

    def read_named(line: str) -> Record | None:
        record = read(line)
        return record and record._replace(principal=find(record))

    return lambda: read_named


def _tells(principal: str, *facts: str) -> frozenset[str]:
    return frozenset((*facts, "principal") if principal else facts)


def envoy_format(principal: str = "") -> Format:
    """Return Envoy's default text format."""
    read_time = iso_reader()

    def read(line: str) -> Record:
        found = _ENVOY.match(line)
        if found is None:
            raise Unread(UNFIT)
        at, method, target, _, status, _, size, duration, addresses = found.groups()
        if "-" in (method, target):
            raise Unread(NO_REQUEST)
        rest = line[found.end() :].rsplit('" "', 3)
        agent = host = None
        if len(rest) == 4:
            agent, _, host, _ = (value_or_none(each) for each in rest)
        listed = value_or_none(addresses)
        client = first_of(listed)[0] if listed else None
        return Record(
            read_time(at) // 1000, method, target, int(status), client, listed, float(duration), int(size), None, agent,
            None, host,
        )  # fmt: skip

    facts = ("client", "forwarded", "duration", "size", "host", "query", "header:user-agent")
    fields = ("client", "forwarded", "agent", "host")
    return Format(
        "envoy", Stamp.START, 1, _tells(principal, *facts), _opened("envoy", read, principal, fields)
    )  # fmt: skip


def haproxy_format(zone: tzinfo = UTC, captures: tuple[str, ...] = (), principal: str = "") -> Format:
    """Return HAProxy's httplog.

    Args:
        zone: of its times, which are local and do not say so.
        captures: names of the captured request headers, in order. Without them a captured list of addresses is taken
            for X-Forwarded-For and anything else for the user agent.
        principal: a field that names the caller.
    """
    read_time = clf_reader(zone)

    def read(line: str) -> Record:
        found = _HAPROXY.match(line)
        if found is None:
            raise Unread(UNFIT)
        peer, at, duration, status, size, captured, _, request = found.groups()
        method, target = split_request(request)
        values = [_dehashed(each) for each in captured.split("|")] if captured is not None else []
        headers = [(name, value) for name, value in zip(captures, values, strict=False) if value]
        if not captures:
            headers = [(_guessed(value), value) for value in values if value]
        told = dict(headers)
        return Record(
            read_time(at) // 1000, method, _dehashed(target), int(status) if status.isdigit() else 0,
            host_of(peer), told.get("x-forwarded-for"), float(max(0, int(duration))), int(size), None,
            told.get("user-agent"), told.get("referer"), told.get("host"),
            tuple(each for each in headers if each[0] not in _OWN),
        )  # fmt: skip

    guessed = ("x-forwarded-for", "user-agent")
    facts = {f"header:{name}" for name in captures or guessed}
    facts |= {"forwarded"} if "x-forwarded-for" in (captures or guessed) else set()
    facts |= {"host"} if "host" in captures else set()
    fields = ("client", "forwarded", "agent")
    return Format(
        "haproxy", Stamp.START, 1, _tells(principal, "client", "duration", "size", "query", *facts),
        _opened("haproxy", read, principal, fields),
    )  # fmt: skip


_OWN = ("x-forwarded-for", "user-agent", "referer", "host")  # headers that have a field of their own


def _guessed(value: str) -> str:
    return "x-forwarded-for" if _ADDRESSES.fullmatch(value) else "user-agent"


def _dehashed(text: str) -> str:
    return _HASHED.sub(lambda found: chr(int(found[1], 16)), text) if "#" in text else text


def alb_format(principal: str = "") -> Format:
    """Return the access log of an AWS Application Load Balancer."""
    read_time = iso_reader()

    def read(line: str) -> Record:
        found = _ALB.match(line)
        if found is None:
            raise Unread(UNFIT)
        at, client, status, size, request, agent, host, began = found.groups()
        method, url = split_request(request)
        scheme, separator, rest = url.partition("://")
        authority, slash, path = rest.partition("/")
        if not separator or not scheme.isalpha():
            raise Unread(NO_REQUEST)
        start_us = read_time(began)
        return Record(
            start_us // 1000, method, slash + path if slash else "/", int(status) if status.isdigit() else 0,
            host_of(client),
            None, max(0, read_time(at) - start_us) / 1000, int(size), None,
            None if agent == "-" else unescaped(agent), None, value_or_none(host) or host_of(authority),
        )  # fmt: skip

    facts = ("client", "duration", "size", "host", "query", "header:user-agent")
    return Format(
        "alb", Stamp.START, 1, _tells(principal, *facts), _opened("alb", read, principal, ("client", "agent", "host"))
    )  # fmt: skip


def traefik_format(principal: str = "") -> Format:
    """Return Traefik's common log format, whose client may be a list of addresses."""
    read_time = clf_reader()

    def read(line: str) -> Record:
        found = _TRAEFIK.match(line)
        if found is None:
            raise Unread(UNFIT)
        addresses, user, at, request, status, size, referer, agent, duration = found.groups()
        method, target = split_request(request)
        client, listed = first_of(addresses)
        return Record(
            read_time(at) // 1000, method, target, int(status) if status.isdigit() else 0, client, listed,
            float(duration),
            int(size) if size.isdigit() else None, value_or_none(user), value_or_none(unescaped(agent)),
            value_or_none(unescaped(referer)),
        )  # fmt: skip

    facts = ("client", "forwarded", "duration", "size", "user", "query", "header:user-agent", "header:referer")
    return Format(
        "traefik", Stamp.START, SECOND_MS, _tells(principal, *facts),
        _opened("traefik", read, principal, ("client", "user", "agent")),
    )  # fmt: skip
