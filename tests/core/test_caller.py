"""The caller that an application names: as text, as a number, or with a plan and scopes."""

from __future__ import annotations

from typing import Any

import pytest

from ratelimiter.core.caller import APPLICATION, Caller, identity_of
from ratelimiter.core.identity import Identity
from ratelimiter.core.request import PRINCIPAL_BYTES_MAX


def known(principal: str, plan: str = "", *scopes: str) -> Identity:
    return Identity(
        APPLICATION,
        principal,
        plan,
        frozenset(scopes),
        method=APPLICATION,
        verified=((APPLICATION, principal),),
    )


@pytest.mark.parametrize(
    ("caller", "expected"),
    [
        (None, None),
        ("alice", known("alice")),
        (7, known("7")),
        (0, known("0")),
        (Caller("alice"), known("alice")),
        (Caller("alice", "pro", frozenset({"read"})), known("alice", "pro", "read")),
    ],
)
def test_a_caller_is_text_a_number_or_more(caller: Any, expected: Identity | None) -> None:
    """The id of a database row will do, 0 included; None is a caller that the application does not know."""
    assert expected == identity_of(caller)


@pytest.mark.parametrize("caller", [True, 1.5, b"alice", ["alice"], object()])
def test_anything_else_is_a_mistake_of_the_application(caller: Any) -> None:
    """The error names the type and says what would do; `True` is no id, though Python counts it among the numbers."""
    with pytest.raises(TypeError, match=f"not a {type(caller).__name__}; give the user's id"):
        identity_of(caller)


@pytest.mark.parametrize("principal", ["", "a" * (PRINCIPAL_BYTES_MAX + 1), "\u00e9" * (PRINCIPAL_BYTES_MAX // 2 + 1)])
def test_a_principal_has_a_length(principal: str) -> None:
    """An empty one would be a shared one, and one without bound would fill the memory; bytes count, not characters."""
    with pytest.raises(ValueError, match=f"must have 1 to {PRINCIPAL_BYTES_MAX} bytes, not "):
        identity_of(principal)


def test_the_longest_principal_is_taken() -> None:
    """The bound itself is allowed, and so is half of a surrogate pair, which a database may hold."""
    assert known("a" * PRINCIPAL_BYTES_MAX) == identity_of("a" * PRINCIPAL_BYTES_MAX)
    assert known("\ud800") == identity_of("\ud800")


def test_scopes_of_any_collection() -> None:
    """An application may give a list."""
    assert frozenset({"read", "write"}) == Caller("alice", scopes=["read", "write"]).scopes  # type: ignore[arg-type]
