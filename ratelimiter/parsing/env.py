"""References to the environment in a policy file: `${NAME}`, or `${NAME:-default}` if the name may be unset.

They are filled in after the file was parsed: the text of a variable cannot become a key, a list or a second line. A
value that is one reference and nothing else becomes a number if it reads like one.
"""

from __future__ import annotations

import re
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from ratelimiter.parsing.document import Document, Problem, shown, shown_path

if TYPE_CHECKING:
    from collections.abc import Mapping

    from ratelimiter.parsing.document import Path

_REFERENCE = re.compile(r"\$\{([A-Z_][A-Z0-9_]{0,127})(?::-([^${}]*))?\}")
_WHOLE = re.compile("0|[1-9][0-9]{0,17}")  # digits as many as a file may write
_UNREADABLE = re.compile("[\x00-\x1f\x7f\ud800-\udfff]")  # control characters, and bytes that are not UTF-8


def filled(document: Document, environ: Mapping[str, str]) -> Document:
    """Return *document* with its references filled in from *environ*; each missing variable is a problem."""
    problems: list[Problem] = []

    def fill(value: Any, path: Path) -> Any:
        if isinstance(value, dict):
            return {key: fill(item, (*path, key)) for key, item in value.items()}
        if isinstance(value, list):
            return [fill(item, (*path, index)) for index, item in enumerate(value)]
        if not isinstance(value, str) or "${" not in value:
            return value
        try:
            return _filled(value, environ)
        except ValueError as fault:
            problems.append(document.problem(path, f"{shown_path(path)}: {fault}"))
            return None

    value = fill(document.value, ())
    return replace(document, value=value, problems=(*document.problems, *problems))


def _filled(text: str, environ: Mapping[str, str]) -> str | int:
    def held(reference: re.Match[str]) -> str:
        name, default = reference.groups()
        # As a shell has it: with a default, an empty variable is none.
        value = environ.get(name) or default if default is not None else environ.get(name)
        if value is None:
            msg = f"{name} is not set in the environment; set it, or write ${{{name}:-and a default}}"
            raise ValueError(msg)
        if _UNREADABLE.search(value):
            msg = f"{name} holds a control character or a line break; set it to text of one line"
            raise ValueError(msg)
        return value

    if "${" in _REFERENCE.sub("", text):
        msg = f"{shown(text)} has a malformed reference; write ${{NAME}} or ${{NAME:-default}}, the name in capitals"
        raise ValueError(msg)
    result = _REFERENCE.sub(held, text)
    return int(result) if _REFERENCE.fullmatch(text) and _WHOLE.fullmatch(result) else result
