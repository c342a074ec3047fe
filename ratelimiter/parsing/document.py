"""A file as plain values whose places are known, and its problems: one line each, with place, value and mend."""

from __future__ import annotations

import os
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, NamedTuple, TypeAlias

if TYPE_CHECKING:
    from collections.abc import Iterable

PROBLEMS_MAX = 100  # told at once
SHOWN_MAX = 60  # characters of a value that a problem repeats

Path: TypeAlias = tuple[str | int, ...]
Mark: TypeAlias = tuple[int, int]  # line and column, from 1

START: Mark = (1, 1)


class Problem(NamedTuple):
    """A fault of a document."""

    line: int
    column: int
    path: Path  # of the value at fault
    text: str  # the fault; then what would do


@dataclass(frozen=True, slots=True)
class Document:
    """The content of a file.

    Args:
        name: name of the file, as problems repeat it.
        value: dict, list, str, int, float, bool or None; None in the place of a refused value.
        problems: refused values, by place; empty in a document from `read_file` or `read_text`.
        readable: False if reading stopped early; then *value* is incomplete.
    """

    name: str
    value: Any
    problems: tuple[Problem, ...] = ()
    readable: bool = True
    _values: dict[Path, Mark] = field(default_factory=dict, repr=False)
    _keys: dict[Path, Mark] = field(default_factory=dict, repr=False)

    def place(self, path: Path) -> str:
        """Return `FILE:LINE:COLUMN` of the value at *path*, or of the nearest value around it that exists."""
        return self._named(self.mark(path))

    def place_of_key(self, path: Path) -> str:
        """Return `FILE:LINE:COLUMN` of the key whose value is at *path*; for an item of a list, of the item."""
        return self._named(self.mark_of_key(path))

    def mark(self, path: Path) -> Mark:
        """Return line and column of the value at *path*, from 1."""
        while path and path not in self._values:
            path = path[:-1]
        return self._values.get(path, START)

    def mark_of_key(self, path: Path) -> Mark:
        """Return line and column of the key whose value is at *path*, from 1."""
        return self._keys.get(path) or self.mark(path)

    def problem(self, path: Path, text: str, *, at_key: bool = False) -> Problem:
        """Return a problem with the value at *path*, or with its key."""
        return Problem(*(self.mark_of_key(path) if at_key else self.mark(path)), path, text)

    def tell(self, problem: Problem) -> str:
        """Return *problem* as one line: `FILE:LINE:COLUMN: fault; what would do`."""
        return f"{self._named(problem[:2])}: {problem.text}"

    def _named(self, mark: Mark) -> str:
        return f"{self.name}:{mark[0]}:{mark[1]}"


def problem_lines(document: Document, problems: Iterable[Problem]) -> list[str]:
    """Return *problems* of *document*, each as one line, by place; at most `PROBLEMS_MAX` of them."""
    ordered = sorted(set(problems), key=lambda problem: (problem.line, problem.column, problem.text))
    lines = [document.tell(problem) for problem in ordered[:PROBLEMS_MAX]]
    if len(ordered) > PROBLEMS_MAX:
        lines.append(f"{document.name}: and {len(ordered) - PROBLEMS_MAX} more problems; mend these first")
    return lines


def shown(value: object) -> str:
    """Return *value* as a problem repeats it: on one line, and cut short if it is long."""
    if isinstance(value, bool):
        return "true" if value else "false"
    if value is None:
        return "nothing"
    if isinstance(value, dict):
        return "a mapping" if value else "an empty mapping"
    if isinstance(value, list):
        return f"a list of {len(value)}" if value else "an empty list"
    text = repr(value)
    if len(text) <= SHOWN_MAX:
        return text
    closing = text[-1] if isinstance(value, str) else ""
    return text[: SHOWN_MAX - 4] + "..." + closing


def shown_path(path: Path) -> str:
    """Return *path* as people write it: `rules[0].match.path`."""
    text = ""
    for step in path:
        if isinstance(step, int):
            text += f"[{step}]"
        else:
            text += ("." if text else "") + (step if step.isprintable() and len(step) <= SHOWN_MAX else shown(step))
    return text


def shown_name(path: str | os.PathLike[str]) -> str:
    """Return the name of a file, fit for one line."""
    text = os.fsdecode(path)
    return text if text.isprintable() else repr(text)
