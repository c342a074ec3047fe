from __future__ import annotations

import re
from urllib.parse import unquote

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ratelimiter.core.client_address import Trust
from ratelimiter.core.identity import BEARER, NOBODY, TELLABLE, ApiKeys, Identity, IdentityPolicy, JwtPolicy, named
from ratelimiter.core.identity_headers import UpstreamIdentityHeaders
from ratelimiter.core.principal import CLIENT, ORG, PrincipalReader, Source

KEY = Source("header", "X-API-Key")
TELLER = UpstreamIdentityHeaders([(what, f"X-Auth-{what.title()}") for what in TELLABLE])
printable = st.text(st.characters(codec="utf-8"), max_size=20)


@given(principal=printable, plan=printable, scopes=st.frozensets(printable.filter(bool), max_size=3))
def test_what_is_told_is_visible_and_can_be_read_back(principal: str, plan: str, scopes: frozenset[str]) -> None:
    """No value ends a line or begins another, whatever it is; and none is lost."""
    told = dict(TELLER.headers(Identity(principal=principal, plan=plan, scopes=scopes)))

    assert all(re.fullmatch(rb"[\x21-\x7e]+( [\x21-\x7e]+)*", value) for value in told.values())
    assert unquote(told.get(b"x-auth-principal", b"").decode()) == principal
    assert unquote(told.get(b"x-auth-plan", b"").decode()) == plan
    assert {unquote(word) for word in told.get(b"x-auth-scopes", b"").decode().split(" ")} - {""} == scopes


@given(st.lists(st.tuples(st.text("xXaAuUtThH-_pPlLnN", max_size=12), st.binary(max_size=3)), max_size=8))
def test_nothing_of_a_client_is_left_under_our_names(sent: list[tuple[str, bytes]]) -> None:
    """In no case and with no hyphens as underscores; all else stays as it was, in its order."""
    teller = UpstreamIdentityHeaders([("plan", "X-Auth-Plan")])
    headers = [*((name.encode(), value) for name, value in sent), (b"X-AUTH_pLAN", b"forged")]
    replaced = teller.replaced(headers, NOBODY)

    assert not [name for name, _ in replaced if name.lower().replace(b"_", b"-") == b"x-auth-plan"]
    assert replaced == [header for header in headers if header[0].lower().replace(b"_", b"-") != b"x-auth-plan"]


def test_of_whom_nothing_is_known_nothing_is_told() -> None:
    """No empty headers."""
    assert TELLER.headers(NOBODY) == []


TOKENS = JwtPolicy("https://id.example/", ("api",), "https://id.example/jwks.json")


@pytest.mark.parametrize(
    ("policy", "verified", "files"),
    [
        (IdentityPolicy(), frozenset(), ()),
        (IdentityPolicy(TOKENS), frozenset({BEARER}), ()),
        (IdentityPolicy(api_keys=ApiKeys(KEY, "k", {})), frozenset({KEY}), ("k",)),
        (
            IdentityPolicy(JwtPolicy("i", ("a",), "/j.json"), ApiKeys(BEARER, "k", {})),
            frozenset({BEARER}),
            ("k", "/j.json"),
        ),
    ],
)
def test_what_a_policy_verifies_and_reads(
    policy: IdentityPolicy, verified: frozenset[Source], files: tuple[str, ...]
) -> None:
    """A URL is no file to watch; an organisation is only ever what credentials say."""
    assert (policy.verified, policy.files) == (verified | {ORG}, files)


def test_a_verified_source_names_nobody_by_itself() -> None:
    """What the header says is nothing; what was verified is charged, under a key of the source and the name."""
    reader = PrincipalReader([KEY, BEARER, CLIENT], Trust(), verified={KEY})
    headers = [(b"x-api-key", b"k1"), (b"authorization", b"Bearer t1")]

    def read(*names: tuple[str, str], sources: tuple[Source, ...] = (KEY, CLIENT)) -> tuple[str, str]:
        principal = reader.read(sources, headers, "203.0.113.7", names)
        return principal.source, principal.digest

    assert read()[0] == "client"
    assert read(("bearer", "alice"))[0] == "client"
    assert read(("header:x-api-key", "alice"))[0] == "header:x-api-key"
    assert read(("header:x-api-key", "alice")) == read(("bearer", "x"), ("header:x-api-key", "alice"))
    assert read(("header:x-api-key", "alice")) != read(("header:x-api-key", "bob"))
    assert read(sources=(KEY, BEARER))[0] == "bearer"  # which this reader does not have verified
    assert b"x-api-key" not in reader.watched


@pytest.mark.parametrize(
    ("org", "expected"), [("", (("bearer", "alice"),)), ("acme", (("bearer", "alice"), ("org", "acme")))]
)
def test_a_credential_names_its_organisation_too(org: str, expected: tuple[tuple[str, str], ...]) -> None:
    """A rule with `principal: org` charges it; a credential of no organisation names none."""
    assert expected == named("bearer", "alice", org)


@pytest.mark.parametrize(("algorithms", "expected"), [(("HS256",), True), (("RS256", "ES256"), False)])
def test_tokens_are_signed_with_a_secret_or_with_keys(algorithms: tuple[str, ...], expected: bool) -> None:
    """By the algorithms of the policy: the token has no say (RFC 8725 section 3.1)."""
    assert expected == JwtPolicy("i", ("a",), "/secret", algorithms=algorithms).symmetric
