"""A regular expression engine that counts its steps: backtracking as `re` does it, slowly, over `re`'s own parse tree.

Time says little on a loaded machine; the steps for a text of n and of 2 n characters tell how a pattern grows.
"""

from __future__ import annotations

import re
import sys
from re import _constants as op
from re import _parser
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

STEPS_MAX = 2_000_000


class TooManySteps(Exception):  # noqa: N818  # reads as what happened
    """More than `STEPS_MAX` steps."""


class Backtracking:
    """One pattern, ready to be matched with a count.

    Args:
        pattern: a compiled pattern, of text or of bytes.
    """

    def __init__(self, pattern: re.Pattern[Any]) -> None:
        source = pattern.pattern
        text = source.decode("latin-1") if isinstance(source, bytes) else source
        self._flags = pattern.flags & ~re.DEBUG
        flags = self._flags & ~re.UNICODE if isinstance(source, bytes) else self._flags
        self.tree = list(_parser.parse(text, flags & ~re.UNICODE if flags & re.ASCII else flags))
        self._known: dict[tuple[int, str], bool] = {}
        self.steps = 0

    def count(self, text: str, *, search: bool) -> int:
        """Return the steps to match *text* whole, or to find every match in it."""
        self.steps = 0
        sys.setrecursionlimit(20_000)
        position = 0
        while position <= len(text):
            ends: list[int] = []
            found = self._sequence(
                text,
                self.tree,
                0,
                position,
                lambda at, ends=ends: self._end(text, at, ends, whole=not search),  # type: ignore[misc]
            )
            if not search:
                break
            position = max(ends[0], position + 1) if found else position + 1
        return self.steps

    def _end(self, text: str, at: int, ends: list[int], *, whole: bool) -> bool:
        if whole and at != len(text):
            return False
        ends.append(at)
        return True

    def _sequence(  # noqa: PLR0911 - a case for each kind of node
        self, text: str, items: list[Any], index: int, at: int, then: Callable[[int], bool]
    ) -> bool:
        self.steps += 1
        if self.steps > STEPS_MAX:
            raise TooManySteps
        if index == len(items):
            return then(at)
        code, argument = items[index]

        def rest(end: int) -> bool:
            return self._sequence(text, items, index + 1, end, then)

        if _is_character(code):
            return at < len(text) and self._fits(code, argument, text[at]) and rest(at + 1)
        if code is op.AT:
            return self._at(argument, text, at) and rest(at)
        if code is op.SUBPATTERN:
            return self._sequence(text, list(argument[3]), 0, at, rest)
        if code is op.BRANCH:
            return any(self._sequence(text, list(branch), 0, at, rest) for branch in argument[1])
        if code in (op.ASSERT, op.ASSERT_NOT):
            direction, inner = argument
            start = at if direction > 0 else at - inner.getwidth()[0]
            held = start >= 0 and self._sequence(text, list(inner), 0, start, lambda _: True)
            return held is (code is op.ASSERT) and rest(at)
        if code is op.ATOMIC_GROUP:
            ends: list[int] = []
            held = self._sequence(text, list(argument), 0, at, lambda end: not ends.append(end))  # type: ignore[func-returns-value]
            return held and rest(ends[0])
        if code in (op.MAX_REPEAT, op.MIN_REPEAT, op.POSSESSIVE_REPEAT):
            return self._repeat(text, code, argument, at, rest)
        msg = f"{code} is not known to the counter; add it"
        raise NotImplementedError(msg)

    def _repeat(self, text: str, code: Any, argument: Any, at: int, rest: Callable[[int], bool]) -> bool:
        least, most, inner = argument
        body = list(inner)
        if len(body) == 1 and _is_character(body[0][0]):
            ((one, of),) = body
            end = at
            while end < len(text) and end - at < most and self._fits(one, of, text[end]):
                end += 1
                self.steps += 1
            if end - at < least:
                return False
            if code is op.POSSESSIVE_REPEAT:
                return rest(end)
            ends = range(end, at + least - 1, -1) if code is op.MAX_REPEAT else range(at + least, end + 1)
            return any(rest(each) for each in ends)
        if code is op.POSSESSIVE_REPEAT:
            return self._possessive(text, body, least, most, at, rest)

        def more(count: int, here: int) -> bool:
            def again(end: int) -> bool:
                return end != here and more(count + 1, end)

            if count < least:
                return self._sequence(text, body, 0, here, again)
            ways: list[Callable[[], bool]] = [lambda: rest(here)]
            if count < most:
                ways.insert(0 if code is op.MAX_REPEAT else 1, lambda: self._sequence(text, body, 0, here, again))
            return any(way() for way in ways)

        return more(0, at)

    def _possessive(  # noqa: PLR0917
        self, text: str, body: list[Any], least: int, most: int, at: int, rest: Callable[[int], bool]
    ) -> bool:
        count = 0
        while count < most:
            ends: list[int] = []
            held = self._sequence(text, body, 0, at, lambda end, ends=ends: not ends.append(end))  # type: ignore[misc]
            if not held or ends[0] == at:
                break
            at = ends[0]
            count += 1
        return count >= least and rest(at)

    def _fits(self, code: Any, argument: Any, character: str) -> bool:
        key = (id(argument) if code is op.IN else hash((str(code), argument)), character)
        known = self._known.get(key)
        if known is None:
            known = self._known[key] = _fits(code, argument, character, self._flags)
        return known

    def _at(self, where: Any, text: str, at: int) -> bool:
        if where in (op.AT_BEGINNING, op.AT_BEGINNING_STRING):
            return at == 0
        if where in (op.AT_END, op.AT_END_STRING):
            return at == len(text)
        msg = f"{where} is not known to the counter; add it"
        raise NotImplementedError(msg)


def _is_character(code: Any) -> bool:
    return code in (op.LITERAL, op.NOT_LITERAL, op.ANY, op.IN)


def _fits(code: Any, argument: Any, character: str, flags: int) -> bool:
    cases = {character, character.lower(), character.upper()} if flags & re.IGNORECASE else {character}
    numbers = {ord(case) for case in cases if len(case) == 1}
    if code is op.LITERAL:
        return argument in numbers
    if code is op.NOT_LITERAL:
        return argument not in numbers
    if code is op.ANY:
        return character != "\n" or bool(flags & re.DOTALL)
    negated = any(kind is op.NEGATE for kind, _ in argument)
    held = any(_within(kind, value, numbers, character, flags) for kind, value in argument)
    return held is not negated


def _within(kind: Any, value: Any, numbers: set[int], character: str, flags: int) -> bool:
    if kind is op.LITERAL:
        return value in numbers
    if kind is op.RANGE:
        return any(value[0] <= number <= value[1] for number in numbers)
    if kind is op.CATEGORY:
        spelled = {"DIGIT": r"\d", "SPACE": r"\s", "WORD": r"\w"}
        name = str(value).removeprefix("CATEGORY_")
        shorthand = spelled[name.removeprefix("NOT_")]
        held = re.fullmatch(shorthand, character, flags & re.ASCII) is not None
        return held is not name.startswith("NOT_")
    return False


def hostile(tree: list[Any], flags: int) -> Iterator[tuple[str, str]]:
    """Yield pairs of a beginning that leads to a repetition of the pattern *tree*, and a unit that it may repeat."""
    seen: set[tuple[str, str]] = set()
    for beginning, body in _repetitions(tree, "", flags):
        units = {_example(body, flags)} | set(_witnesses(body, flags))
        for unit in sorted(unit for unit in units if unit):
            if (beginning, unit) not in seen:
                seen.add((beginning, unit))
                yield beginning, unit


def _repetitions(items: list[Any], beginning: str, flags: int) -> Iterator[tuple[str, list[Any]]]:
    """Yield every unbounded or long repetition of *items*, with the shortest text that leads to it."""
    for code, argument in items:
        if code is op.SUBPATTERN:
            yield from _repetitions(list(argument[3]), beginning, flags)
        elif code is op.BRANCH:
            for branch in argument[1]:
                yield from _repetitions(list(branch), beginning, flags)
        elif code is op.ATOMIC_GROUP:
            yield from _repetitions(list(argument), beginning, flags)
        elif code in (op.MAX_REPEAT, op.MIN_REPEAT, op.POSSESSIVE_REPEAT):
            if argument[1] > 30:
                yield beginning, list(argument[2])
            yield from _repetitions(list(argument[2]), beginning, flags)
        beginning += _example([(code, argument)], flags)


def _example(items: list[Any], flags: int) -> str:
    """Return a short text that *items* match, as far as that can be told without looking around."""
    text = ""
    for code, argument in items:
        if _is_character(code):
            text += next((c for c in CHARACTERS if _fits(code, argument, c, flags)), "")
        elif code is op.SUBPATTERN:
            text += _example(list(argument[3]), flags)
        elif code is op.BRANCH:
            text += _example(list(argument[1][0]), flags)
        elif code is op.ATOMIC_GROUP:
            text += _example(list(argument), flags)
        elif code in (op.MAX_REPEAT, op.MIN_REPEAT, op.POSSESSIVE_REPEAT):
            text += _example(list(argument[2]), flags) * argument[0]
    return text


def _witnesses(items: list[Any], flags: int) -> Iterator[str]:
    """Yield, for each set of characters in *items*, one or two that are in it."""
    for code, argument in items:
        if _is_character(code):
            yield from [c for c in CHARACTERS if _fits(code, argument, c, flags)][:3]
        elif code is op.SUBPATTERN:
            yield from _witnesses(list(argument[3]), flags)
        elif code is op.BRANCH:
            for branch in argument[1]:
                yield from _witnesses(list(branch), flags)
        elif code is op.ATOMIC_GROUP:
            yield from _witnesses(list(argument), flags)
        elif code in (op.MAX_REPEAT, op.MIN_REPEAT, op.POSSESSIVE_REPEAT):
            yield from _witnesses(list(argument[2]), flags)


CHARACTERS = "0a A9Zz_-./:;,=%\\\"'<>[]{}()$?&#@!+*~^|`\t\r\n\x00\x7f\xe9"
