"""The variables of format strings of nginx and Apache, and what they mean to a replay."""

from __future__ import annotations

import re
from typing import NamedTuple

NGINX = re.compile(r"\$(?:\{(\w+)\}|(\w+))")
APACHE = re.compile(r"%(?:!?[\d,]+)?[<>]?(?:\{([^}]*)\})?([a-zA-Z%]|\^t[io])")

WORD, NUMBER, TEXT, CLF, CLF_BRACKETS, PATH, QUERY = "word", "number", "text", "clf", "clf_brackets", "path", "query"
_FORWARDED = "x-forwarded-for"


class Field(NamedTuple):
    """A variable of a format string."""

    name: str  # of this project: `client`, `time`, `request`, ..., `header:NAME`, `response:NAME`; "" if of no use
    kind: str = TEXT
    unit_ms: float = 0  # of a time or a duration


class Piece(NamedTuple):
    """A variable and the literal text before it."""

    before: str
    written: str  # the variable as in the format string, without its sign
    field: Field


_NGINX_FIELDS = {
    "remote_addr": Field("client", WORD),
    "realip_remote_addr": Field("peer", WORD),
    "remote_user": Field("user"),
    "time_local": Field("time", CLF),
    "time_iso8601": Field("time", WORD),
    "msec": Field("time", NUMBER, 1000),
    "request": Field("request"),
    "request_method": Field("method", WORD),
    "request_uri": Field("target", WORD),
    "uri": Field("path", PATH),
    "document_uri": Field("path", PATH),
    "args": Field("args", WORD),
    "query_string": Field("args", WORD),
    "status": Field("status", NUMBER),
    "body_bytes_sent": Field("size", NUMBER),
    "bytes_sent": Field("size", NUMBER),
    "request_time": Field("duration", NUMBER, 1000),
    "host": Field("host", WORD),
    "http_host": Field("host", WORD),
    "http_user_agent": Field("agent"),
    "http_referer": Field("referer"),
    "http_x_forwarded_for": Field("forwarded"),
    "proxy_add_x_forwarded_for": Field(""),
}
_APACHE_FIELDS = {
    "h": Field("client", WORD),
    "a": Field("client", WORD),
    "u": Field("user"),
    "t": Field("time", CLF_BRACKETS),
    "r": Field("request"),
    "m": Field("method", WORD),
    "U": Field("path", PATH),
    "q": Field("query", QUERY),
    "s": Field("status", NUMBER),
    "b": Field("size", NUMBER),
    "B": Field("size", NUMBER),
    "O": Field("size", NUMBER),
    "D": Field("duration", NUMBER, 0.001),
    "T": Field("duration", NUMBER, 1000),
    "v": Field("host", WORD),
    "V": Field("host", WORD),
    "p": Field("", NUMBER),
}
_APACHE_TIMES = {"sec": 1000, "msec": 1, "usec": 0.001}
_APACHE_DURATIONS = {"s": 1000, "ms": 1, "us": 0.001}


def nginx_field(name: str) -> Field:
    """Return what the variable *name* of nginx means to a replay."""
    if name in _NGINX_FIELDS:
        return _NGINX_FIELDS[name]
    for prefix, kind in (("sent_http_", "response"), ("upstream_http_", "response"), ("http_", "header")):
        if name.startswith(prefix):
            return Field(f"{kind}:{name.removeprefix(prefix).replace('_', '-')}")
    return Field("")


def field_named(name: str) -> str:
    """Return our name of a field that a user calls *name*: as nginx does, as a header, or as we do."""
    lowered = name.lower()
    if lowered.startswith("header:") or lowered in _HEADERS:
        return _HEADERS.get(lowered, lowered)
    return nginx_field(lowered.removeprefix("$")).name or lowered


_HEADERS = {"user-agent": "agent", "header:user-agent": "agent", "referer": "referer", "header:referer": "referer"}


def apache_field(argument: str | None, letter: str) -> Field:  # noqa: PLR0911  # one answer for each letter
    """Return what the directive `%{argument}letter` of Apache means to a replay."""
    if argument is None:
        return _APACHE_FIELDS.get(letter, Field(""))
    if letter == "t":
        unit = argument.removeprefix("begin:").removeprefix("end:")
        if unit in _APACHE_TIMES:
            return Field("end" if argument.startswith("end:") else "time", NUMBER, _APACHE_TIMES[unit])
        return Field("")
    if letter == "T":
        return Field("duration", NUMBER, _APACHE_DURATIONS.get(argument, 1000))
    if letter == "a":
        return Field("peer", WORD)
    if letter in ("i", "o"):
        name = argument.lower()
        known = {"user-agent": "agent", "referer": "referer", "host": "host", _FORWARDED: "forwarded"}
        return Field(known.get(name, f"header:{name}") if letter == "i" else f"response:{name}")
    return Field("")
