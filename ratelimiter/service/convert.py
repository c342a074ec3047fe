"""Policies made of the files of envoyproxy/ratelimit: every limit as one rule on descriptors.

The reference walks down its tree an entry at a time, and takes at each level the value itself, else the first pattern
that fits, else the key alone; it never turns back. Rules of ours apply side by side, so each one says by `except` what
a sibling takes before it, and exactly one rule applies to a descriptor, as there.
"""

from __future__ import annotations

import json
import re
from dataclasses import dataclass, field
from pathlib import Path as FilePath
from typing import TYPE_CHECKING, Any

from ratelimiter.core.quota import LIMIT_MAX, WINDOW_MS_MAX
from ratelimiter.errors import ConfigError
from ratelimiter.parsing import yaml

if TYPE_CHECKING:
    import os
    from collections.abc import Iterator, Sequence

    from ratelimiter.parsing.document import Document, Path

SUFFIXES = (".yaml", ".yml")
UNITS_S = {
    "second": 1,
    "minute": 60,
    "hour": 3600,
    "day": 86_400,
    "week": 7 * 86_400,
    "month": 30 * 86_400,  # as the reference counts
    "year": 365 * 86_400,
}
OF_FILE = ("domain", "descriptors")
OF_DESCRIPTOR = (
    *("key", "value", "rate_limit", "descriptors", "shadow_mode", "quota_mode"),
    *("detailed_metric", "value_to_metric", "share_threshold", "metadata"),
)
OF_LIMIT = ("name", "replaces", "unit", "unit_multiplier", "requests_per_unit", "unlimited")
OF_METRICS = ("detailed_metric", "value_to_metric")  # change no decision: our labels are the rules' names
NAME_MAX = 64
_NOT_OF_NAMES = re.compile("[^a-z0-9._-]+")


@dataclass(frozen=True)
class Entry:
    """One level of the way to a limit."""

    key: str
    value: str = ""  # empty: any
    excepted: tuple[str, ...] = ()
    shared: bool = False  # all that fits counts together

    def written(self) -> str:
        """Return the entry as an item of `descriptors:`."""
        key = json.dumps(self.key, ensure_ascii=False)
        wild = "*" in self.value
        if self.value and not wild:
            return f"{{{key}: {json.dumps(self.value, ensure_ascii=False)}}}"
        if not self.value and not self.excepted:
            return key
        parts = []
        if self.value:
            word = "any" if self.shared else "each"
            parts.append(f"{word}: {json.dumps(self.value, ensure_ascii=False)}")
        if self.excepted:
            parts.append(f"except: {json.dumps(self.excepted, ensure_ascii=False)}")
        return f"{{{key}: {{{', '.join(parts)}}}}}"


@dataclass
class Limit:
    """One limit of a file."""

    domain: str
    way: tuple[Entry, ...]
    limit: str
    place: str
    called: str = ""  # by its own name
    replaces: tuple[str, ...] = ()
    shadow: bool = False
    candidate: bool = False
    name: str = ""  # of the rule


@dataclass
class Converted:
    """A policy, and what of the files is not in it.

    Attributes:
        limits: what the policy is made of.
        lost: what cannot be said in a policy, one line each, with its place.
        notes: what is left out and changes no decision, likewise.
    """

    limits: list[Limit] = field(default_factory=list)
    lost: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    def policy(self) -> str:
        """Return the text of the policy file."""
        domains = list(dict.fromkeys(limit.domain for limit in self.limits))
        lines = ["# Made by `ratelimiter convert envoy`. Windows slide and are strict; the store is for you to name."]
        lines.append("store: ${RATELIMITER_STORE:-memory://}")
        if len(domains) == 1:
            lines.append(f"domain: {json.dumps(domains[0], ensure_ascii=False)}")
        lines.append("rules:")
        for limit in self.limits:
            entries = ", ".join(entry.written() for entry in limit.way)
            parts = [f"name: {limit.name}"]
            if len(domains) > 1:
                parts.append(f"domain: {json.dumps(limit.domain, ensure_ascii=False)}")
            parts += [f"descriptors: [{entries}]", f"limit: {limit.limit}"]
            if limit.shadow:
                parts.append("mode: shadow")
            if limit.candidate:
                parts.append("candidate: true")
            if limit.replaces:
                parts.append(f"replaces: [{', '.join(limit.replaces)}]")
            lines.append(f"  - {{{', '.join(parts)}}}")
        return "\n".join(lines) + "\n"


def convert(path: str | os.PathLike[str]) -> Converted:
    """Return the policy that the file or folder at *path* means.

    Raises:
        ConfigError: there is nothing, or nothing that can be read.
    """
    place = FilePath(path)
    files = [place]
    if place.is_dir():
        files = sorted(file for file in place.iterdir() if file.suffix in SUFFIXES and not file.name.startswith("."))
        if not files:
            msg = f"{path}: holds no file that ends in .yaml or .yml; name the folder of the descriptors"
            raise ConfigError(msg)
    converted = Converted()
    for file in files:
        _File(yaml.examine_file(file), converted).read()
    if not converted.limits and not converted.lost:
        msg = f"{path}: holds no limit; write descriptors with a rate_limit"
        raise ConfigError(msg)
    _name(converted)
    return converted


class _File:
    """One file, while it is read."""

    def __init__(self, document: Document, converted: Converted) -> None:
        self._document = document
        self._converted = converted
        self._domain = ""

    def read(self) -> None:
        document, converted = self._document, self._converted
        converted.lost += [document.tell(problem) for problem in document.problems]
        value = document.value
        if not isinstance(value, dict):
            self._lose((), "is no mapping with domain and descriptors; write domain: and descriptors:")
            return
        self._check_fields((), value, OF_FILE)
        domain = value.get("domain")
        if not isinstance(domain, str) or not domain:
            self._lose(("domain",), "is empty; write the domain that Envoy's filter names")
            return
        self._domain = domain
        if any(limit.domain == domain for limit in converted.limits):
            self._note(("domain",), f"{domain!r} is that of another file, too; the limits of both apply")
        self._level((), value.get("descriptors"), ("descriptors",))

    def _level(self, way: tuple[Entry, ...], listed: Any, path: Path) -> None:
        if listed is None:
            return
        if not isinstance(listed, list):
            self._lose(path, "is no list; write a list item for each descriptor")
            return
        sound = []
        for index, item in enumerate(listed):
            if self._is_descriptor((*path, index), item):
                sound.append((index, item))
        seen: set[tuple[str, str]] = set()
        for index, item in sound:
            place = (*path, index)
            key, value = item["key"], _text(item.get("value"))
            if (key, value) in seen:
                self._lose(place, f"{_shown(key, value)} is there twice; write its limit once")
                continue
            seen.add((key, value))
            entry = _entry(item, [other for _, other in sound])
            self._descriptor((*way, entry), item, place)

    def _is_descriptor(self, path: Path, item: Any) -> bool:
        if not isinstance(item, dict):
            self._lose(path, "is no mapping; write key, and value, rate_limit or descriptors")
            return False
        self._check_fields(path, item, OF_DESCRIPTOR)
        key, value = item.get("key"), item.get("value")
        if not isinstance(key, str) or not key:
            self._lose((*path, "key"), "is empty; write the key of the descriptor's entry")
            return False
        if value is not None and not isinstance(value, (str, int, bool)):
            self._lose((*path, "value"), "is no text; write a value, or leave it out for any")
            return False
        if item.get("share_threshold") and "*" not in _text(value):
            self._lose((*path, "share_threshold"), "is only for a value with a *; leave it out")
        if "${" in key or "${" in _text(value):
            self._lose(path, "holds ${, which a policy file takes for a variable; match it by a pattern with *")
            return False
        return True

    def _descriptor(self, way: tuple[Entry, ...], item: dict[str, Any], path: Path) -> None:
        for name in OF_METRICS:
            if item.get(name):
                self._note((*path, name), "is left out; metrics are labelled with the names of rules")
        if item.get("metadata") is not None:
            self._lose((*path, "metadata"), "is left out; dynamic_metadata has the names and figures of rules")
        stated = item.get("rate_limit")
        if isinstance(stated, dict):
            limit = self._limit((*path, "rate_limit"), stated)
            if limit is not None:
                called = _text(stated.get("name"))
                replaces = self._replaced((*path, "rate_limit", "replaces"), stated.get("replaces"), called)
                place = self._document.place(path)
                shadow, candidate = bool(item.get("shadow_mode")), bool(item.get("quota_mode"))
                self._converted.limits.append(
                    Limit(self._domain, way, limit, place, called, replaces, shadow, candidate)
                )
        elif stated is not None:
            self._lose((*path, "rate_limit"), "is no mapping; write unit and requests_per_unit, or unlimited: true")
        self._level(way, item.get("descriptors"), (*path, "descriptors"))

    def _limit(self, path: Path, stated: dict[str, Any]) -> str | None:  # noqa: PLR0911  # fault by fault
        """Return `limit:` of the rule; None if it cannot be told."""
        self._check_fields(path, stated, OF_LIMIT)
        unit, count = stated.get("unit"), stated.get("requests_per_unit", 0)
        if stated.get("unlimited"):
            if unit is not None:
                self._lose((*path, "unit"), "means nothing beside unlimited; leave one of them out")
                return None
            return "unlimited"
        seconds = UNITS_S.get(_text(unit).lower())
        if seconds is None:
            self._lose((*path, "unit"), f"{unit!r} is no unit; write {', '.join(UNITS_S)}")
            return None
        multiplier = stated.get("unit_multiplier", 1)
        if not isinstance(multiplier, int) or multiplier < 1 or seconds * multiplier * 1000 > WINDOW_MS_MAX:
            self._lose((*path, "unit_multiplier"), f"{multiplier!r} makes no window of 1 second to 366 days")
            return None
        if not isinstance(count, int) or isinstance(count, bool) or not 0 <= count <= LIMIT_MAX:
            self._lose(
                (*path, "requests_per_unit"), f"{count!r} is not 0 to {LIMIT_MAX}; write unlimited: true if it is many"
            )
            return None
        if not count:
            return "blocked"
        return f"{count} per {_window(seconds * multiplier)}"

    def _replaced(self, path: Path, stated: Any, called: str) -> tuple[str, ...]:
        names = []
        for index, item in enumerate(stated if isinstance(stated, list) else []):
            name = _text(item.get("name")) if isinstance(item, dict) else ""
            if not name:
                self._lose((*path, index), "is empty; write name: and the name of a limit")
            elif name == called:
                self._lose((*path, index), f"{name!r} is the limit itself; name another one")
            else:
                names.append(name)
        return tuple(names)

    def _check_fields(self, path: Path, value: dict[str, Any], known: Sequence[str]) -> None:
        for name in value:
            if name not in known:
                self._lose((*path, name), f"is unknown; write {', '.join(known)}")

    def _lose(self, path: Path, text: str) -> None:
        self._converted.lost.append(self._told(path, text))

    def _note(self, path: Path, text: str) -> None:
        self._converted.notes.append(self._told(path, text))

    def _told(self, path: Path, text: str) -> str:
        return self._document.tell(self._document.problem(path, f"{_spelled(path)}{text}"))


def _spelled(path: Path) -> str:
    from ratelimiter.parsing.document import shown_path  # noqa: PLC0415

    return f"{shown_path(path)}: " if path else ""


def _text(value: Any) -> str:
    if isinstance(value, bool):
        return str(value).lower()
    return "" if value is None else str(value)


def _shown(key: str, value: str) -> str:
    return f"{key} {value}".strip()


def _window(seconds: int) -> str:
    for unit in ("day", "hour", "minute", "second"):
        size = UNITS_S[unit]
        if seconds % size == 0:
            count = seconds // size
            return unit if count == 1 else f"{count} {unit}s"
    raise AssertionError  # a second divides every number


def _entry(item: dict[str, Any], siblings: Sequence[dict[str, Any]]) -> Entry:
    """Return the entry of *item*, less what a sibling of the same key takes before it."""
    key, value = item["key"], _text(item.get("value"))
    if value and "*" not in value:
        return Entry(key, value)
    same = [_text(other.get("value")) for other in siblings if other["key"] == key]
    exact = [other for other in same if other and "*" not in other]
    wild = [other for other in same if "*" in other]
    before = wild if not value else wild[: wild.index(value)]
    if value:  # what cannot fit anyhow need not be left out
        pattern = re.compile(".*".join(map(re.escape, value.split("*"))), re.DOTALL)
        exact = [other for other in exact if pattern.fullmatch(other)]
    return Entry(key, value, (*exact, *before), bool(item.get("share_threshold")))


def _name(converted: Converted) -> None:
    """Give each rule a name of its own, and `replaces` those of the rules that it means."""
    taken: set[str] = set()
    for limit in converted.limits:
        text = limit.called or ".".join(_shown(entry.key, entry.value).replace(" ", "_") for entry in limit.way)
        stem = _NOT_OF_NAMES.sub("-", text.lower()).strip("-.")[:NAME_MAX] or "limit"
        name, number = stem, 2
        while name in taken:
            tail = f"-{number}"
            name, number = stem[: NAME_MAX - len(tail)] + tail, number + 1
        taken.add(name)
        limit.name = name
    for limit in converted.limits:
        meant = []
        for wanted in limit.replaces:
            found = [
                other.name for other in converted.limits if other.called == wanted and other.domain == limit.domain
            ]
            if not found:
                converted.notes.append(f"{limit.place}: replaces {wanted!r}, which no limit is called")
            meant += found
        limit.replaces = tuple(dict.fromkeys(meant))
    _refuse_orders(converted)


def _refuse_orders(converted: Converted) -> None:
    """Tell of limits that differ in nothing but the order of their keys, which makes no difference to us."""
    seen: dict[tuple[str, frozenset[str]], Limit] = {}
    for limit in converted.limits:
        keys = [entry.key for entry in limit.way]
        if len(set(keys)) < len(keys):
            continue  # entries of one key are compared in their order
        same = limit.domain, frozenset(entry.written() for entry in limit.way)
        other = seen.setdefault(same, limit)
        if other is not limit:
            text = "has the keys of another limit in another order, and to a policy their order makes no difference"
            converted.lost.append(f"{limit.place}: {text}; leave one out ({other.place})")


def lines(converted: Converted) -> Iterator[str]:
    """Yield what is to be said of the conversion, problems first."""
    yield from converted.lost
    yield from (f"note: {note}" for note in converted.notes)
