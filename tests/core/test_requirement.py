from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ratelimiter.core.identity import (
    FAULTS,
    KEY_INVALID,
    MISSING,
    NOBODY,
    UNAVAILABLE,
    ApiKeys,
    Identity,
    IdentityPolicy,
    JwtPolicy,
)
from ratelimiter.core.principal import Source
from ratelimiter.core.requirement import (
    CREDENTIAL_KIND,
    EMAIL_UNVERIFIED,
    HEADER_MISSING,
    INSUFFICIENT_SCOPE,
    ORG_MISSING,
    REASONS,
    Requirement,
    Unmet,
    unmet,
)

TOKENS = JwtPolicy("https://id.example/", ("api",), "https://id.example/jwks.json")
KEYS = ApiKeys(Source("header", "X-API-Key"), "keys.yaml", {})
BY_BEARER = ApiKeys(Source("bearer"), "keys.yaml", {})
UUID = b"7d3f6b0e-4c1a-4f5e-9b57-2d1c8a9e0f36"
TENANT = Requirement(header="X-Tenant-ID", format="uuid")


def lacking(
    *requirements: Requirement,
    identity: Identity = NOBODY,
    headers: tuple[tuple[bytes, bytes], ...] = (),
    policy: IdentityPolicy | None = None,
) -> Unmet | None:
    return unmet(requirements, identity, headers, policy or IdentityPolicy(TOKENS, KEYS), "api")


@pytest.mark.parametrize(
    ("requirement", "identity", "reason"),
    [
        (Requirement(credentials=True), NOBODY, MISSING),
        (Requirement(credentials=True), Identity(), ""),
        (Requirement(), NOBODY, ""),
        (Requirement(scopes=frozenset("a")), NOBODY, MISSING),
        (Requirement(scopes=frozenset("ab")), Identity(scopes=frozenset("a")), INSUFFICIENT_SCOPE),
        (Requirement(scopes=frozenset("ab")), Identity(scopes=frozenset("abc")), ""),
        (Requirement(kinds=frozenset({"user"})), Identity(kind="org"), CREDENTIAL_KIND),
        (Requirement(kinds=frozenset({"user"})), Identity(), CREDENTIAL_KIND),
        (Requirement(kinds=frozenset({"user", "org"})), Identity(kind="org"), ""),
        (Requirement(org=True), Identity(), ORG_MISSING),
        (Requirement(org=True), Identity(org="acme"), ""),
        (Requirement(email_verified=True), Identity(), EMAIL_UNVERIFIED),
        (Requirement(email_verified=True), Identity(email_verified=True), ""),
        (Requirement(kinds=frozenset({"user"}), scopes=frozenset("a")), Identity(), CREDENTIAL_KIND),
    ],
)
def test_why_an_identity_does_not_do(requirement: Requirement, identity: Identity, reason: str) -> None:
    """All that is asked of credentials asks for good ones first."""
    assert requirement.reason(identity) == reason
    assert {reason} - {""} <= set(requirement.reasons)


@pytest.mark.parametrize(
    ("requirement", "reasons"),
    [
        (Requirement(), ()),
        (TENANT, (HEADER_MISSING,)),
        (Requirement(credentials=True), FAULTS),
        (Requirement(scopes=frozenset("a")), (*FAULTS, INSUFFICIENT_SCOPE)),
        (
            Requirement(
                kinds=frozenset({"user"}), org=True, email_verified=True, scopes=frozenset("a"), header="X-Tenant-ID"
            ),
            REASONS,
        ),
    ],
)
def test_for_what_a_requirement_can_refuse(requirement: Requirement, reasons: tuple[str, ...]) -> None:
    """So that metrics can have each at 0 before it happens."""
    assert reasons == requirement.reasons


@given(fault=st.sampled_from(FAULTS), scopes=st.frozensets(st.sampled_from("abc")))
def test_a_fault_is_told_before_all_else(fault: str, scopes: frozenset[str]) -> None:
    """Whatever else is missing, a bad credential is what the caller must mend."""
    missing = lacking(Requirement(credentials=True, scopes=scopes, org=True), identity=Identity(fault=fault))

    assert missing is not None
    assert missing.reason == fault


@pytest.mark.parametrize(
    ("headers", "issue"),
    [
        ([], "is missing"),
        ([(b"x-tenant-id", b"")], "is missing"),
        ([(b"x-tenant-id", b" \t")], "is missing"),
        ([(b"x-tenant-id", UUID[:-1])], "is not a UUID"),
        ([(b"x-tenant-id", UUID + b"\n" + UUID)], "is not a UUID"),
        ([(b"x-tenant-id", b"{" + UUID + b"}")], "is not a UUID"),
        ([(b"x-tenant-id", UUID.replace(b"-", b""))], "is not a UUID"),
        ([(b"x-tenant-id", UUID), (b"X-Tenant-ID", UUID)], "is there more than once"),
        ([(b"x-tenant-id", UUID), (b"x_tenant_id", UUID)], "is there more than once"),
        ([(b"X_Tenant-ID", UUID)], "is spelled with underscores"),
        ([(b"X-TENANT-ID", b" " + UUID.upper() + b" ")], ""),
    ],
)
def test_a_header_is_there_once_and_of_its_format(headers: list[tuple[bytes, bytes]], issue: str) -> None:
    """Which of two an application reads is not ours to know."""
    assert TENANT.header_issue(headers) == issue


def test_a_header_of_any_value() -> None:
    """Without a format, whatever is not empty does."""
    anything = Requirement(header="X-Tenant-ID")

    assert [anything.header_issue([(b"x-tenant-id", value)]) for value in (b"", b"7")] == ["is missing", ""]


def test_the_first_requirement_that_is_not_met_is_told() -> None:
    """In the order of the file."""
    both = (TENANT, Requirement(credentials=True))

    assert [each.reason for each in (lacking(*both), lacking(*reversed(both))) if each] == [HEADER_MISSING, MISSING]
    assert lacking(*both, identity=Identity(), headers=((b"x-tenant-id", UUID),)) is None


@pytest.mark.parametrize(
    ("policy", "identity", "kinds", "words"),
    [
        (None, Identity(kind="org", method="api_key"), {"user"}, ("org_api_key", "user_api_key_or_jwt")),
        (IdentityPolicy(TOKENS), Identity(kind="service", method="jwt"), {"user"}, ("service_jwt", "user_jwt")),
        (IdentityPolicy(None, KEYS), Identity(method="api_key"), {"user"}, ("api_key", "user_api_key")),
        (
            IdentityPolicy(None, KEYS),
            Identity(kind="x", method="api_key"),
            {"user", "org"},
            ("x_api_key", "org_api_key_or_user_api_key"),
        ),
    ],
)
def test_the_kinds_of_credentials(
    policy: IdentityPolicy | None, identity: Identity, kinds: set[str], words: tuple[str, str]
) -> None:
    """What came and what would do, in the words of `trace`."""
    missing = lacking(Requirement(kinds=frozenset(kinds)), identity=identity, policy=policy)

    assert missing is not None
    assert (missing.used, missing.required) == words


@pytest.mark.parametrize(
    ("policy", "fault", "challenges"),
    [
        (IdentityPolicy(None, KEYS), KEY_INVALID, ('ApiKey realm="api", header="x-api-key"',)),
        (
            IdentityPolicy(None, BY_BEARER),
            KEY_INVALID,
            ('Bearer realm="api", error="invalid_token", error_description="the key is not valid here"',),
        ),
        (IdentityPolicy(TOKENS, BY_BEARER), MISSING, ('Bearer realm="api"',)),
        (IdentityPolicy(TOKENS), UNAVAILABLE, ()),
    ],
)
def test_what_would_do(policy: IdentityPolicy, fault: str, challenges: tuple[str, ...]) -> None:
    """A challenge for each way there is; none where the fault is not the caller's."""
    missing = lacking(Requirement(credentials=True), identity=Identity(fault=fault), policy=policy)

    assert missing is not None
    assert missing.challenges == challenges


def test_a_header_by_itself_is_a_way_too() -> None:
    """A 401 has a challenge (RFC 9110 section 15.5.2), even where no credentials are known."""
    missing = lacking(TENANT, policy=IdentityPolicy())

    assert missing is not None
    assert missing.challenges == ('ApiKey realm="api", header="x-tenant-id"',)


def test_reasons_are_a_closed_set() -> None:
    """They become metric labels: few, and all of the same make."""
    assert len(set(REASONS)) == len(REASONS) == 10
    assert all(reason.replace("_", "").isalpha() and reason.islower() for reason in REASONS)


@pytest.mark.parametrize("more", [{"format": "uuid"}, {"header": "X", "format": "date"}])
def test_what_makes_no_requirement(more: dict[str, str]) -> None:
    """A format is of a header, and one that we know."""
    with pytest.raises(ValueError, match="format must be one of uuid"):
        Requirement(**more)  # type: ignore[arg-type]
