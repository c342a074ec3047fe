"""Files with very many overrides: CSV with a header line, or one JSON object a line (`.jsonl`).

    principal,rule,limit,plan,until
    header:X-API-Key=alice,,500/minute,,
    client=10.0.0.0/8,,unlimited,,2030-01-01T00:00:00Z

The fields are those of an override of the policy file. A reload reads the file in a thread, which lets the event loop
go on every few rows.
"""

from __future__ import annotations

import csv
import json
import sys
import time
from array import array
from hashlib import blake2b
from typing import TYPE_CHECKING, Any, NamedTuple

from ratelimiter.core.override_table import WIDTH, OverrideTableBuilder
from ratelimiter.core.overrides import FOR_EVER, Override
from ratelimiter.core.policy import override_fault
from ratelimiter.parsing.principal_notation import Named, client_value, digests_of, parse_named, sources_of
from ratelimiter.parsing.units import UNLIMITED, parse_limit, parse_moment_ms

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path as FilePath

    from ratelimiter.core.override_table import OverrideTable
    from ratelimiter.core.policy import Policy
    from ratelimiter.core.quota import AnyQuota

SUFFIXES = (".csv", ".jsonl", ".ndjson")
FIELDS = ("principal", "rule", "limit", "plan", "until")
ROWS_MAX = 2_000_000
LINE_CHARACTERS_MAX = 10_000
PROBLEMS_MAX = 20  # after which the rest of a file is not read
SLICE = 200  # rows between two pauses, about a millisecond's work


class Terms(NamedTuple):
    """The terms that a row sets for its principal."""

    rule: str
    quota: AnyQuota | None  # None for another plan, or for no limit
    plan: str
    until_ms: int


class Rows(NamedTuple):
    """The rows of one file."""

    terms: list[Terms]  # the distinct ones
    lines: list[int]  # of each, the first line that says it
    sources: list[str]  # of each single principal; empty for any
    values: list[str]  # beside them: lists of texts, at which the garbage collector need not look one by one
    places: array[int]  # in `terms`
    several: list[tuple[Named, int]]  # patterns and networks, place in `terms`


def read_rows(path: FilePath, problems: list[str]) -> Rows:
    """Read a file of overrides.

    Args:
        path: of the file; its suffix is one of `SUFFIXES`.
        problems: collects what is wrong, with name and line.
    """
    rows, places = Rows([], [], [], [], array("I"), []), dict[tuple[str, str, str, str], int]()
    found = len(problems)
    try:
        with path.open(encoding="utf-8", newline="") as file:
            for line, entry in _entries(path, file):
                if isinstance(entry, str):
                    problems.append(f"{path}:{line}: {entry}")
                else:
                    fault = _read_row(entry, line, rows, places)
                    if fault:
                        problems.append(f"{path}:{line}: {fault}")
                if len(problems) - found >= PROBLEMS_MAX:
                    problems.append(f"{path}: has more problems; mend these first")
                    break
                if not line % SLICE:
                    time.sleep(0)  # the event loop's turn
    except (OSError, UnicodeDecodeError) as error:
        problems.append(f"{path}: cannot be read ({error}); write the path of a CSV or JSON lines file in UTF-8")
    return rows


def _entries(path: FilePath, file: Any) -> Iterator[tuple[int, dict[str, str] | str]]:
    """Yield line number and fields of each row, or what is wrong with it."""
    lines = _checked_lines(file)
    if path.suffix == ".csv":
        reader = csv.reader(lines, strict=True)
        try:
            header = next(reader, [])
            if "principal" not in header or not set(header) <= set(FIELDS) or len(set(header)) < len(header):
                yield 1, f"the first line does not name the columns; write {','.join(FIELDS)}, or some of them"
                return
            for values in reader:
                if not values:
                    continue
                if len(values) != len(header):
                    yield reader.line_num, f"has {len(values)} columns and not {len(header)}, as the first line"
                else:
                    yield reader.line_num, dict(zip(header, values, strict=True))
        except csv.Error as error:
            yield reader.line_num, f"is not CSV ({error})"
        return
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        try:
            entry = json.loads(line)
        except (ValueError, RecursionError):
            yield number, 'is not JSON; write one object a line, like {"principal": "alice", "limit": "9/minute"}'
            continue
        if isinstance(entry, dict) and set(entry) <= set(FIELDS) and all(isinstance(v, str) for v in entry.values()):
            yield number, entry
        else:
            yield number, f"is not an object of texts with the fields {', '.join(FIELDS)}"


def _checked_lines(file: Any) -> Iterator[str]:
    number = 0
    while line := file.readline(LINE_CHARACTERS_MAX + 1):
        number += 1
        if len(line) > LINE_CHARACTERS_MAX:
            msg = f"line {number} is longer than {LINE_CHARACTERS_MAX} characters"
            raise OSError(msg)
        if number > ROWS_MAX:
            msg = f"it has more than {ROWS_MAX} lines"
            raise OSError(msg)
        yield line


def _read_row(entry: dict[str, str], line: int, rows: Rows, places: dict[tuple[str, str, str, str], int]) -> str:
    """Add one row to *rows*; return what is wrong with it, empty if nothing is."""
    said = (entry.get("rule", ""), entry.get("limit", ""), entry.get("plan", ""), entry.get("until", ""))
    try:
        named = parse_named(entry.get("principal", ""), anywhere=True)
        place = places.get(said)
        if place is None:
            rule, limit, plan, until = said
            if bool(limit) == bool(plan):
                return "says neither a limit nor a plan, or both; write one"
            quota = None if limit in ("", UNLIMITED) else parse_limit(limit)
            place = places[said] = len(rows.terms)
            rows.terms.append(Terms(rule, quota, plan, parse_moment_ms(until) if until else FOR_EVER))
            rows.lines.append(line)
    except ValueError as fault:
        return str(fault)
    if named.is_network or named.pattern is not None:
        rows.several.append((named, place))
    else:
        rows.sources.append(sys.intern(named.source))
        rows.values.append(named.value)
        rows.places.append(place)
    return ""


def faults(rows: Rows, path: str, policy: Policy) -> list[str]:
    """Return what *rows* say that has no meaning under *policy*, with name and line."""
    told = []
    for terms, line in zip(rows.terms, rows.lines, strict=True):
        fault = override_fault(policy, Override(frozenset(), None, "", *terms))
        if fault:
            told.append(f"{path}:{line}: {fault}")
    known = {str(source) for source in sources_of(policy)} | {"", "digest"}
    foreign = sorted(set(rows.sources) - known)
    told += [f"{path}: no rule charges {source}; write {' or '.join(sorted(known - {''}))}" for source in foreign]
    return told


def table_of(rows: Rows, policy: Policy) -> OverrideTable:
    """Return the table of the single principals of *rows* under *policy*.

    Raises:
        ValueError: a principal cannot be charged.
    """
    builder = OverrideTableBuilder()
    known = [str(source) for source in sources_of(policy) if source.kind != "everyone"]
    heads = {source: b"%d:%s:" % (len(source), source.encode()) for source in known}
    for number, (stated, value, place) in enumerate(zip(rows.sources, rows.values, rows.places, strict=True), 1):
        if stated in ("digest", "everyone"):
            for digest in digests_of(Named(stated, value), policy):
                builder.add(bytes.fromhex(digest), place)
        for source in () if stated in ("digest", "everyone") else (stated,) if stated else known:
            found = value if source != "client" else client_value(value, policy)
            if found is not None:  # the digest of `PrincipalReader.principal`, for a million without a detour
                text = heads[source] + found.encode()
                digest_ = blake2b(text, digest_size=WIDTH, key=policy.secret, person=b"principal").digest()
                builder.add(digest_, place)
        if not number % SLICE:
            time.sleep(0)
    steps = builder.steps([Override(frozenset(), None, "", *terms) for terms in rows.terms])
    while True:
        try:
            next(steps)
        except StopIteration as end:
            table: OverrideTable = end.value
            return table
        time.sleep(0)
