"""The scanner reads what json reads, from any pieces."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from ratelimiter.tokens.figures import parsed
from ratelimiter.tokens.json_scanner import OTHER, JsonScanner, tree_of

PATHS = [("usage", "a"), ("usage", "b", "c"), ("model",), ("usa_ge",), ("x", "error")]
TREE = tree_of(PATHS)

names = st.sampled_from(["usage", "a", "b", "c", "model", "usa_ge", "x", "error", "other", "é", ""])
leaves = (
    st.none()
    | st.booleans()
    | st.integers(-(10**12), 10**12)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(max_size=12)
    | st.sampled_from(['"usage":{"a":1}', "\\", '"', "\\u0061", "{[", 10.0, -0.0, 10**9, 10**9 + 1])
)
values = st.recursive(
    leaves, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(names, inner, max_size=5), max_leaves=25
)


def scanned(data: bytes, size: int) -> dict[int, Any] | None:
    scanner = JsonScanner(TREE)
    for position in range(0, len(data), size):
        scanner.feed(data[position : position + size])
    scanner.end()
    return scanner.values if scanner.complete else None


@settings(max_examples=300, deadline=None)
@given(value=values, size=st.integers(1, 40), ascii_=st.booleans(), indent=st.sampled_from([None, 2]))
@example(value={"usage": {"a": 1}, "model": "m"}, size=1, ascii_=True, indent=2)
def test_the_scanner_agrees_with_json(value: Any, size: int, ascii_: bool, indent: int | None) -> None:
    """Of every document it finds the same members as a whole parse does."""
    data = json.dumps(value, ensure_ascii=ascii_, indent=indent).encode()

    whole = parsed(data, TREE)
    assert (whole or {}) == scanned(data, size)
    assert (whole is not None) == isinstance(value, dict)


@settings(max_examples=300, deadline=None)
@given(data=st.text('{}[]",:\\ \nusage01.-e"model', max_size=60).map(str.encode), size=st.integers(1, 20))
def test_what_json_reads_the_scanner_reads(data: bytes, size: int) -> None:
    """Whatever parses as JSON has the same members here; of what does not, pieces make no difference."""
    whole = parsed(data, TREE)

    if whole is not None:
        assert whole == scanned(data, size)
    assert scanned(data, len(data) or 1) == scanned(data, size)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ('{"usage":{"a":5}}', 5),
        ('{"usage":{"a":5.0}}', 5),
        ('{"usage":{"a":-0}}', 0),
        ('{"usage":{"a":1000000000}}', 10**9),
        ('{"usage":{"a":1000000001}}', OTHER),
        ('{"usage":{"a":5.5}}', OTHER),
        ('{"usage":{"a":-1}}', OTHER),
        ('{"usage":{"a":1e2}}', OTHER),
        ('{"usage":{"a":{"a":5}}}', OTHER),
        ('{"usage":{"a":[5]}}', OTHER),
        ('{"usage":{"a":null}}', None),
        ('{"usage":{"a":1,"a":2}}', 2),
        ('{"usage":{"a":1},"usage":{"b":{}}}', None),
        ('{"usage":{"a":1},"usage":5}', None),
        ('{"usage":[{"a":1}]}', None),
        ('{"\\u0075sage":{"\\u0061":3}}', 3),
        ('{"Usage":{"a":3}}', None),
    ],
)
def test_values(text: str, expected: Any) -> None:
    """Whole numbers count, all else is told apart from them, and the last of two names counts."""
    for size in (1, 5, 100):
        found = scanned(text.encode(), size)
        assert found is not None
        assert expected == found.get(0)
    assert expected == (parsed(text.encode(), TREE) or {}).get(0)


@pytest.mark.parametrize(
    "text", ["", "{", '{"a"', '{"a":1', '{"a":1}}', '{"a":1,}', "{a:1}", '{"a" 1}', "]", "{} {}", '{"a":1]']
)
def test_what_is_not_whole_is_not_complete(text: str) -> None:
    """A document that is cut or broken is not complete."""
    assert scanned(text.encode(), 3) is None


def test_paths_that_collide_are_refused() -> None:
    """No wanted path leads through another."""
    with pytest.raises(ValueError, match="usage"):
        tree_of([("usage",), ("usage", "a")])
    with pytest.raises(ValueError, match="usage"):
        tree_of([("usage", "a"), ("usage",)])
