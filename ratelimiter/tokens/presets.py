"""Presets from files: those that come with the package, and your own with exactly the same powers."""

from __future__ import annotations

import json
import os
from difflib import get_close_matches
from functools import cache
from pathlib import Path
from typing import Any

from ratelimiter.core.usage import KINDS
from ratelimiter.errors import ConfigError
from ratelimiter.parsing.document import Document, problem_lines
from ratelimiter.parsing.schema import differences
from ratelimiter.parsing.yaml import examine_file
from ratelimiter.tokens.preset import Form, HeaderSums, Mark, Member, MemberPath, Preset

SUFFIXES = (".yaml", ".yml")
_HERE = Path(__file__).parent
_PACKAGED = _HERE / "data"


def names() -> list[str]:
    """Return the names of the presets that come with the package, sorted."""
    return sorted(path.stem for path in _PACKAGED.glob("*.yaml"))


def load(name_or_path: str | os.PathLike[str]) -> Preset:
    """Return the preset of that name, or in the file at that path.

    Args:
        name_or_path: one of `names()`; or a path, which has a slash in it or ends in `.yaml` or `.yml`, relative to the
            working directory.

    Raises:
        ConfigError: there is no such preset, or its file cannot be used; with every problem and its place.
    """
    text = os.fspath(name_or_path)
    if is_path(text):
        return _read(Path(text))
    if text not in names():
        close = get_close_matches(text, names(), n=1)
        hint = f"did you mean {close[0]}?" if close else f"write {', '.join(names())}, or a path like ./my.yaml"
        msg = f"there is no preset {text!r}; {hint}"
        raise ConfigError(msg)
    return _packaged(text)


def is_path(text: str) -> bool:
    """Return True if *text* names a file, and not a preset of the package."""
    return "/" in text or os.sep in text or text.endswith(SUFFIXES)


@cache
def schema() -> dict[str, Any]:
    """Return the JSON Schema of a preset file, for editors, too."""
    parsed: dict[str, Any] = json.loads((_HERE / "preset.schema.json").read_text(encoding="utf-8"))
    return parsed


@cache
def _packaged(name: str) -> Preset:
    return _read(_PACKAGED / f"{name}.yaml")


def _read(path: Path) -> Preset:
    document = examine_file(path)
    problems = list(document.problems)
    if document.readable:
        problems += differences(document, schema())
    if problems:
        raise ConfigError(*problem_lines(document, problems))
    return _preset_of(path.stem, document)


def _preset_of(name: str, document: Document) -> Preset:
    value = document.value
    request, stream = value.get("request", {}), value.get("stream", {})
    model_path = request.get("model_path")
    try:
        return Preset(
            name=name,
            about=value["about"],
            forms=tuple(_form(each) for each in value["usage"]),
            free=tuple(request.get("free", ())),
            model=_path(request.get("model", "model")),
            model_path=(model_path["after"], model_path["until"]) if model_path else None,
            output=tuple(map(_path, request.get("output", ()))),
            output_absent=request.get("output_absent"),
            times=tuple(map(_path, request.get("times", ()))),
            unseen=tuple(request.get("unseen", ())),
            headers=HeaderSums(**value["headers"]) if "headers" in value else None,
            ends=tuple(map(_mark, stream.get("ends", ()))),
            end_required=stream.get("end_required", False),
            fails=tuple(map(_mark, stream.get("fails", ()))),
            array=stream.get("array", False),
            base64=stream.get("base64", ""),
        )
    except ValueError as fault:
        raise ConfigError(*problem_lines(document, [document.problem((), str(fault))])) from None


def _form(value: dict[str, Any]) -> Form:
    sums = {kind: tuple(map(_member, value.get(kind, ()))) for kind in KINDS}
    return Form(tuple(() if place == "." else _path(place) for place in value["at"]), sums)


def _path(text: str) -> MemberPath:
    return tuple(text.split("."))


def _member(text: str) -> Member:
    return Member(_path(text.removesuffix("?")), optional=text.endswith("?"))


def _mark(value: dict[str, Any]) -> Mark:
    path = _path(value["path"]) if "path" in value else ()
    return Mark(path, value.get("is"), value.get("text", ""), value.get("event", ""))
