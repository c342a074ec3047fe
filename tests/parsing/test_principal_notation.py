from __future__ import annotations

import pytest

from ratelimiter.core.planner import reader_for
from ratelimiter.core.policy import Policy
from ratelimiter.core.principal import Source
from ratelimiter.core.quota import Quota
from ratelimiter.core.rule import Rule
from ratelimiter.parsing.principal_notation import Named, digests_of, parse_named, pattern_digest, value_of
from tests.requesting import request

KEY = Source("header", "x-api-key")
POLICY = Policy((Rule("rule", Quota(1, 1000), principal=(KEY, Source("bearer"))),), secret=b"secret")


@pytest.mark.parametrize(
    ("text", "named"),
    [
        ("header:X-API-Key=alice", Named("header:x-api-key", "alice")),
        ("header:X-API-Key=a=b", Named("header:x-api-key", "a=b")),
        ("bearer=token", Named("bearer", "token")),
        ("org=acme", Named("org", "acme")),
        ("client=192.0.2.1", Named("client", "192.0.2.1")),
        ("client=local", Named("client", "local")),
        ("client=192.0.2.*", Named("client", "192.0.2.*")),
        ("everyone=", Named("everyone", "")),
        ("digest=" + "ab" * 16, Named("digest", "ab" * 16)),
    ],
)
def test_named(text: str, named: Named) -> None:
    """A source and a value, or a digest."""
    assert named == parse_named(text)


@pytest.mark.parametrize(
    "text",
    [
        *("alice-secret", "", "header:=alice-secret", "header:X Y=alice-secret", "bearer=", "digest=alice-secret"),
        *("client=alice-secret", "Client=alice-secret", "header:x=" + "alice-secret" * 100, "header:x=" + "*" * 9),
    ],
)
def test_no_principal(text: str) -> None:
    """What names nobody is refused with what would do, and not repeated: it may be a credential."""
    with pytest.raises(ValueError, match="write ") as caught:
        parse_named(text)

    assert "alice-secret" not in str(caught.value)


def test_a_value_alone() -> None:
    """In a policy file it stands for whoever has it, wherever it is found."""
    assert Named("", "alice") == parse_named("alice", anywhere=True)
    assert 2 == len(digests_of(Named("", "alice"), POLICY))
    assert 3 == len(digests_of(Named("", "192.0.2.1"), POLICY))


@pytest.mark.parametrize(
    ("text", "headers", "peer"),
    [
        ("header:X-API-Key=alice", [("x-api-key", "alice")], "192.0.2.1"),
        ("bearer=token", [("authorization", "Bearer token")], "192.0.2.1"),
        ("client=192.0.2.1", [], "192.0.2.1"),
        ("client=::ffff:192.0.2.1", [], "192.0.2.1"),
        ("client=2001:db8::1", [], "2001:db8::2"),
        ("client=2001:db8::/64", [], "2001:db8::2"),
        ("client=local", [], None),
    ],
)
def test_the_digest_is_that_of_requests(text: str, headers: list[tuple[str, str]], peer: str | None) -> None:
    """Named by a person, it is who is charged."""
    asked = request("/", headers=headers, peer=peer)
    charged = reader_for(POLICY).read(POLICY.rules[0].principal, asked.headers, peer)
    named = parse_named(text)

    assert {charged.digest} == digests_of(named, POLICY)
    assert reader_for(POLICY).find(POLICY.rules[0].principal, asked.headers, peer)[1] == value_of(named, POLICY)


def test_a_source_that_no_rule_looks_at() -> None:
    """Nothing would ever be counted for it."""
    with pytest.raises(ValueError, match=r"no rule charges header:x-other; write header:x-api-key or bearer or client"):
        digests_of(parse_named("header:X-Other=a"), POLICY)


def test_patterns_are_told_apart() -> None:
    """By source and by text."""
    assert 3 == len({pattern_digest("a", "b*"), pattern_digest("", "b*"), pattern_digest("a", "c*")})
