"""The fields of a JSON body, read so that no application can find another value in it than the limiter.

Parsers differ about duplicate keys, keys in another case, characters that end a string in C, other encodings and text
that is no JSON at all (RFC 8259 sections 4, 7 and 8). A client that is limited by a field could use such a difference,
so here every reading counts.
"""

from __future__ import annotations

import json
import re
from math import isfinite
from typing import NamedTuple, TypeAlias

from ratelimiter.core.request import MalformedRequest

Scalar: TypeAlias = str | int | float | bool | None

ANYTHING = ""  # among the spellings of values: may be read as any of them
# What cuts a string short in C, or is no character (RFC 8259 section 8.2): parsers keep, replace or drop it, or stop.
_UNCERTAIN = re.compile("[\x00-\x1f\x7f\ud800-\udfff]")


class JsonField(NamedTuple):
    """The condition on one field: it equals one of *values*."""

    name: str  # as the operator wrote it; compared without regard to case
    values: tuple[str, ...]  # as `spelled` spells them


class JsonFields(dict[str, set[str]]):
    """The fields of a JSON object: by name, without regard to case, the spellings of every value that it has."""

    def meet(self, wanted: tuple[JsonField, ...]) -> bool:
        """Return whether each field of *wanted* has one of its values, in the eyes of some parser."""
        for name, values in wanted:
            have = self.get(name.casefold())
            if have is None or (ANYTHING not in have and have.isdisjoint(values)):
                return False
        return True


class _Pairs(list[tuple[str, object]]):
    """A JSON object with all that was written in it."""


def spelled(value: Scalar) -> str:
    """Return one spelling for all ways to write *value*: numbers as most parsers keep them, in double precision.

    Raises:
        ValueError: a number that JSON has not, or a double cannot hold.
    """
    if isinstance(value, (int, float)) and not isinstance(value, bool):
        try:
            number = float(value)
        except OverflowError:
            number = float("inf")
        if not isfinite(number):
            msg = f"{value} is no number that every JSON parser can read"
            raise ValueError(msg)
        return repr(number + 0.0)  # without the sign of zero
    return json.dumps(value)


def read_fields(body: bytes, *, deep: bool = False) -> JsonFields | None:
    """Return the top-level fields of *body*; none if it is another value than an object.

    Args:
        body: a whole body.
        deep: True to return the fields of objects within objects, too, under their dotted paths.

    Returns:
        None if it is unknown what an application makes of it: no JSON in UTF-8, nested too deeply, or with a key that
        parsers take for different ones.
    """
    try:
        # Numbers as doubles, which takes no longer the more digits there are.
        value = json.loads(body.decode(), object_pairs_hook=_Pairs, parse_int=float, parse_constant=_refuse)
    except (ValueError, RecursionError):
        return None
    fields = JsonFields()
    pending = [("", value)]
    while pending:
        prefix, each = pending.pop()
        if not isinstance(each, _Pairs):
            continue
        for name, item in each:
            if _UNCERTAIN.search(name):
                return None
            path = prefix + name.casefold()
            if deep and isinstance(item, _Pairs):
                pending.append((path + ".", item))
            elif not isinstance(item, list):
                fields.setdefault(path, set()).add(_heard(item))
    return fields


class _Number(str):
    """A whole number as it was written: a double would make one of two long ones."""

    __slots__ = ()


def read_document(body: bytes) -> object:
    """Return the JSON value of *body*, to look for a key in it; None if it is no JSON, so that it holds none.

    Raises:
        MalformedRequest: it is nested more deeply than parsers agree on.
    """
    try:
        return json.loads(body.decode(), object_pairs_hook=_Pairs, parse_int=_Number, parse_constant=_refuse)
    except ValueError:
        return None
    except RecursionError:
        raise MalformedRequest("body", "is nested too deeply") from None


def values_at(document: object, path: str) -> list[bytes]:
    """Return the value at the dotted *path* of *document* as bytes of a key; nothing if there is none, or null.

    Text and numbers that are written alike are one key, as applications that convert them take them for one.

    Raises:
        MalformedRequest: a step is there twice in the eyes of some parser, or the value is neither text nor a number.
    """
    value = document
    for step in path.split("."):
        if not isinstance(value, _Pairs):
            return []
        if any(_UNCERTAIN.search(name) for name, _ in value):
            raise MalformedRequest("body", "has a name with a control character")
        found = [item for name, item in value if name.casefold() == step.casefold()]
        if len(found) > 1:
            raise MalformedRequest(f"json:{path}", "is there more than once")
        if not found:
            return []
        value = found[0]
    match value:
        case None:
            return []
        case float():
            return [(str(int(value)) if value.is_integer() else repr(value)).encode()]
        case str():
            if _UNCERTAIN.search(value):
                raise MalformedRequest(f"json:{path}", "has a control character")
            return [b"0" if value == "-0" and isinstance(value, _Number) else value.encode()]
        case _:
            raise MalformedRequest(f"json:{path}", "must be text or a number")


def _heard(item: object) -> str:
    if isinstance(item, str):
        return ANYTHING if _UNCERTAIN.search(item) else json.dumps(item)
    if isinstance(item, float):
        return repr(item + 0.0)
    return json.dumps(item)


def _refuse(constant: str) -> float:
    msg = f"{constant} is no JSON"
    raise ValueError(msg)
