from __future__ import annotations

from typing import Any

import pytest

from ratelimiter.config.layers import policy_schema
from ratelimiter.core.headers import FAMILIES
from ratelimiter.core.policy import AmbiguousPaths
from ratelimiter.core.rule import Mode, OnStoreError
from ratelimiter.parsing.schema import differences, problems
from ratelimiter.parsing.yaml import examine, read_text


def told(text: str, schema: dict[str, Any]) -> list[str]:
    return problems(read_text(text, "f"), schema)


@pytest.mark.parametrize(
    ("schema", "value", "expected"),
    [
        ({"type": "string"}, "5", "a: 5 is not text; write '5', in quotes"),
        ({"type": "string"}, "[1]", "a: a list of 1 is not text; write text"),
        ({"type": ["string", "null"]}, "{}", "a: an empty mapping is not text or nothing; write text or nothing"),
        ({"type": "string", "title": "a colour", "examples": ["red"]}, "5", "a: 5 is not a colour; write red"),
        ({"type": "integer"}, "10.0", "a: 10.0 is not a whole number; write a whole number"),
        ({"type": "integer"}, "true", "a: true is not a whole number; write a whole number"),
        ({"enum": ["red", "green", 5]}, "gren", "a: 'gren' is not red, green or 5; did you mean green?"),
        ({"enum": ["red", "green"]}, "7", "a: 7 is not valid; write red or green"),
        ({"const": "red"}, "blue", "a: 'blue' is not 'red'; write it"),
        ({"minimum": 3}, "2", "a: 2 is not at least 3; write a larger one"),
        ({"maximum": 3}, "4", "a: 4 is not at most 3; write a smaller one"),
        ({"pattern": "^x"}, "y", "a: 'y' is not of the form ^x; write it so"),
        ({"maxLength": 2}, "abc", "a: 'abc' is not text of at most 2 characters; write a shorter one"),
        ({"minItems": 1}, "[]", "a: an empty list is not a list of at least 1; write more, or leave it out"),
        ({"uniqueItems": True}, "[1, 1]", "a: a list of 2 is not a list without repetition; write each item once"),
        ({"not": {}}, "1", "a: is not allowed here; leave it out"),
        (
            {"anyOf": [{"type": "string"}, {"type": "array", "items": {"type": "string"}}]},
            "5",
            "a: 5 is not text or a list; write one of these",
        ),
        (
            {"anyOf": [{"type": "string"}, {"type": "array", "items": {"type": "integer"}}]},
            "[x]",
            "a[0]: 'x' is not a whole number; write a whole number",
        ),
        (
            {"propertyNames": {"pattern": "^[0-9]+$", "title": "a status"}},
            "{x: 1}",
            "a: the key 'x' is not a status; write it so",
        ),
    ],
)
def test_every_difference_is_told_in_one_voice(schema: Any, value: str, expected: str) -> None:
    """Path, value, what it is not, and what would do."""
    (line,) = told(f"a: {value}", {"properties": {"a": schema}})

    assert expected == line.partition(": ")[2]


def test_places_are_those_of_the_cause() -> None:
    """A value is pointed at where it stands, an unknown key at itself, a missing one at what misses it."""
    properties = {"name": {"type": "string"}}
    item = {"type": "object", "required": ["name"], "additionalProperties": False, "properties": properties}
    schema = {"properties": {"list": {"items": item}}}

    assert [
        "f:2:5: list[0]: 'nam' is unknown; did you mean name?",
        "f:2:5: list[0]: has no name; write name: and its value",
        "f:3:11: list[1].name: 5 is not text; write '5', in quotes",
        "f:4:5: list[2].name: nothing is not text; write text",
    ] == told("list:\n  - nam: x\n  - name: 5\n  - name:\n", schema)


def test_several_unknown_keys_are_several_problems() -> None:
    """Each misspelt key is told on its own line, and those that a pattern allows are not."""
    schema = {"additionalProperties": False, "properties": {"name": {}, "limit": {}}, "patternProperties": {"^x-": {}}}

    assert [
        "f:1:2: 'lmit' is unknown; did you mean limit?",
        "f:1:23: 'zzz' is unknown; write name or limit",
    ] == told("{lmit: 1, 'x-own': 2, zzz: 3}", schema)


def test_a_long_value_is_not_repeated_whole() -> None:
    """A problem stays one line of readable length, whatever the value."""
    (line,) = told(f'a: "{"x" * 500}\\n"', {"properties": {"a": {"type": "integer"}}})

    assert len(line) < 150
    assert line.isprintable()


def test_what_the_reader_refused_is_not_refused_again() -> None:
    """A value that was never read has one problem, not two."""
    document = examine(b"a: 010\nb: x\n", "f")
    schema = {"properties": {"a": {"type": "integer"}, "b": {"type": "integer"}}}

    assert [("b",)] == [problem.path for problem in differences(document, schema)]


def test_the_policy_schema_is_a_schema() -> None:
    """The schema that editors get is valid, and every field in it says what it is for."""
    from jsonschema import Draft202012Validator

    schema = policy_schema()
    Draft202012Validator.check_schema(schema)

    fields = [*schema["properties"].values(), *schema["$defs"]["rule"]["properties"].values()]
    assert all(field.get("description") for field in fields)


def test_the_policy_schema_knows_the_words_of_the_core() -> None:
    """Every choice of the core is one of the file, and the other way round."""
    schema = policy_schema()

    assert list(FAMILIES) == schema["$defs"]["family"]["enum"]
    assert [mode.value for mode in Mode] == schema["$defs"]["mode"]["enum"]
    assert [choice.value for choice in OnStoreError] == schema["$defs"]["on_store_error"]["enum"]
    assert [choice.value for choice in AmbiguousPaths] == schema["properties"]["ambiguous_paths"]["enum"]


def test_examples_and_defaults_of_the_policy_schema_are_valid() -> None:
    """What the schema shows as an example, it accepts."""
    schema = policy_schema()
    shown = 0
    for name, field in schema["properties"].items():
        definition = field | schema["$defs"].get(field.get("$ref", "").removeprefix("#/$defs/"), {})
        for example in [*definition.get("examples", []), *([field["default"]] if "default" in field else [])]:
            document = read_text("{}", "f")
            object.__setattr__(document, "value", {"rules": [{"limit": "60/minute"}], name: example})
            shown += 1

            assert [] == problems(document, schema)
    assert shown > 20
