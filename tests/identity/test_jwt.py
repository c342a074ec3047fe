"""Goal: only what the issuer has signed, for us and for now, names anybody. Method: real tokens of a real provider, and
those that others would make of them.
"""

from __future__ import annotations

import hashlib
import hmac
import json
import time
from typing import Any

import jwt
import pytest
from cryptography.hazmat.primitives import serialization
from hypothesis import given
from hypothesis import strategies as st

from ratelimiter.core.identity import JWT, TOKEN_EXPIRED, TOKEN_INVALID, Identity
from ratelimiter.identity.jwt import (
    ALGORITHMS,
    REMEMBERED_MAX,
    TRIED_MAX,
    KeySet,
    TokenVerifier,
    claim,
    key_set_of,
    parse_key_set,
)
from tests.identity.provider import (
    AUDIENCE,
    ISSUER,
    claims,
    crafted,
    jwk,
    key_set,
    kind_for,
    policy,
    private_key,
    token,
)

KEYS = parse_key_set(key_set(), ("RS256", "ES256"))
ALL = parse_key_set(key_set(*(jwk(kind) for kind in ("RSA", "P-256", "P-384", "P-521", "Ed25519"))), ALGORITHMS)


def verified(sent: bytes, keys: KeySet = KEYS, *, later_s: float = 0, **changes: Any) -> Identity:
    return TokenVerifier(policy(**changes)).verify(sent, keys, time.time() + later_s).identity


def fault(sent: bytes, keys: KeySet = KEYS, **more: Any) -> str:
    return verified(sent, keys, **more).fault


# --- good ones -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_every_algorithm_that_can_be_configured_verifies(algorithm: str) -> None:
    """A token signed with any of them is good where it is configured, and nowhere else."""
    sent = token(algorithm)
    others = tuple(name for name in ALGORITHMS if name != algorithm)

    assert verified(sent, ALL, algorithms=(algorithm,)).principal == "alice"
    assert fault(sent, ALL, algorithms=others) == TOKEN_INVALID


def test_what_a_token_says() -> None:
    """Claims become an identity; a token without further configuration is a user's."""
    sent = token(sub="alice", scope="lookup read", email_verified=True)

    assert verified(sent) == Identity(
        source="bearer",
        principal="alice",
        scopes=frozenset({"lookup", "read"}),
        kind="user",
        method=JWT,
        email_verified=True,
        verified=(("bearer", "alice"),),
    )


def test_claims_are_where_the_policy_says() -> None:
    """Names with dots are tried whole, then as paths; lists are scopes, too."""
    said: dict[str, Any] = {
        "https://x.example/plan": "gold",
        "realm": {"roles": ["a", "b", 7]},
        "client": {"id": "c1"},
        "ten": "org1",
    }
    sent = token(**said, kind="service")
    named: dict[str, Any] = {
        "plan": "https://x.example/plan",
        "scopes": "realm.roles",
        "principal": "client.id",
        "org": "ten",
    }
    identity = verified(sent, **named, kind="kind")

    assert (identity.principal, identity.plan, identity.kind, identity.org) == ("c1", "gold", "service", "org1")
    assert identity.scopes == {"a", "b"}


@pytest.mark.parametrize("kind", [None, 7, "", "Not A Kind", "a" * 33, "é"])
def test_a_kind_that_is_none_is_no_kind(kind: object) -> None:
    """Where a claim should say the kind and does not, no requirement of one is met by accident."""
    assert verified(token(kind=kind), kind="kind").kind == ""


@given(st.dictionaries(st.text(max_size=3), st.dictionaries(st.text(max_size=3), st.integers(), max_size=3)), st.text())
def test_a_claim_is_found_or_not(held: dict[str, Any], name: str) -> None:
    """Whatever the claims, looking for one raises nothing; a claim of that very name is it."""
    assert claim({**held, name: 1}, name) == (1 if name else None)
    claim(held, name)


# --- bad ones --------------------------------------------------------------------------------------------------------

NOW_S = int(time.time())
BAD = {
    "another issuer": {"iss": "https://id.example"},
    "no issuer": {"iss": None},
    "another audience": {"aud": "other"},
    "no audience": {"aud": None},
    "audiences without ours": {"aud": ["a", "b"]},
    "no end": {"exp": None},
    "an end that is text": {"exp": "soon"},
    "an end that is true": {"exp": True},
    "no principal": {"sub": None},
    "an empty principal": {"sub": ""},
    "a principal too long": {"sub": "a" * 1025},
    "a principal that is a number": {"sub": 7},
    "half a character": {"sub": "\ud800"},
    "not yet": {"nbf": NOW_S + 3600},
    "a begin that is text": {"nbf": "now"},
}


@pytest.mark.parametrize("changes", BAD.values(), ids=BAD.keys())
def test_what_is_signed_and_not_good_all_the_same(changes: dict[str, Any]) -> None:
    """A good signature under claims that are not."""
    assert fault(token(**changes)) == TOKEN_INVALID


@pytest.mark.parametrize("end", [1e400, -1, 2**41, float("nan")])
def test_ends_of_time(end: float) -> None:
    """JSON has numbers that are no times."""
    assert fault(token(exp=end)) == TOKEN_INVALID


def test_a_list_of_audiences() -> None:
    """One that is ours is enough, on either side."""
    assert verified(token(aud=["x", AUDIENCE])).principal == "alice"
    assert verified(token(aud="x"), audience=(AUDIENCE, "x")).principal == "alice"


def test_times_are_judged_with_leeway() -> None:
    """An end is the end to the second, and so much later as the policy lets clocks differ."""
    now_s = int(time.time())
    sent = token(exp=now_s + 100, nbf=now_s + 50)
    verifier = TokenVerifier(policy(leeway_s=10))

    faults = [verifier.verify(sent, KEYS, now_s + at).identity.fault for at in (39, 40, 109, 109.9, 110)]
    assert faults == [TOKEN_INVALID, "", "", "", TOKEN_EXPIRED]


def test_an_end_passes_while_a_token_is_remembered() -> None:
    """Nothing is remembered beyond the end of a token."""
    verifier = TokenVerifier(policy(leeway_s=0))
    now_s = int(time.time())
    sent = token(exp=now_s + 60)

    assert [verifier.verify(sent, KEYS, now_s + at).identity.fault for at in (0, 59, 60, 61)] == [
        *("", ""),
        *(TOKEN_EXPIRED, TOKEN_EXPIRED),
    ]


def test_expired_is_only_what_was_ever_good() -> None:
    """A token of nobody's making does not get to be called expired."""
    expired = token(exp=1)
    head, body, signature = expired.split(b".")
    forged = b".".join([head, body, signature[::-1]])

    assert (fault(expired), fault(forged)) == (TOKEN_EXPIRED, TOKEN_INVALID)


def test_signed_with_nothing() -> None:
    """`alg: none`, in any spelling, and with or without a signature."""
    for algorithm in ("none", "None", "NONE", "nOnE", "", None, 7, ["RS256"], {"RS256": 1}):
        assert fault(crafted({"alg": algorithm, "kid": "RSA-0"}, claims())) == TOKEN_INVALID
        assert fault(crafted({"alg": algorithm, "kid": "RSA-0"}, claims(), b"x")) == TOKEN_INVALID


@pytest.mark.parametrize("algorithm", ["HS256", "HS384", "HS512"])
@pytest.mark.parametrize("form", ["pem", "der", "jwk"])
def test_signed_with_what_everybody_knows(algorithm: str, form: str) -> None:
    """The classic: an HMAC with the public key as its secret."""
    public = private_key("RSA").public_key()
    formats = {"pem": serialization.Encoding.PEM, "der": serialization.Encoding.DER}
    secret = (
        json.dumps(jwk("RSA")).encode()
        if form == "jwk"
        else public.public_bytes(formats[form], serialization.PublicFormat.SubjectPublicKeyInfo)
    )
    unsigned = crafted({"alg": algorithm, "kid": "RSA-0"}, claims()).rpartition(b".")[0]
    signature = hmac.digest(secret, unsigned, getattr(hashlib, f"sha{algorithm[2:]}"))
    forged = crafted({"alg": algorithm, "kid": "RSA-0"}, claims(), signature)

    assert fault(forged) == TOKEN_INVALID
    assert fault(forged, ALL, algorithms=ALGORITHMS) == TOKEN_INVALID


def test_a_key_signs_with_its_own_algorithm_only() -> None:
    """A key that is published for one algorithm is not good for another of its type."""
    keys = parse_key_set(key_set(jwk("RSA", alg="RS256")), ALGORITHMS)

    assert fault(token("RS256"), keys, algorithms=ALGORITHMS) == ""
    assert fault(token("PS256"), keys, algorithms=ALGORITHMS) == TOKEN_INVALID
    assert fault(token("RS512"), keys, algorithms=ALGORITHMS) == TOKEN_INVALID


def test_a_key_that_the_token_brings() -> None:
    """`jwk`, `jku` and `x5c` in the head of a token name no key that we would use (RFC 8725 section 3.10)."""
    mine = jwk("RSA", 1, kid="RSA-0")
    head = {"kid": "RSA-0", "jwk": mine, "jku": "http://evil.example/", "x5u": "http://evil.example/", "x5c": ["AAAA"]}
    sent = jwt.encode(claims(), private_key("RSA", 1), algorithm="RS256", headers=head).encode()

    assert fault(sent) == TOKEN_INVALID


@pytest.mark.parametrize("head", [{"crit": ["exp"]}, {"crit": []}, {"crit": ["b64"], "b64": False}])
def test_extensions_that_must_be_understood(head: dict[str, Any]) -> None:
    """We understand none (RFC 7515 section 4.1.11)."""
    unsigned = crafted({"alg": "RS256", "kid": "RSA-0", **head}, claims()).rpartition(b".")[0]
    signature = jwt.algorithms.get_default_algorithms()["RS256"].sign(unsigned, private_key("RSA"))

    assert fault(crafted({"alg": "RS256", "kid": "RSA-0", **head}, claims(), signature)) == TOKEN_INVALID
    assert fault(crafted({"alg": "RS256", "kid": "RSA-0"}, claims(), signature)) == TOKEN_INVALID


def test_deep_heads_and_bodies() -> None:
    """Eight kilobytes of brackets, before anything was verified."""
    deep = b"[" * 5000
    head = crafted({"alg": "RS256"}, {}).split(b".")[0]
    import base64

    packed = base64.urlsafe_b64encode(b'{"alg":' + deep).rstrip(b"=")
    assert fault(b".".join([packed, head, b"AA"])) == TOKEN_INVALID
    assert fault(b".".join([head, packed, b"AA"])) == TOKEN_INVALID


GOOD = {algorithm: token(algorithm) for algorithm in ("RS256", "ES256")}


@given(st.binary(max_size=200))
def test_no_bytes_crash_or_verify(sent: bytes) -> None:
    """Whatever a caller sends is an answer of ours, and not that of a good token."""
    assert fault(sent) == TOKEN_INVALID


@given(st.sampled_from(sorted(GOOD)), st.data())
def test_no_changed_byte_verifies(algorithm: str, data: st.DataObject) -> None:
    """One byte of a good token changed, dropped or added, and it is good no more: or it still says the same."""
    good = GOOD[algorithm]
    at = data.draw(st.integers(0, len(good) - 1))
    byte = bytes((data.draw(st.integers(0, 255)),))
    changed = data.draw(
        st.sampled_from([good[:at] + byte + good[at + 1 :], good[:at] + good[at + 1 :], good[:at] + byte + good[at:]])
    )
    identity = verified(changed)

    # The last character of a part has bits that no decoder looks at, and white space parts nothing.
    assert identity.fault == TOKEN_INVALID or (identity.principal == "alice" and same_parts(changed, good))


def same_parts(one: bytes, other: bytes) -> bool:
    def decoded(sent: bytes) -> list[bytes]:
        return [jwt.utils.base64url_decode(part) for part in sent.split(b".")]

    return decoded(one) == decoded(other)


@given(
    head=st.dictionaries(
        st.sampled_from(["alg", "kid", "typ", "crit", "b64", "jku"]),
        st.one_of(
            st.none(),
            st.booleans(),
            st.integers(),
            st.text(max_size=5),
            st.sampled_from(["RS256", "none", "RSA-0"]),
            st.lists(st.text(max_size=3), max_size=2),
        ),
    ),
    body=st.dictionaries(
        st.sampled_from(["iss", "aud", "exp", "sub", "nbf"]),
        st.one_of(
            st.none(), st.integers(), st.floats(), st.text(max_size=5), st.sampled_from([ISSUER, AUDIENCE, "alice"])
        ),
    ),
    signature=st.binary(max_size=300),
)
def test_no_made_up_token_verifies(head: dict[str, Any], body: dict[str, Any], signature: bytes) -> None:
    """Parts that look right, put together without the key."""
    assert fault(crafted(head, body, signature)) == TOKEN_INVALID


# --- key sets --------------------------------------------------------------------------------------------------------


def test_rotation_is_seen_at_once() -> None:
    """With another set nothing is remembered of what the last one has verified."""
    verifier = TokenVerifier(policy())
    sent, now_s = token(), time.time()
    after = parse_key_set(key_set(jwk("RSA", 1)), ("RS256", "ES256"))

    assert verifier.verify(sent, KEYS, now_s).identity.principal == "alice"
    verification = verifier.verify(sent, after, now_s)
    assert (verification.identity.fault, verification.key_unknown) == (TOKEN_INVALID, True)
    assert verifier.verify(token(number=1), after, now_s).identity.principal == "alice"


def test_a_name_that_two_keys_share() -> None:
    """Both are tried: a kid is a hint (RFC 7517 section 4.5)."""
    keys = parse_key_set(key_set(jwk("RSA", 0, kid="k"), jwk("RSA", 1, kid="k")), ("RS256",))

    assert [fault(token(number=number, header={"kid": "k"}), keys) for number in (0, 1, 2)] == ["", "", TOKEN_INVALID]


def test_a_token_without_the_name_of_a_key() -> None:
    """It is held against the keys that fit, and no more than a few of them."""
    keys = parse_key_set(key_set(*(jwk("P-256", number) for number in range(TRIED_MAX + 2))), ("ES256",))

    faults = [fault(token("ES256", number, header={"kid": None}), keys) for number in range(TRIED_MAX + 1)]
    assert faults == [*[""] * TRIED_MAX, TOKEN_INVALID]


UNUSABLE = {
    "for encryption": jwk("RSA", use="enc"),
    "for signing": jwk("RSA", key_ops=["sign"]),
    "symmetric": {"kty": "oct", "k": "c2VjcmV0", "kid": "RSA-0", "alg": "HS256"},
    "short": jwk("short RSA"),
    "of a curve for nothing": {"kty": "EC", "crv": "secp256k1", "x": "AA", "y": "AA"},
    "not on its curve": jwk("P-256", x="AAAA"),
    "of another algorithm": jwk("RSA", alg="RSA-OAEP"),
    "not configured": jwk("P-384"),
    "named by a number": jwk("RSA", kid=7),
    "no mapping": ["RSA"],
    "empty": {},
}


@pytest.mark.parametrize("entry", UNUSABLE.values(), ids=UNUSABLE.keys())
def test_keys_that_are_passed_over(entry: Any) -> None:
    """One bad key does not spoil the set, and is not used."""
    keys = parse_key_set(key_set(entry, jwk("P-256")), ("RS256", "ES256"))

    assert [key.kid for key in keys.keys] == ["P-256-0"]
    with pytest.raises(ValueError, match="without a public key for RS256, ES256"):
        parse_key_set(key_set(entry), ("RS256", "ES256"))


@pytest.mark.parametrize("kind", ["RSA", "P-256", "Ed25519"])
def test_a_private_key_that_was_published(kind: str) -> None:
    """It is used as the public key that it holds; whose secret it was is somebody else's trouble."""
    keys = parse_key_set(key_set(jwk(kind, private=True)), ALGORITHMS)
    algorithm = next(name for name in ALGORITHMS if kind_for(name) == kind)

    assert not hasattr(keys.keys[0].key, "private_bytes")
    assert fault(token(algorithm), keys, algorithms=ALGORITHMS) == ""


@pytest.mark.parametrize("data", [b"", b"x", b"[]", b"{}", b'{"keys": {}}', b'"keys"', b"\xff", b"[" * 100_000])
def test_what_is_no_key_set(data: bytes) -> None:
    """It says so, whatever it is."""
    with pytest.raises(ValueError, match="not a JWK Set"):
        parse_key_set(data, ("RS256",))


def test_memory_is_bounded() -> None:
    """More tokens than are remembered are all judged rightly, and bad ones are not remembered at all."""
    verifier = TokenVerifier(policy())
    now_s = time.time()
    for number in range(50):
        verifier.verify(crafted({"alg": "RS256", "kid": "RSA-0"}, {"n": number}, b"x"), KEYS, now_s)
    assert len(verifier._remembered) == 0

    verification = verifier.verify(GOOD["RS256"], KEYS, now_s)
    verifier._remembered.update({number.to_bytes(16, "big"): verification for number in range(REMEMBERED_MAX)})
    assert verifier.verify(token(sub="bob"), KEYS, now_s).identity.principal == "bob"
    assert len(verifier._remembered) <= REMEMBERED_MAX


SECRET = b"0123456789abcdef" * 4


def shared(algorithm: str = "HS256", secret: bytes = SECRET, **changes: Any) -> bytes:
    """Return a token that is signed with a shared secret."""
    return jwt.encode(claims(**changes), secret, algorithm=algorithm).encode()


def symmetric(*algorithms: str) -> tuple[TokenVerifier, KeySet]:
    """Return a verifier for tokens with a shared secret, and its key set."""
    tokens = policy(algorithms=algorithms or ("HS256",), keys="secret", key_set=SECRET)
    return TokenVerifier(tokens), key_set_of(tokens)


@pytest.mark.parametrize("algorithm", ["HS256", "HS384", "HS512"])
def test_a_shared_secret_verifies_tokens(algorithm: str) -> None:
    """A token of the secret is good, whatever key id it names; with another secret or algorithm it is not."""
    verifier, keys = symmetric(algorithm)
    now_s = time.time()
    named = jwt.encode(claims(), SECRET, algorithm=algorithm, headers={"kid": "k1"}).encode()
    other = "HS512" if algorithm == "HS256" else "HS256"

    assert ("alice", "") == verifier.verify(shared(algorithm), keys, now_s).identity[1::7]
    assert "alice" == verifier.verify(named, keys, now_s).identity.principal
    assert TOKEN_INVALID == verifier.verify(shared(algorithm, b"x" * 64), keys, now_s).identity.fault
    assert TOKEN_INVALID == verifier.verify(shared(other), keys, now_s).identity.fault


def test_a_secret_and_public_keys_are_never_mixed() -> None:
    """A token signed with a public key as the secret is refused by public keys, one of a private key by the secret."""
    verifier, keys = symmetric("HS256", "HS384", "HS512")

    assert TOKEN_INVALID == verifier.verify(token(), keys, time.time()).identity.fault
    with pytest.raises(ValueError, match="which is no secret"):
        key_set_of(policy(algorithms=("HS256",), key_set=key_set()))


@pytest.mark.parametrize(("algorithm", "least"), [("HS256", 32), ("HS384", 48), ("HS512", 64)])
def test_a_secret_has_the_length_of_its_hash(algorithm: str, least: int) -> None:
    """RFC 7518 section 3.2: a shorter secret is refused when the policy is loaded."""
    key_set_of(policy(algorithms=(algorithm,), key_set=b"x" * least))
    with pytest.raises(ValueError, match=f"write at least {least} random bytes"):
        key_set_of(policy(algorithms=(algorithm,), key_set=b"x" * (least - 1)))


def test_an_expired_token_is_verified_once() -> None:
    """It stays expired, so its repetition costs a look-up."""
    keys = parse_key_set(key_set(), ("RS256",))
    verifier = TokenVerifier(policy(algorithms=("RS256",)))
    stale = token(exp=1)

    assert TOKEN_EXPIRED == verifier.verify(stale, keys, time.time()).identity.fault
    assert TOKEN_EXPIRED == verifier.known(stale, keys, time.time()).identity.fault  # type: ignore[union-attr]
