"""The three sources of a policy, each a document of one schema: policy file, arguments, environment variables."""

from __future__ import annotations

import json
import os
import re
from dataclasses import dataclass, field
from functools import cache
from importlib import resources
from pathlib import Path as FilePath
from typing import TYPE_CHECKING, Any, TypeVar

from ratelimiter.parsing import env, values, yaml
from ratelimiter.parsing.document import Document, Path, Problem, problem_lines, shown_path

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from ratelimiter.core.quota import AnyQuota

Value = TypeVar("Value")

PREFIX = "RATELIMITER_"
# Sections that only a file can hold: they are mappings and lists that no argument or variable spells.
FILE_ONLY = ("rules", "proxy", "identity", "require", "plan", "overrides", "overrides_file")


@dataclass(frozen=True, slots=True)
class DraftRule:
    """A rule before the policy's defaults fill in its missing fields."""

    name: str  # empty if the rule has none
    quota: AnyQuota
    stated: dict[str, Any]  # arguments of `Rule` that the rule itself states


@dataclass(slots=True)
class Layer:
    """One source of settings: its document, the fields read so far, and the problems found so far."""

    document: Document
    schema: Mapping[str, Any]
    folder: FilePath = FilePath()  # to which the file names in the document are relative
    fields: dict[str, Any] = field(default_factory=dict)
    rules: list[DraftRule] = field(default_factory=list)
    problems: list[Problem] = field(default_factory=list)
    foreign: list[str] = field(default_factory=list)  # problems of other files that the document names
    spelled: Callable[[str], str] | None = None  # name of a field where the source has no lines
    _refused: set[Path] = field(default_factory=set, repr=False)  # paths of problems
    _around: set[Path] = field(default_factory=set, repr=False)  # all that lead to one of them
    _indexed: int = 0  # problems that these two hold

    @property
    def refused(self) -> bool:
        """True if anything in the source, or in a file that it names, was refused."""
        return bool(self.problems or self.foreign)

    def problem_lines(self) -> list[str]:
        """Return every problem as one line, by place."""
        if self.spelled is None:
            return [*problem_lines(self.document, self.problems), *self.foreign]
        own = [f"{self.spelled(shown_path(p.path))}: {_without_path(p)}" for p in dict.fromkeys(self.problems)]
        return [*own, *self.foreign]

    def refuse(self, path: Path, text: str, *, at_key: bool = False) -> None:
        """Note a problem at *path*."""
        told = f"{shown_path(path)}: {text}" if path else text
        self.problems.append(self.document.problem(path, told, at_key=at_key))

    def sound(self, path: Path) -> bool:
        """Return True if no problem was noted at *path*, within it or around it."""
        for problem in self.problems[self._indexed :]:
            if problem.path:
                self._refused.add(problem.path)
                self._around.update(problem.path[:length] for length in range(len(problem.path) + 1))
        self._indexed = len(self.problems)
        return path not in self._around and not any(
            path[:length] in self._refused for length in range(1, len(path) + 1)
        )

    def read(self, path: Path, value: Any, convert: Callable[[Any], Value]) -> Value | None:
        """Return *value* converted; if *convert* refuses it, note the problem at *path* and return None."""
        try:
            return convert(value)
        except ValueError as fault:
            self.refuse(path, str(fault))
            return None

    def read_each(self, path: Path, value: Any, convert: Callable[[Any], Value]) -> list[Value]:
        """Return *value*, or each item of it if it is a list, converted; refused items are left out."""
        converted: list[Value] = []
        for index, item in enumerate(value if isinstance(value, list) else [value]):
            at = (*path, index) if isinstance(value, list) else path
            read = self.read(at, item, convert)
            if read is not None:
                converted.append(read)
        return converted


def layer_of_file(path: str | os.PathLike[str], environ: Mapping[str, str]) -> Layer:
    """Return the file at *path*, its references to *environ* filled in.

    Raises:
        ConfigError: the file cannot be read.
    """
    document = env.filled(yaml.examine_file(path), environ)
    return Layer(document, file_schema(), FilePath(path).parent, problems=list(document.problems))


def layer_of_arguments(given: Mapping[str, Any]) -> Layer:
    """Return the keyword arguments *given* as a layer."""
    value = {name: _plain(item) for name, item in given.items()}
    secret = value.pop("secret", None)
    layer = Layer(Document("arguments", value), argument_schema(), spelled=str)
    if secret is not None:
        _read_secret(layer, secret)
    return layer


def layer_of_environment(variables: Mapping[str, str]) -> Layer:
    """Return environment *variables* as a layer; their names are without the prefix and in lower case."""
    properties = argument_schema()["properties"]
    # Other variables are ignored: orchestrators set RATELIMITER_PORT and the like for a service of this name.
    value = {name: _of_variable(text, properties[name]) for name, text in variables.items() if name in properties}
    layer = Layer(Document("environment", value), argument_schema(), spelled=_variable)
    if "secret" in variables:
        _read_secret(layer, variables["secret"])
    return layer


def policy_schema() -> dict[str, Any]:
    """Return a copy of the JSON Schema of a policy file."""
    text = resources.files("ratelimiter.config").joinpath("policy.schema.json").read_text(encoding="utf-8")
    policy: dict[str, Any] = json.loads(text)
    return policy


@cache
def file_schema() -> dict[str, Any]:
    """Return the JSON Schema of a policy file, shared by all callers."""
    return policy_schema()


@cache
def argument_schema() -> dict[str, Any]:
    """Return the JSON Schema of arguments and variables: that of a policy file, with limits in place of rules."""
    policy = policy_schema()
    for name in FILE_ONLY:
        del policy["properties"][name]
    del policy["required"]
    limit = policy["$defs"]["limit"]
    policy["properties"]["limit"] = {
        "title": "a limit or a list of limits",
        "examples": limit["examples"],
        "anyOf": [limit, {"type": "array", "minItems": 1, "uniqueItems": True, "items": limit}],
    }
    return policy


def _without_path(problem: Problem) -> str:
    return problem.text.removeprefix(f"{shown_path(problem.path)}: ")


def _variable(path: str) -> str:
    return PREFIX + re.sub(r"\W.*", "", path).upper()


def _of_variable(text: str, wanted: Mapping[str, Any]) -> Any:
    """Return the value that the text of a variable has for a field with the schema *wanted*."""
    if "anyOf" in wanted or wanted.get("$ref") == "#/$defs/principal":
        return [] if text.strip() == "none" else [item.strip() for item in text.split(",")]
    if wanted.get("type") == "integer" and re.fullmatch("0|[1-9][0-9]{0,9}", text):
        return int(text)
    if wanted.get("type") == "number" and re.fullmatch(r"[0-9]{1,3}(\.[0-9]{1,15})?", text):
        return float(text)
    if wanted.get("type") == "boolean":
        return {"true": True, "false": False}.get(text, text)
    return text


def _plain(value: Any) -> Any:
    """Return an argument as the plain value that a file would hold."""
    if isinstance(value, (tuple, set, frozenset)):
        return [_plain(item) for item in value]
    if isinstance(value, os.PathLike):
        return os.fspath(value)
    return str(value) if isinstance(value, str) else value


def _read_secret(layer: Layer, value: Any) -> None:
    if not isinstance(value, (str, bytes)):
        layer.refuse(("secret",), f"a value of type {type(value).__name__} is not a secret; write text or bytes")
        return
    secret = layer.read(("secret",), value.encode() if isinstance(value, str) else value, values.read_secret)
    if secret is not None:
        layer.fields["secret"] = secret
