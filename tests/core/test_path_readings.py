"""The ways in which servers read one path, and the form of it that all of them read alike."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ratelimiter.core import path_readings
from ratelimiter.core.path import canonical_path
from ratelimiter.core.path_readings import Readings
from ratelimiter.core.request import MalformedRequest


@pytest.mark.parametrize(
    ("target", "canonical", "others"),
    [
        (b"/a/b?q=%2f", "/a/b", set()),
        (b"*", "*", set()),
        (b"/a//b", "/a/b", {"/a//b"}),
        (b"/a/../b", "/b", {"/a/../b"}),
        (b"/a/..", "/", {"/a/.."}),
        (b"/a//../b", "/b", {"/a/../b", "/a/b", "/a//../b"}),
        (b"/a/b/..", "/a/", {"/a/b/.."}),
        (b"/a/%2e%2e/b", "/b", {"/a/../b"}),
        (b"/a%2fb", None, {"/a%2Fb", "/a/b"}),
        (b"/a%5cb", None, {"/a%5Cb", "/a/b"}),
        (b"/a%00b", None, {"/a%00b", "/a"}),
        (b"/a%zz", None, {"/a%25zz", "/a"}),
        (b"/a/%c0%ae%c0%ae/b", None, {"/a/%C0%AE%C0%AE/b", "/a/b", "/a/%C3%80%C2%AE%C3%80%C2%AE/b", "/b"}),
        (b"/caf%e9", None, {"/caf%E9", "/caf", "/caf%C3%A9"}),
    ],
)
def test_readings(target: bytes, canonical: str | None, others: set[str]) -> None:
    """A path that all servers read alike has one reading; each other way of servers that are in use adds its own."""
    readings = path_readings.read(target)

    assert (canonical, others) == (readings.canonical, set(readings.others))
    assert readings.all == ((() if canonical is None else (canonical,)) + readings.others)


@pytest.mark.parametrize("target", [b"/a#b", b"/a\\b", b"/a b", b"/caf\xe9"])
def test_no_target_has_such_characters(target: bytes) -> None:
    """A character that no request target has is refused, whatever the rules look at."""
    with pytest.raises(MalformedRequest, match="must be percent-encoded"):
        path_readings.read(target)


def test_a_path_of_too_many_readings_is_refused() -> None:
    """A client that combines the tricks tries what works; there is no honest use of it."""
    with pytest.raises(MalformedRequest, match="too many ways"):
        path_readings.read(b"/a%2f..%5c//%zz%e9")


def test_a_mount_is_taken_off_each_reading() -> None:
    """Behind a root path, rules see what the application sees."""
    assert Readings("/x", ("//x",)) == path_readings.read(b"/api//x", "/api")


@pytest.mark.parametrize(
    ("target", "expected"),
    [
        (b"/a//b/./c?q=1//2", b"/a/b/c?q=1//2"),
        (b"/a/../b", b"/b"),
        (b"/a/b/..", b"/a/"),
        (b"/a/..", b"/"),
        (b"/%7euser/%41%3a", b"/~user/A%3A"),
        (b"/a/", b"/a/"),
        (b"/a?", b"/a?"),
    ],
)
def test_what_is_forwarded_where_servers_differ(target: bytes, expected: bytes) -> None:
    """Dot segments and doubled slashes are resolved; a reserved character stays encoded, and the query as it came."""
    assert expected == path_readings.normalized(target)


def test_what_has_no_canonical_path_is_not_forwarded() -> None:
    """There is no form of it that all servers read alike."""
    with pytest.raises(MalformedRequest):
        path_readings.normalized(b"/a%2fb")


@given(st.lists(st.sampled_from([b"/", b"a", b".", b"..", b"%2e", b"%41", b"%3a", b"~"]), max_size=8))
def test_the_normalized_form_means_the_same_path_to_all(parts: list[bytes]) -> None:
    """It has one reading, which is the canonical path of what was sent."""
    target = b"/" + b"".join(parts)

    assert Readings(canonical_path(target), ()) == path_readings.read(path_readings.normalized(target))
