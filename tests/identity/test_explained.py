"""What `explain` and `check-config` say of identity and requirements."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import pytest

from ratelimiter.config import loader
from ratelimiter.config.lint import warnings
from ratelimiter.engine.explain import explain
from tests.config.test_identity import write_policy
from tests.identity.provider import KeyServer, token
from tests.requesting import request

if TYPE_CHECKING:
    from pathlib import Path


def said(policy: Path, label: str, *headers: tuple[str, str]) -> str | None:
    lines = explain(loader.load(policy), request(headers=headers))
    return next((line.removeprefix(label).strip() for line in lines if line.startswith(label)), None)


def bearer(**changes: Any) -> tuple[str, str]:
    return ("Authorization", f"Bearer {token(**changes).decode()}")


def test_who_is_identified(tmp_path: Path) -> None:
    """What the credentials prove, and nobody's name."""
    policy = write_policy(tmp_path, require=[{"scopes": ["lookup"]}])
    cases = [
        (
            ("X-API-Key", "user-key"),
            "a good api_key, plan gold, kind user, scopes lookup",
            "header:x-api-key",
            "all that",
        ),
        (bearer(scope="b"), "a good jwt, kind user, scopes b", "bearer", "insufficient_scope: 403, once it is charged"),
        (bearer(exp=1), "token_expired", "client", "token_expired: 401, once it is charged"),
        (("X-Other", "x"), "credentials_missing", "client", "credentials_missing: 401, once it is charged"),
    ]

    for header, identity, charged, required in cases:
        assert said(policy, "identity", header) == identity
        assert (said(policy, "  charged", header) or "").split(" ")[0] == charged
        assert (said(policy, "require", header) or "").startswith(required)
    lines = "\n".join(explain(loader.load(policy), request(headers=[("X-API-Key", "user-key")])))
    assert "ulla" not in lines


def test_no_provider_is_asked(tmp_path: Path) -> None:
    """What only its keys could tell is said to be so."""
    with KeyServer() as server:
        jwt = {"issuer": "i", "audience": "a", "keys": server.url}
        policy = write_policy(tmp_path, identity={"jwt": jwt})

        assert said(policy, "identity", bearer()) == f"a token, which only the keys at {server.url} could verify"
        assert server.asked == 0


def test_who_verifies_nothing_is_told_nothing(tmp_path: Path) -> None:
    """Policies without these sections are explained as ever; a requirement that does not match is no matter."""
    (tmp_path / "policy.yaml").write_text("rules: [{limit: 1/hour}]\n")
    assert said(tmp_path / "policy.yaml", "identity") is None
    assert said(tmp_path / "policy.yaml", "require") is None
    require = [{"header": "X-Tenant-ID", "match": {"path": "/elsewhere"}}]
    (tmp_path / "policy.yaml").write_text(json.dumps({"require": require, "rules": [{"limit": "1/hour"}]}))
    assert said(tmp_path / "policy.yaml", "require") == "nothing"


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({}, []),
        ({"principal": ["header:X-API-Key", "client"]}, ["identity: no rule charges bearer;"]),
        ({"principal": ["client"], "require": [{"credentials": True}]}, []),
        ({"principal": ["bearer", "header:X-Other", "client"]}, ["identity: no rule charges header:x-api-key;"]),
        ({"principal": ["header:X-API-Key", "bearer", "header:X-Other"]}, ["rules[0]: header:x-other is not verified"]),
    ],
)
def test_what_may_not_be_meant(tmp_path: Path, changes: dict[str, Any], told: list[str]) -> None:
    """A verified source is no made-up one; one that stands behind it may be."""
    found = warnings(loader.load(write_policy(tmp_path, **changes)))

    assert all(any(line.startswith(start) for line in found) for start in told)
    assert bool(found) == bool(told)


@pytest.mark.parametrize(
    ("url", "unsafe"),
    [
        ("http://id.example/jwks.json", True),
        ("http://192.0.2.1/", True),
        ("http://localhost:8000/", False),
        ("http://127.0.0.1/", False),
        ("http://[::1]/", False),
        ("https://id.example/", False),
    ],
)
def test_keys_that_somebody_on_the_way_could_change(tmp_path: Path, url: str, unsafe: bool) -> None:
    """Plain HTTP is for one's own machine."""
    policy = write_policy(tmp_path, identity={"jwt": {"issuer": "i", "audience": "a", "keys": url}})
    found = [line for line in warnings(loader.load(policy)) if line.startswith("identity.jwt.keys: an attacker")]

    assert bool(found) == unsafe
