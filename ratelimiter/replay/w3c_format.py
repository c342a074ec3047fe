"""W3C extended log format, whose `#Fields` lines name the columns: IIS and CloudFront."""

from __future__ import annotations

from typing import TYPE_CHECKING
from urllib.parse import unquote

from ratelimiter.errors import ConfigError
from ratelimiter.replay.format import Format, Stamp
from ratelimiter.replay.record import NO_COLUMNS, NO_REQUEST, NO_TIME, UNFIT, Record, Unread, value_or_none
from ratelimiter.replay.times import SECOND_MS, iso_reader

if TYPE_CHECKING:
    from ratelimiter.replay.format import ReadLine

# Columns, the first that is there counts.
_CLIENT = ("c-ip",)
_FORWARDED = ("x-forwarded-for",)
_HOST = ("x-host-header", "cs-host", "cs(host)")
_SIZE = ("sc-bytes",)
_AGENT = ("cs(user-agent)",)
_REFERER = ("cs(referer)",)
_USER = ("cs-username",)


def is_fields(line: str) -> bool:
    """Return True if *line* names columns."""
    return line.startswith("#Fields:")


def columns_of(line: str) -> list[str]:
    """Return the columns that a `#Fields` line names, in lower case."""
    return line.partition(":")[2].lower().split()


def w3c_format(fields_line: str, principal: str = "") -> Format:
    """Return the format whose columns *fields_line* names, at first: a later line may name others.

    Raises:
        ConfigError: there is no time, or the column *principal* is missing.
    """
    columns = columns_of(fields_line)
    if "time" not in columns or not {"cs-uri-stem", "cs-method"} <= set(columns):
        msg = "--format: the #Fields line must name date, time, cs-method and cs-uri-stem for a replay"
        raise ConfigError(msg)
    if principal and principal.lower() not in columns:
        msg = f"--principal: {principal!r} is not a column; the log has {', '.join(columns)}"
        raise ConfigError(msg)
    present = set(columns)
    facts = {
        "client": _CLIENT, "forwarded": _FORWARDED, "host": _HOST, "size": _SIZE, "user": _USER,
        "duration": ("time-taken",), "query": ("cs-uri-query",), "header:user-agent": _AGENT,
        "header:referer": _REFERER, "header:cookie": ("cs(cookie)",),
    }  # fmt: skip
    tells = {fact for fact, names in facts.items() if present & set(names)} | ({"principal"} if principal else set())
    name = "cloudfront" if any(column.startswith("x-edge") for column in columns) else "iis"
    return Format(name, Stamp.END, SECOND_MS, frozenset(tells), lambda: _reader(principal.lower()))


def _reader(principal: str) -> ReadLine:
    """Return a reader of one file: it knows the columns that the last `#Fields` line named."""
    columns: dict[str, int] = {}
    read_time = iso_reader()

    def read(line: str) -> Record | None:
        if line.startswith("#"):
            if is_fields(line):
                columns.clear()
                columns.update({name: index for index, name in enumerate(columns_of(line))})
            return None
        if not columns:
            raise Unread(NO_COLUMNS)
        tabbed = "\t" in line  # CloudFront; it percent-encodes, where IIS writes a plus for a blank
        values = line.split("\t") if tabbed else line.split(" ")
        if len(values) < len(columns):
            raise Unread(UNFIT)

        def column(*names: str) -> str | None:
            for name in names:
                if name in columns:
                    value = value_or_none(values[columns[name]])
                    if value is not None:
                        return unquote(value) if tabbed else value.replace("+", " ")
            return None

        def raw(name: str) -> str:
            value = values[columns[name]] if name in columns else "-"
            return unquote(value) if tabbed else value

        if "date" not in columns or "time" not in columns:
            raise Unread(NO_TIME)
        stamp_us = read_time(f"{values[columns['date']]}T{values[columns['time']]}")
        method, stem, query = raw("cs-method"), raw("cs-uri-stem"), raw("cs-uri-query")
        if "-" in (method, stem):
            raise Unread(NO_REQUEST)
        taken = raw("time-taken")
        taken_ms = None
        if taken.replace(".", "", 1).isdigit():
            taken_ms = float(taken) * (SECOND_MS if tabbed else 1)
        status, size = raw("sc-status"), column(*_SIZE)
        cookie = column("cs(cookie)")
        return Record(
            (stamp_us - round((taken_ms or 0) * 1000)) // 1000, method, stem if query == "-" else f"{stem}?{query}",
            int(status) if status.isdigit() else 0, column(*_CLIENT), column(*_FORWARDED), taken_ms,
            int(size) if size is not None and size.isdigit() else None, column(*_USER), column(*_AGENT),
            column(*_REFERER), column(*_HOST), (("cookie", cookie),) if cookie else (), (),
            column(principal) if principal else None,
        )  # fmt: skip

    return read
