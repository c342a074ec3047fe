"""Formats of text lines, compiled from the notation in which nginx and Apache are configured.

Every pattern is possessive and every string ends at the first occurrence of what follows it, so a line is read in time
linear in its length, whatever a client wrote into it.
"""

from __future__ import annotations

import re
from itertools import pairwise
from typing import TYPE_CHECKING

from ratelimiter.errors import ConfigError
from ratelimiter.replay.format import Format, Stamp
from ratelimiter.replay.format_fields import (
    APACHE,
    CLF,
    CLF_BRACKETS,
    NGINX,
    NUMBER,
    PATH,
    QUERY,
    WORD,
    Field,
    Piece,
    apache_field,
    field_named,
    nginx_field,
)
from ratelimiter.replay.record import (
    ABSENT,
    NO_REQUEST,
    UNFIT,
    Record,
    Unread,
    first_of,
    split_request,
    value_or_none,
)
from ratelimiter.replay.times import SECOND_MS, clf_reader, epoch_reader, iso_reader

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from ratelimiter.replay.format import ReadLine
    from ratelimiter.replay.times import ReadTime

# What syslog writes before a line.
SYSLOG = r"(?:(?:<\d{1,3}>)?[A-Z][a-z]{2} [ \d]\d \d\d:\d\d:\d\d [^ ]++ [^ ]++: )?+"

_PATTERNS = {
    NUMBER: r"(-|\d{1,15}(?:\.\d{1,9})?)",
    CLF: r"(\d\d/[A-Z][a-z]{2}/\d{4}:\d\d:\d\d:\d\d(?: [+-]\d{4})?)",
    CLF_BRACKETS: r"\[(\d\d/[A-Z][a-z]{2}/\d{4}:\d\d:\d\d:\d\d(?: [+-]\d{4})?)\]",
    PATH: r'([^ ?"]++)',
    QUERY: r'((?:\?[^ "]*+)?)',
}
_QUOTED = r'((?:[^"\\]|\\.)*+)'
_ESCAPES = re.compile(r"\\(?:x([0-9A-Fa-f]{2})|([\"\\nt]))", re.ASCII)
_PLAIN = {"n": "\n", "t": "\t"}

new = tuple.__new__  # half of the cost of calling the class, for every line


def nginx_format(text: str, *, name: str = "", stamp: Stamp = Stamp.END, principal: str = "") -> Format:
    """Compile a `log_format` of nginx.

    Raises:
        ConfigError: a time or the request is missing in it, or two variables stand side by side.
    """
    pieces, end = [], 0
    for found in NGINX.finditer(text):
        variable = found[1] or found[2]
        pieces.append(Piece(text[end : found.start()], variable, nginx_field(variable)))
        end = found.end()
    return text_format(name or text, pieces, text[end:], stamp=stamp, principal=principal)


def apache_format(text: str, *, name: str = "", stamp: Stamp = Stamp.START, principal: str = "") -> Format:
    """Compile a `LogFormat` of Apache.

    Raises:
        ConfigError: as `nginx_format`.
    """
    pieces, end, before = [], 0, ""
    text = text.replace('\\"', '"')
    for found in APACHE.finditer(text):
        before += text[end : found.start()]
        end = found.end()
        if found[2] == "%":
            before += "%"
            continue
        pieces.append(Piece(before, found[1] or found[2], apache_field(found[1], found[2])))
        before = ""
    return text_format(name or text, pieces, before + text[end:], stamp=stamp, principal=principal)


def _pattern(pieces: Sequence[Piece], tail: str) -> str:
    """Return the pattern of *pieces* and the literal *tail* behind them."""
    out = []
    for piece, after in zip(pieces, [*(piece.before for piece in pieces[1:]), tail], strict=True):
        out.append(re.escape(piece.before))
        kind = piece.field.kind
        if kind in _PATTERNS:
            out.append(_PATTERNS[kind])
        elif piece.before.endswith('"') and after.startswith('"'):
            out.append(_QUOTED)
        elif piece.field.name == "client":  # a list of addresses has blanks
            out.append(r'((?:[^ ,\["]++, )*+[^ ,\["]++)')
        elif kind == WORD and (not after or after[0] == " "):
            out.append(r"([^ ]++)")
        elif after:
            out.append(rf"((?:(?!{re.escape(after)}).)*+)")
        else:
            out.append(r"(.*+)")
    return "".join(out) + re.escape(tail)


def text_format(
    name: str, pieces: Sequence[Piece], tail: str, *, stamp: Stamp, principal: str = "", more: str = ""
) -> Format:
    """Compile variables and the literal text between them.

    A line that ends early, behind everything that a replay must know, is read all the same.

    Args:
        name: of the format.
        pieces: in order.
        tail: literal text at the end.
        stamp: the moment that `time` is of.
        principal: a variable or a field whose value names the caller.
        more: a pattern of what may follow.

    Raises:
        ConfigError: a time or the request is missing, or two variables stand side by side.
    """
    _check(name, pieces)
    names = [piece.field.name for piece in pieces]
    needed = {"time", "end", "request", "method", "target", "path", "status", "client", "size"}
    last = max(index for index, each in enumerate(names) if each in needed)
    full = re.compile(SYSLOG + _pattern(pieces, tail) + more)
    after = pieces[last + 1].before if last + 1 < len(pieces) else tail
    head = re.compile(SYSLOG + _pattern(pieces[: last + 1], after))
    tells = {_TELLS.get(each, each) for each in names} & _FACTS
    tells |= {each for each in names if each.startswith(("header:", "response:"))} | {"header:referer"} & {
        f"header:{each}" for each in names
    }
    if "agent" in names:
        tells.add("header:user-agent")
    place = -1
    if principal:
        place = _principal_place(name, pieces, principal)
        tells.add("principal")
    moment = Stamp.END if "end" in names and "time" not in names else stamp
    units = [piece.field for piece in pieces if piece.field.name in ("time", "end")]
    coarse = all(each.kind != NUMBER for each in units)

    def open_reader() -> ReadLine:
        return _reader(full, head, pieces, moment, place)

    client_first = names[0] == "client" and not pieces[0].before and pieces[1:] != [] and pieces[1].before[:1] == " "
    resolution_ms = SECOND_MS if coarse else 1
    return Format(name, moment, resolution_ms, frozenset(tells), open_reader, client_first=client_first)


_FACTS = {"client", "forwarded", "duration", "size", "host", "user", "query"}
_TELLS = {"request": "query", "target": "query", "args": "query", "peer": "client"}


def _check(name: str, pieces: Sequence[Piece]) -> None:
    names = {piece.field.name for piece in pieces}
    if not names & {"time", "end"}:
        msg = f"--format: {name!r} has no time; a replay needs one, like $time_local, $msec, %t or %{{msec}}t"
        raise ConfigError(msg)
    if not names & {"request", "target", "path"}:
        msg = f"--format: {name!r} has no request; write $request, or $request_method and $request_uri (%r, %m, %U%q)"
        raise ConfigError(msg)
    for left, right in pairwise(pieces):
        if not right.before and PATH not in (left.field.kind, right.field.kind) and left.field.kind not in _PATTERNS:
            msg = f"--format: {left.written} and {right.written} stand side by side, so no reader can part them"
            raise ConfigError(msg)


def _principal_place(name: str, pieces: Sequence[Piece], principal: str) -> int:
    wanted = {principal.lower(), field_named(principal)}
    for index, piece in enumerate(pieces):
        if wanted & {piece.written.lower(), piece.field.name}:
            return index
    known = ", ".join(sorted({piece.field.name or piece.written for piece in pieces}))
    msg = f"--principal: {principal!r} is not in the format {name}; it has {known}"
    raise ConfigError(msg)


def unescaped(text: str) -> str:
    """Return *text* with the escapes of nginx and Apache resolved: a backslash before `x22`, a quote or another."""
    if "\\" not in text:
        return text
    return _ESCAPES.sub(lambda found: chr(int(found[1], 16)) if found[1] else _PLAIN.get(found[2], found[2]), text)


def _reader(
    full: re.Pattern[str], head: re.Pattern[str], pieces: Sequence[Piece], stamp: Stamp, principal: int
) -> ReadLine:
    """Return a reader of the lines that *full* fits, or *head* at least."""
    names = [piece.field.name for piece in pieces]

    def place(*wanted: str) -> int:
        return next((names.index(name) for name in wanted if name in names), -1)

    times = [(index, _time_reader(pieces[index].field)) for index in _time_places(pieces)]
    at, read_time = times[0]
    request, method, target, path = place("request"), place("method"), place("target"), place("path")
    query, args, status, client = place("query"), place("args"), place("status"), place("client", "peer")
    user, size, agent, referer = place("user"), place("size"), place("agent"), place("referer")
    host, forwarded, duration = place("host"), place("forwarded"), place("duration")
    duration_ms = pieces[duration].field.unit_ms if duration >= 0 else 0
    others = _others(names, "header:")
    responses = _others(names, "response:")
    blanks: tuple[None, ...] = (None,) * (len(pieces) + 1)
    full_match, head_match = full.match, head.match

    def read(line: str) -> Record:  # one line, one pass: a call for each field would double it
        found = full_match(line) or head_match(line)
        if found is None:
            raise Unread(UNFIT)
        groups = found.groups()
        values = groups + blanks[len(groups) :]
        start_us = read_time(values[at] or "")
        text = values[request]
        if text is not None:
            verb, where = split_request(unescaped(text) if "\\" in text else text)
        else:
            verb = values[method] or "GET"
            where = values[target] or values[path] or ""
            if values[args] not in ABSENT:
                where += f"?{values[args]}"
            where += values[query] or ""
            if verb in ABSENT or where in ABSENT:
                raise Unread(NO_REQUEST)
        took = values[duration]
        took_ms = None
        if took is not None and took != "-":
            took_ms = float(took) * duration_ms
            if stamp is Stamp.END:
                start_us -= round(took_ms * 1000)
        told = values[client]
        addresses = None
        if told is not None:
            if told == "-":
                told = None
            elif "," in told:
                told, addresses = first_of(told)
        code, length, name = values[status], values[size], values[user]
        agent_, referer_, host_ = values[agent], values[referer], values[host]
        return new(
            Record,
            (
                start_us // 1000,
                verb,
                where,
                int(code) if code is not None and code.isdigit() else 0,
                told,
                value_or_none(values[forwarded]) if forwarded >= 0 else addresses,
                took_ms,
                int(length) if length is not None and length.isdigit() else None,
                None if name is None or name in ABSENT else name,
                None if agent_ is None or agent_ == "-" else unescaped(agent_),
                None if referer_ is None or referer_ == "-" else unescaped(referer_),
                None if host_ is None or host_ == "-" else host_,
                _named(others, values) if others else (),
                _named(responses, values) if responses else (),
                value_or_none(values[principal]),
                0,
                None,
                None,
            ),
        )

    return read


def _time_places(pieces: Sequence[Piece]) -> list[int]:
    """Return the places of the times, the most exact first."""
    places = [index for index, piece in enumerate(pieces) if piece.field.name in ("time", "end")]
    return sorted(places, key=lambda index: (pieces[index].field.kind != NUMBER, pieces[index].field.name == "end"))


def _time_reader(field: Field) -> ReadTime:
    if field.kind == NUMBER:
        return epoch_reader(field.unit_ms)
    if field.kind in (CLF, CLF_BRACKETS):
        return clf_reader()

    return iso_reader()


def _others(names: Iterable[str], prefix: str) -> list[tuple[int, str]]:
    return [(index, name.removeprefix(prefix)) for index, name in enumerate(names) if name.startswith(prefix)]


def _named(places: Sequence[tuple[int, str]], values: Sequence[str | None]) -> tuple[tuple[str, str], ...]:
    found = []
    for index, name in places:
        value = values[index]
        if value is not None and value not in ABSENT:
            found.append((name, unescaped(value)))
    return tuple(found)
