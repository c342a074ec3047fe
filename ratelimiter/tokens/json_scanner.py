"""A JSON reader that keeps a few members and skips the rest, in bounded memory, from pieces of any size.

Only members on the way to a wanted path are parsed. Everything else is skipped in long strides: strings up to their
closing quote, containers by counting brackets. So neither the size of a document nor its nesting costs memory, and the
steps are linear in its length.

Within skipped values the grammar is not checked further than strings and brackets. Where it is checked, a document that
breaks it yields nothing.
"""

from __future__ import annotations

import json
import re
from enum import IntEnum
from typing import TYPE_CHECKING, TypeAlias

from ratelimiter.core.usage import FIGURE_MAX

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

Value: TypeAlias = "int | bool | str | Other"
Tree: TypeAlias = "dict[str, Tree | int]"  # names on the way to a path; a number is the index of a path

NAME_BYTES_MAX = 384  # of a name as written; a wanted name is at most 64 characters, each escaped in 6 bytes
TEXT_BYTES_MAX = 384  # of a wanted string as written; longer ones are `OTHER`
SCALAR_BYTES_MAX = 40  # of a wanted number as written; longer ones are `OTHER`

_WHOLE = re.compile(rb"-?(0)(?:\.0{1,20})?|([1-9][0-9]{0,9})(?:\.0{1,20})?")
_STRUCTURE = re.compile(rb'"|[\[{]+|[\]}]+')
_SPACE = re.compile(rb"[ \t\n\r]*")
_SCALAR_END = re.compile(rb"[,\]} \t\n\r]")
_SCALAR_START = frozenset(b"-0123456789tfnNI")
_QUOTE, _BACKSLASH, _COMMA, _COLON = b'"\\,:'
_OPEN_OBJECT, _CLOSE_OBJECT, _OPEN_ARRAY, _CLOSE_ARRAY = b"{}[]"


class Other(IntEnum):
    """A value that is there and is neither a whole number from 0 to 10^9, nor a short string, nor true or false."""

    OTHER = -1


OTHER = Other.OTHER


def tree_of(paths: Iterable[tuple[str, ...]]) -> Tree:
    """Return *paths* as a tree of their names.

    Raises:
        ValueError: a path leads through the end of another.
    """
    tree: Tree = {}
    for index, path in enumerate(paths):
        node = tree
        for name in path[:-1]:
            child = node.setdefault(name, {})
            if isinstance(child, int):
                msg = f"{'.'.join(path)} leads through {name}, which is itself wanted"
                raise ValueError(msg)
            node = child
        if path[-1] in node:
            msg = f"{'.'.join(path)} is there twice, or other paths lead through it"
            raise ValueError(msg)
        node[path[-1]] = index
    return tree


def whole(text: bytes) -> int | Other:
    """Return the number that *text* writes if it is a whole one from 0 to 10^9, like `12` or `12.0`."""
    found = _WHOLE.fullmatch(text)
    number = int(found[1] or found[2]) if found else FIGURE_MAX + 1
    return number if number <= FIGURE_MAX else OTHER


class _State(IntEnum):
    VALUE = 0  # a value has to come
    ITEM_OR_END = 1  # after the bracket of the outermost array
    NAME_OR_END = 2  # after the brace of an object
    NAME = 3  # after a comma in an object
    COLON = 4
    NEXT_OR_END = 5  # after a value
    SKIP = 6  # within a container of no interest
    SKIP_STRING = 7  # within a string in such a container
    STRING = 8  # within a name or a value
    SCALAR = 9
    DONE = 10
    BROKEN = 11


class JsonScanner:
    """One document, or the elements of one outermost array, scanned for the members of a tree.

    Args:
        tree: of the wanted paths.
        array: read the elements of an outermost array like documents; else an outermost array has no members.

    Attributes:
        values: by index of its path, each wanted member of the document so far that is not null. If a name is there
            twice, the last one counts.
        elements: completed elements of the outermost array, not yet taken.
    """

    __slots__ = (
        "_array",
        "_capture",
        "_depth",
        "_escaped",
        "_is_name",
        "_node",
        "_raw",
        "_stack",
        "_state",
        "_target",
        "_tree",
        "elements",
        "values",
    )

    def __init__(self, tree: Tree, *, array: bool = False) -> None:
        self._tree = tree
        self._array = array
        self.values: dict[int, Value] = {}
        self.elements: list[dict[int, Value]] = []
        self._state = _State.VALUE
        self._stack: list[Tree | None] = []  # the containers that are open; None for the outermost array
        self._node: Tree | None = None  # of the innermost one
        self._target: Tree | int | None = tree  # what the next value is wanted for
        self._depth = 0  # of brackets, while skipping
        self._raw = bytearray()  # of a name or a scalar that is wanted
        self._capture = 0  # how many bytes of a string are kept
        self._is_name = False
        self._escaped = False  # the last piece ended within an escape

    @property
    def complete(self) -> bool:
        """True after the end of a whole document."""
        return self._state == _State.DONE

    @property
    def broken(self) -> bool:
        """True if the grammar of JSON was broken. Nothing in `values` is to be believed then."""
        return self._state == _State.BROKEN

    def feed(self, data: bytes) -> None:
        """Read on in *data*, of any length."""
        position, size = 0, len(data)
        steps = _STEPS
        while position < size:
            position = steps[self._state](self, data, position)

    def end(self) -> None:
        """End the document: a bare number at the top is complete only now."""
        if self._state == _State.SCALAR and not self._stack:
            self._end_scalar()

    # Each step reads from *position* on and returns how far it came, at least one byte or one state further.

    def _value(self, data: bytes, position: int) -> int:
        position = _SPACE.match(data, position).end()  # type: ignore[union-attr]  # matches everywhere
        if position == len(data):
            return position
        char, target = data[position], self._target
        if char == _QUOTE:
            self._begin_string(TEXT_BYTES_MAX if isinstance(target, int) else 0, is_name=False)
            return position + 1
        if char == _OPEN_OBJECT and isinstance(target, dict):
            self._open(target, _State.NAME_OR_END)
            return position + 1
        if char == _OPEN_ARRAY and self._array and not self._stack:
            self._open(None, _State.ITEM_OR_END)
            return position + 1
        if char in (_OPEN_OBJECT, _OPEN_ARRAY):
            if isinstance(target, int):
                self.values[target] = OTHER
            self._depth, self._state = 1, _State.SKIP
            return position + 1
        self._raw.clear()
        self._state = _State.SCALAR if char in _SCALAR_START else _State.BROKEN
        return position

    def _open(self, node: Tree | None, state: _State) -> None:
        self._stack.append(node)
        self._node = node
        self._target = self._tree if node is None else None
        self._state = state

    def _first_or_end(self, data: bytes, position: int) -> int:
        position = _SPACE.match(data, position).end()  # type: ignore[union-attr]
        if position < len(data):
            if data[position] == (_CLOSE_ARRAY if self._node is None else _CLOSE_OBJECT):
                return self._close(position)
            self._state = _State.VALUE if self._node is None else _State.NAME
        return position

    def _name(self, data: bytes, position: int) -> int:
        position = _SPACE.match(data, position).end()  # type: ignore[union-attr]
        if position == len(data):
            return position
        if data[position] != _QUOTE:
            self._state = _State.BROKEN
            return position
        self._begin_string(NAME_BYTES_MAX, is_name=True)
        return position + 1

    def _colon(self, data: bytes, position: int) -> int:
        position = _SPACE.match(data, position).end()  # type: ignore[union-attr]
        if position == len(data):
            return position
        self._state = _State.VALUE if data[position] == _COLON else _State.BROKEN
        return position + 1

    def _next_or_end(self, data: bytes, position: int) -> int:
        position = _SPACE.match(data, position).end()  # type: ignore[union-attr]
        if position == len(data):
            return position
        char = data[position]
        if self._node is None:  # the outermost array
            if char == _COMMA:
                self._target, self._state = self._tree, _State.VALUE
                return position + 1
            if char == _CLOSE_ARRAY:
                return self._close(position)
        elif char == _COMMA:
            self._state = _State.NAME
            return position + 1
        elif char == _CLOSE_OBJECT:
            return self._close(position)
        self._state = _State.BROKEN
        return position

    def _close(self, position: int) -> int:
        self._stack.pop()
        self._node = self._stack[-1] if self._stack else None
        self._end_value()
        return position + 1

    def _end_value(self) -> None:
        if not self._stack:
            self._state = _State.DONE
            return
        self._state = _State.NEXT_OR_END
        if self._node is None and self.values:
            self.elements.append(self.values)
            self.values = {}

    def _skip(self, data: bytes, position: int) -> int:
        depth = self._depth
        while True:
            found = _STRUCTURE.search(data, position)
            if found is None:
                self._depth = depth
                return len(data)
            start, position = found.span()
            char = data[start]
            if char == _QUOTE:
                position = self._string_end(data, position)
                if position < 0:
                    self._depth, self._state = depth, _State.SKIP_STRING
                    return len(data)
            elif char in (_OPEN_OBJECT, _OPEN_ARRAY):
                depth += position - start
            elif position - start < depth:
                depth -= position - start
            else:
                self._depth = 0
                self._end_value()
                return start + depth

    def _skip_string(self, data: bytes, position: int) -> int:
        position = self._string_end(data, position)
        if position < 0:
            return len(data)
        self._state = _State.SKIP
        return position

    def _begin_string(self, capture: int, *, is_name: bool) -> None:
        self._raw.clear()
        self._capture = capture
        self._is_name = is_name
        self._state = _State.STRING

    def _string(self, data: bytes, position: int) -> int:
        end = self._string_end(data, position)
        stop = len(data) if end < 0 else end - 1
        if self._capture:
            # One byte more than is kept shows that it is too long.
            self._raw += data[position : min(stop, position + self._capture + 1 - len(self._raw))]
        if end < 0:
            return len(data)
        if self._is_name:
            self._end_name()
        else:
            if isinstance(self._target, int):
                self.values[self._target] = self._text()
            self._end_value()
        return end

    def _string_end(self, data: bytes, position: int) -> int:
        """Return the place after the closing quote of the string at *position*; -1 if it goes on behind *data*."""
        if self._escaped:
            position += 1
            self._escaped = False
        while True:
            quote = data.find(b'"', position)
            end = len(data) if quote < 0 else quote
            before = end
            while before > position and data[before - 1] == _BACKSLASH:
                before -= 1
            odd = (end - before) & 1 == 1
            if quote < 0:
                self._escaped = odd
                return -1
            position = quote + 1
            if not odd:
                return position

    def _end_name(self) -> None:
        self._state = _State.COLON
        node = self._node
        if node is None or len(self._raw) > NAME_BYTES_MAX:
            self._target = None
            return
        name = self._text()
        self._target = node.get(name) if isinstance(name, str) else None
        if self.values and self._target is not None:
            self._forget(self._target)

    def _forget(self, target: Tree | int) -> None:
        """Drop what an earlier member of the same name has said."""
        if isinstance(target, int):
            self.values.pop(target, None)
        else:
            for child in target.values():
                self._forget(child)

    def _text(self) -> str | Other:
        raw = bytes(self._raw)
        if len(raw) > TEXT_BYTES_MAX:
            return OTHER
        try:
            text = raw.decode()
            return json.loads(f'"{text}"') if "\\" in text else text
        except ValueError:
            return OTHER

    def _scalar(self, data: bytes, position: int) -> int:
        found = _SCALAR_END.search(data, position)
        end = len(data) if found is None else found.start()
        self._raw += data[position : min(end, position + SCALAR_BYTES_MAX + 1 - len(self._raw))]
        if found is not None:
            self._end_scalar()
        return end

    def _end_scalar(self) -> None:
        if isinstance(self._target, int):
            value = scalar_value(bytes(self._raw))
            if value is not None:
                self.values[self._target] = value
        self._end_value()

    def _done(self, data: bytes, position: int) -> int:
        position = _SPACE.match(data, position).end()  # type: ignore[union-attr]
        if position < len(data):
            self._state = _State.BROKEN
        return position

    def _broken(self, data: bytes, _position: int) -> int:
        return len(data)


_LITERALS: Mapping[bytes, bool | None] = {b"true": True, b"false": False, b"null": None}


def scalar_value(raw: bytes) -> int | bool | Other | None:
    """Return what the number or literal *raw* means; None for null."""
    return _LITERALS[raw] if raw in _LITERALS else whole(raw)


_STEPS = (
    JsonScanner._value,
    JsonScanner._first_or_end,
    JsonScanner._first_or_end,
    JsonScanner._name,
    JsonScanner._colon,
    JsonScanner._next_or_end,
    JsonScanner._skip,
    JsonScanner._skip_string,
    JsonScanner._string,
    JsonScanner._scalar,
    JsonScanner._done,
    JsonScanner._broken,
)
