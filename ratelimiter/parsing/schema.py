"""Differences between a document and a JSON Schema, each as one line with what would do.

A schema (draft 2020-12) can speak through two annotations, which editors show as well: `title` completes the sentence
"VALUE is not ...", and `examples` holds values that would do.
"""

from __future__ import annotations

import json
import re
from difflib import get_close_matches
from typing import TYPE_CHECKING, Any

from ratelimiter.parsing.document import Document, Path, Problem, problem_lines, shown, shown_path

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping, Sequence

EXAMPLES_TOLD = 3
RANGE = ("minimum", "maximum")
CHOICES_TOLD = 30

_TYPES = {
    "array": "a list",
    "boolean": "true or false",
    "integer": "a whole number",
    "null": "nothing",
    "number": "a number",
    "object": "a mapping",
    "string": "text",
}
# Keyword -> the end of "VALUE is not ..." for a schema without title, and the advice for one without examples.
_NOUNS: dict[str, tuple[str, str]] = {
    "const": ("{}", "write it"),
    "exclusiveMaximum": ("less than {}", "write a smaller one"),
    "exclusiveMinimum": ("more than {}", "write a larger one"),
    "maxItems": ("a list of at most {}", "write fewer"),
    "maxLength": ("text of at most {} characters", "write a shorter one"),
    "maxProperties": ("a mapping of at most {} keys", "write fewer"),
    "maximum": ("at most {}", "write a smaller one"),
    "minItems": ("a list of at least {}", "write more, or leave it out"),
    "minLength": ("text of at least {} characters", "write a longer one"),
    "minProperties": ("a mapping of at least {} keys", "write more, or leave it out"),
    "minimum": ("at least {}", "write a larger one"),
    "multipleOf": ("a multiple of {}", "write one"),
    "pattern": ("of the form {}", "write it so"),
    "uniqueItems": ("a list without repetition", "write each item once"),
}


def problems(document: Document, schema: Mapping[str, Any]) -> list[str]:
    """Return the differences as lines `FILE:LINE:COLUMN: PATH: VALUE is not ...; write ...`, by place."""
    return problem_lines(document, differences(document, schema))


def differences(document: Document, schema: Mapping[str, Any]) -> list[Problem]:
    """Return the differences as problems. Values that the reader refused are left out."""
    refused = {problem.path for problem in document.problems}
    found = (
        problem
        for error in _validator(schema).iter_errors(document.value)
        for problem in _differences(document, error)
        if not any(problem.path[:length] in refused for length in range(1, len(problem.path) + 1))
    )
    return list(dict.fromkeys(found))


def listed(words: Iterable[str], last: str = "or") -> str:
    """Return *words* as a phrase: `a`, `a or b`, `a, b or c`."""
    words = list(words)
    return f"{', '.join(words[:-1])} {last} {words[-1]}" if len(words) > 1 else "".join(words)


def suggestion(word: str, known: Sequence[str]) -> str:
    """Return what to write for *word*, which is none of *known*."""
    close = get_close_matches(word.lower(), known, n=1, cutoff=0.6)
    if close:
        return f"did you mean {close[0]}?"
    return f"write {listed(known[:CHOICES_TOLD])}" if known else "leave it out"


def _validator(schema: Mapping[str, Any]) -> Any:
    # Imported here because a limiter without a file needs none of it, and it takes long.
    from jsonschema import Draft202012Validator, validators  # noqa: PLC0415

    # JSON Schema calls 10.0 an integer; for a count it is a mistake.
    checker = Draft202012Validator.TYPE_CHECKER.redefine("integer", lambda _, value: type(value) is int)
    unique = {"uniqueItems": _repeated}  # the library compares each item with each other
    return validators.extend(Draft202012Validator, unique, type_checker=checker)(schema)


def _repeated(_validator: Any, wanted: bool, items: Any, _schema: Any) -> Iterator[Any]:
    from jsonschema import ValidationError  # noqa: PLC0415

    if not wanted or not isinstance(items, list):
        return
    spelled = [json.dumps(item, sort_keys=True) for item in items]
    if len(set(spelled)) < len(spelled):
        yield ValidationError("has repeated items")


def _differences(document: Document, error: Any) -> Iterator[Problem]:
    path: Path = tuple(error.absolute_path)
    keyword, value, schema = error.validator, error.instance, error.schema
    if keyword == "required":
        for name in error.validator_value:
            if name not in value:
                yield document.problem((*path, name), _about(path, f"has no {name}; {_write_key(name, schema)}"))
    elif keyword == "additionalProperties":
        known = list(schema.get("properties", ()))
        for name in _unknown(value, schema):
            text = f"{shown(name)} is unknown; {suggestion(name, known)}"
            yield document.problem((*path, name), _about(path, text), at_key=True)
    elif "propertyNames" in error.absolute_schema_path:
        text = f"the key {_is_not(value, keyword, error.validator_value, schema)}"
        yield document.problem((*path, str(value)), _about(path, text), at_key=True)
    elif keyword in ("anyOf", "oneOf") and error.context:
        yield from _branches(document, error, path)
    elif keyword is None or keyword == "not":
        yield document.problem(path, _about(path, "is not allowed here; leave it out"), at_key=True)
    else:
        text = _about(path, _is_not(value, keyword, error.validator_value, schema))
        yield document.problem(path, text, at_key=value is None)


def _unknown(value: Mapping[str, Any], schema: Mapping[str, Any]) -> Iterator[str]:
    patterns = schema.get("patternProperties", ())
    for name in value:
        if name not in schema.get("properties", ()) and not any(re.search(pattern, name) for pattern in patterns):
            yield name


def _branches(document: Document, error: Any, path: Path) -> Iterator[Problem]:
    """Yield the differences from the alternative that was meant: the one whose type fits."""
    branches: dict[int, list[Any]] = {}
    for sub in error.context:
        branches.setdefault(sub.relative_schema_path[0], []).append(sub)
    meant = [
        subs for subs in branches.values() if not any(s.validator in ("type", "const") and not s.path for s in subs)
    ]
    if len(meant) == 1:
        for sub in meant[0]:
            yield from _differences(document, sub)
        return
    types = [schema["type"] for schema in error.validator_value if isinstance(schema.get("type"), str)]
    consts = [shown(schema["const"]) for schema in error.validator_value if "const" in schema]
    nouns = [*consts, *(_TYPES[name] for name in dict.fromkeys(types))]
    noun = error.schema.get("title") or listed(nouns) or "allowed here"
    text = f"{_subject(error.instance)} {noun}; {_examples(error.schema) or 'write one of these'}"
    yield document.problem(path, _about(path, text), at_key=error.instance is None)


def _is_not(value: Any, keyword: str, wanted: Any, schema: Mapping[str, Any]) -> str:
    if keyword == "enum":
        words = [choice if isinstance(choice, str) else shown(choice) for choice in wanted]
        what = suggestion(value, words) if isinstance(value, str) else f"write {listed(words)}"
        if what.startswith("write"):  # the choices once
            return f"{_subject(value)} valid; {what}"
        return f"{_subject(value)} {listed(words[:CHOICES_TOLD])}; {what}"
    if keyword in RANGE and set(RANGE) <= schema.keys():
        return f"must be {schema['minimum']} to {schema['maximum']}, not {shown(value)}"
    if keyword == "type":
        names = [wanted] if isinstance(wanted, str) else wanted
        types = listed(_TYPES[name] for name in names)
        noun = schema.get("title") or types
        quotable = "string" in names and isinstance(value, (bool, int, float))
        what = f"write '{shown(value)}', in quotes" if quotable else f"write {types}"
        return f"{_subject(value)} {noun}; {_examples(schema) or what}"
    noun, what = _NOUNS.get(keyword, ("allowed here", "write another"))
    noun = schema.get("title") or noun.format(shown(wanted) if keyword == "const" else wanted)
    return f"{_subject(value)} {noun}; {_examples(schema) or what}"


def _subject(value: Any) -> str:
    return f"{shown(value)} is not"


def _examples(schema: Mapping[str, Any]) -> str:
    examples = schema.get("examples", ())[:EXAMPLES_TOLD]
    return f"write {listed(map(_as_yaml, examples))}" if examples else ""


def _write_key(name: str, schema: Mapping[str, Any]) -> str:
    examples = schema.get("properties", {}).get(name, {}).get("examples", ())
    return f"write {name}: {_as_yaml(examples[0])}" if examples else f"write {name}: and its value"


def _as_yaml(value: Any) -> str:
    if isinstance(value, list):
        return f"[{', '.join(map(_as_yaml, value))}]"
    if isinstance(value, dict):
        return f"{{{', '.join(f'{key}: {_as_yaml(item)}' for key, item in value.items())}}}"
    return value if isinstance(value, str) and value else shown(value)


def _about(path: Path, text: str) -> str:
    return f"{shown_path(path)}: {text}" if path else text
