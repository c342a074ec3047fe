from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ratelimiter.config.loader import build
from ratelimiter.errors import ConfigError
from ratelimiter.parsing.document import problem_lines
from ratelimiter.parsing.env import filled
from ratelimiter.parsing.yaml import examine

SET = {"LIMIT": "90", "EMPTY": "", "WORDS": "a: [b]\n", "NESTED": "${LIMIT}", "LATIN": "caf\udce9", "PATH_1": "/x"}

EXAMPLES = "60/minute, 1000 per hour or 5 per 2 seconds"
NONE = "has a malformed reference; write ${NAME} or ${NAME:-default}, the name in capitals"


def value_of(text: str) -> Any:
    """What a file says whose only value is *text*."""
    document = filled(examine(f"a: {text}\n".encode(), "f"), SET)
    assert () == document.problems, problem_lines(document, document.problems)
    return document.value["a"]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("${LIMIT}/minute", "90/minute"),
        ("${LIMIT:-60}/minute", "90/minute"),
        ("${UNSET:-60}/minute", "60/minute"),
        ("${EMPTY:-60}/minute", "60/minute"),
        ("${EMPTY}", ""),
        ("${UNSET:-}", ""),
        ("${LIMIT}", 90),
        ("${UNSET:-10}", 10),
        ("'${LIMIT}'", 90),
        ("${LIMIT}${LIMIT}", "9090"),
        ("${UNSET:-010}", "010"),
        ("${UNSET:-1e3}", "1e3"),
        ("${UNSET:-true}", "true"),
        ("${NESTED}", "${LIMIT}"),
        ("[x, '${PATH_1}/y']", ["x", "/x/y"]),
        ("{b: '${LIMIT}'}", {"b": 90}),
        ("$LIMIT", "$LIMIT"),
        ("5", 5),
    ],
)
def test_references(text: str, expected: Any) -> None:
    """A variable's text, or its default where it is unset or empty; a number where that is all there is. What one
    holds is not looked into again.
    """
    assert expected == value_of(text)


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("${UNSET}", "f:1:4: a: UNSET is not set in the environment; set it, or write ${UNSET:-and a default}"),
        ("${WORDS}", "f:1:4: a: WORDS holds a control character or a line break; set it to text of one line"),
        ("${LATIN}", "f:1:4: a: LATIN holds a control character or a line break; set it to text of one line"),
        ("${limit}/minute", f"f:1:4: a: '${{limit}}/minute' {NONE}"),
        ("'${LIMIT:-${OTHER}}'", f"f:1:4: a: '${{LIMIT:-${{OTHER}}}}' {NONE}"),
    ],
)
def test_what_cannot_be_had(text: str, problem: str) -> None:
    """Is told with its place and what would do, and never what a variable holds."""
    document = filled(examine(f"a: {text}\n".encode(), "f"), SET)

    assert [problem] == problem_lines(document, document.problems)


def test_keys_are_not_references() -> None:
    """What a file has settings for is the file's to say."""
    assert {"${LIMIT}": 1} == filled(examine(b"'${LIMIT}': 1\n", "f"), SET).value


@given(st.text(st.characters(exclude_categories=["Cc", "Cs"]), max_size=20))
def test_a_variable_is_one_value(text: str) -> None:
    """Whatever it holds, nothing else in the file changes."""
    document = filled(examine(b"a: x${V}\nb: 1\n", "f"), {"V": text})

    assert {"a": f"x{text}", "b": 1} == document.value


def test_a_policy_file_refers_to_the_environment(tmp_path: Any) -> None:
    """Of the arguments, too: a policy is as the process's environment has it, and a bad value is told at its place."""
    file = tmp_path / "policy.yaml"
    file.write_text("rules:\n  - limit: ${LIMIT:-60}/minute\n    burst: ${BURST:-10}\n")
    default, other = build(config=file, environ={}), build(config=file, environ={"LIMIT": "5", "BURST": "0"})
    with pytest.raises(ConfigError) as caught:
        build(config=file, environ={"LIMIT": "many", "BURST": "-1"})

    assert [(60, 10), (5, 0)] == [(policy.rules[0].quota.limit, policy.rules[0].burst) for policy in (default, other)]
    assert [
        f"{file}:2:12: rules[0].limit: 'many/minute' is not a limit; write one like {EXAMPLES}",
        f"{file}:3:12: rules[0].burst: '-1' is not a number of requests from 0 to 1000000000; write 10",
    ] == list(caught.value.problems)
