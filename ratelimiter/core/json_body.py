"""What a JSON body says at its top level, to a reader who must not be told one thing while the application is told
another.

Parsers differ in what they make of duplicate keys, of keys in another case, of characters that end a string in C, of
other encodings and of what is no JSON at all (RFC 8259 sections 4, 7 and 8). A client that is limited by what a body
says would use such a difference, so here every reading counts.
"""

from __future__ import annotations

import json
import re
from math import isfinite
from typing import NamedTuple, TypeAlias

Scalar: TypeAlias = str | int | float | bool | None

ANYTHING = ""  # among the spellings of values: may be read as any of them
# What cuts a string short in C, or is no character (RFC 8259 section 8.2): parsers keep, replace or drop it, or stop.
_UNCERTAIN = re.compile("[\x00-\x1f\x7f\ud800-\udfff]")


class JsonField(NamedTuple):
    """What a rule wants of one field: that it equals one of *values*."""

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


def read_fields(body: bytes) -> JsonFields | None:
    """Return the top-level fields of *body*; none if it is another value than an object.

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
    if isinstance(value, _Pairs):
        for name, item in value:
            if _UNCERTAIN.search(name):
                return None
            if not isinstance(item, list):
                fields.setdefault(name.casefold(), set()).add(_heard(item))
    return fields


def _heard(item: object) -> str:
    if isinstance(item, str):
        return ANYTHING if _UNCERTAIN.search(item) else json.dumps(item)
    if isinstance(item, float):
        return repr(item + 0.0)
    return json.dumps(item)


def _refuse(constant: str) -> float:
    msg = f"{constant} is no JSON"
    raise ValueError(msg)
