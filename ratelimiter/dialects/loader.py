"""Dialects from files: those of the package, and users' own with the same powers."""

from __future__ import annotations

import json
import os
from difflib import get_close_matches
from functools import cache
from pathlib import Path
from typing import Any

from ratelimiter.dialects.dialect import Dialect, InvalidDialectError
from ratelimiter.errors import ConfigError
from ratelimiter.parsing.document import problem_lines, shown_path
from ratelimiter.parsing.schema import differences
from ratelimiter.parsing.yaml import examine_file

SUFFIXES = (".yaml", ".yml")
_HERE = Path(__file__).parent
_PACKAGED = _HERE / "data"


def names() -> list[str]:
    """Return the names of the dialects in the package, sorted."""
    return sorted(path.stem for path in _PACKAGED.glob("*.yaml"))


def load(name_or_path: str | os.PathLike[str]) -> Dialect:
    """Return the dialect of that name, or in the file at that path.

    Args:
        name_or_path: one of `names()`; or a path, which has a slash in it or ends in `.yaml` or `.yml`, relative to the
            working directory.

    Raises:
        ConfigError: there is no such dialect, or its file cannot be used; with every problem and its place.
    """
    text = os.fspath(name_or_path)
    if "/" in text or os.sep in text or text.endswith(SUFFIXES):
        return _read(Path(text))
    if text not in names():
        close = get_close_matches(text, names(), n=1)
        hint = f"did you mean {close[0]}?" if close else f"write {', '.join(names())}, or a path like ./my.yaml"
        msg = f"there is no dialect {text!r}; {hint}"
        raise ConfigError(msg)
    return _packaged(text)


@cache
def schema() -> dict[str, Any]:
    """Return the JSON Schema of a dialect file."""
    text = (_HERE / "dialect.schema.json").read_text(encoding="utf-8")
    parsed: dict[str, Any] = json.loads(text)
    return parsed


@cache
def _packaged(name: str) -> Dialect:
    return _read(_PACKAGED / f"{name}.yaml")


def _read(path: Path) -> Dialect:
    document = examine_file(path)
    problems = list(document.problems)
    if document.readable:
        problems += differences(document, schema())
    if problems:
        raise ConfigError(*problem_lines(document, problems))
    try:
        return Dialect(path.stem, document.value)
    except InvalidDialectError as invalid:
        found = [document.problem(where, f"{shown_path(where)}: {issue}") for where, issue in invalid.faults]
        raise ConfigError(*problem_lines(document, found)) from None
