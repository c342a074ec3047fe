from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

import pytest

from ratelimiter.core.identity import (
    BEARER,
    KEY_INVALID,
    MISSING,
    PENDING,
    TOKEN_INVALID,
    UNAVAILABLE,
    ApiKeys,
    Identity,
    IdentityPolicy,
    KeyEntry,
)
from ratelimiter.core.policy import Policy
from ratelimiter.core.principal import CLIENT, Source
from ratelimiter.core.request import MalformedRequest
from ratelimiter.identity.api_keys import hash_key
from ratelimiter.identity.authenticator import Authenticator
from ratelimiter.identity.failure_budget import FAILURES_MAX, WINDOW_MS
from tests.identity.provider import KeyServer, jwk, key_set, policy, token
from tests.requesting import per_minute, request

if TYPE_CHECKING:
    from ratelimiter.core.request import Request
    from ratelimiter.identity.jwt import TokenVerifier

HEADER = Source("header", "X-API-Key")


def keys(source: Source = HEADER, secret: bytes = b"") -> ApiKeys:
    digest = hash_key(b"k1", secret)
    identity = Identity(str(source), "acme", method="api_key", verified=((str(source), "acme"),))
    return ApiKeys(source, "keys.yaml", {digest: KeyEntry(digest, identity, 0, revoked=False)})


TOKENS = policy(key_set=key_set())


def authenticator(*, principal: tuple[Source, ...] = (CLIENT,), secret: bytes = b"", **identity: Any) -> Authenticator:
    rules = (per_minute(principal=principal),)
    return Authenticator(Policy(rules, identity=IdentityPolicy(**identity), secret=secret))


def sent(key: str = "", authorization: str = "") -> Request:
    stated = (("X-API-Key", key), ("Authorization", authorization))
    return request(headers=[(name, value) for name, value in stated if value])


def bearing(value: bytes | str) -> str:
    return f"Bearer {value if isinstance(value, str) else value.decode()}"


def test_nobody() -> None:
    """No credential, or one of a scheme that is not ours."""
    both = authenticator(tokens=TOKENS, api_keys=keys())

    for each in (sent(), sent(authorization="Basic x"), sent(authorization="Bearer"), sent(authorization="Bearer ")):
        assert both.identify(each).fault == MISSING
    assert both.identify(request(headers=[("X-API-Key", "  ")])).fault == MISSING
    assert Authenticator(Policy((per_minute(),))).identify(sent("k1", bearing(token()))).fault == MISSING


@pytest.mark.parametrize(("order", "principal"), [((HEADER, BEARER), "acme"), ((BEARER, HEADER), "alice")])
def test_with_two_the_order_of_the_policy_says_which_is_meant(order: tuple[Source, ...], principal: str) -> None:
    """Both are proven; what is told is of the first."""
    identity = authenticator(principal=order, tokens=TOKENS, api_keys=keys()).identify(sent("k1", bearing(token())))

    assert identity.principal == principal
    assert set(identity.verified) == {("header:x-api-key", "acme"), ("bearer", "alice")}


def test_a_bad_one_beside_a_good_one() -> None:
    """The fault is that of the bad one; the good one is still to be charged, and names nobody."""
    both = authenticator(tokens=TOKENS, api_keys=keys())
    of_token, of_key = both.identify(sent("k1", bearing("x"))), both.identify(sent("k2", bearing(token())))
    of_both = both.identify(sent("k2", bearing("x")))

    assert (of_token.fault, of_token.principal, of_token.verified) == (
        TOKEN_INVALID,
        "",
        (("header:x-api-key", "acme"),),
    )
    assert (of_key.fault, of_key.verified) == (KEY_INVALID, (("bearer", "alice"),))
    assert of_both.verified == ()


def test_keys_and_tokens_both_as_bearer() -> None:
    """What has the two dots of a signed token is one; all else is a key."""
    both = authenticator(tokens=TOKENS, api_keys=keys(BEARER))

    assert both.identify(sent(authorization=bearing("k1"))).principal == "acme"
    assert both.identify(sent(authorization=bearing("k2"))).fault == KEY_INVALID
    assert both.identify(sent(authorization=bearing(token()))).principal == "alice"
    assert both.identify(sent(authorization=bearing("a.b.c"))).fault == TOKEN_INVALID
    assert authenticator(api_keys=keys(BEARER)).identify(sent(authorization=bearing("a.b.c"))).fault == KEY_INVALID


def test_the_secret_of_the_policy_is_that_of_its_keys() -> None:
    """With the secret, the key is good; without it, not."""
    with_secret = authenticator(secret=b"secret", api_keys=keys(secret=b"secret"))

    assert with_secret.identify(sent("k1")).principal == "acme"
    assert authenticator(api_keys=keys(secret=b"secret")).identify(sent("k1")).fault == KEY_INVALID


@pytest.mark.parametrize(
    "headers",
    [
        [("X-API-Key", "k1"), ("X-API-Key", "k1")],
        [("X_API_Key", "k1")],
        [("X-API-Key", "k" * 1025)],
        [("Authorization", "Bearer a"), ("AUTHORIZATION", "Bearer b")],
    ],
)
def test_two_meanings(headers: list[tuple[str, str]]) -> None:
    """A request that two readers could take for different callers' has no identity."""
    with pytest.raises(MalformedRequest):
        authenticator(tokens=TOKENS, api_keys=keys()).identify(request(headers=headers))


async def test_keys_that_must_be_fetched_first() -> None:
    """The first token is PENDING until they are there; the next is not, nor is any key."""
    with KeyServer() as server:
        both = authenticator(tokens=policy(keys=server.url), api_keys=keys())
        each = sent("k1", bearing(token()))
        assert both.identify(sent("k1")).principal == "acme"
        pending = both.identify(each)
        assert (pending.fault, pending.verified) == (PENDING, (("header:x-api-key", "acme"),))
        assert both.identify(each, waited=True).fault == UNAVAILABLE

        await both.refreshed()

        assert both.identify(each, waited=True).fault == ""
        assert both.identify(each).fault == ""
        assert server.asked == 1


async def test_who_goes_while_waiting_takes_nobody_along() -> None:
    """A client that disconnects does not cancel the fetch that others wait for."""
    with KeyServer() as server:
        server.drip_s = 0.001
        tokens = authenticator(tokens=policy(keys=server.url))
        assert tokens.identify(sent(authorization=bearing(token()))).fault == PENDING
        gone, waiting = asyncio.create_task(tokens.refreshed()), asyncio.create_task(tokens.refreshed())
        await asyncio.sleep(0.01)
        gone.cancel()
        await waiting

        assert tokens.identify(sent(authorization=bearing(token())), waited=True).fault == ""


def test_it_belongs_to_no_event_loop() -> None:
    """Each request may have a loop of its own, as with Starlette's test client."""
    with KeyServer() as server:
        tokens = authenticator(tokens=policy(keys=server.url))
        each = sent(authorization=bearing(token()))

        async def identified() -> str:
            if tokens.identify(each).fault == PENDING:
                await tokens.refreshed()
            return tokens.identify(each, waited=True).fault

        assert [asyncio.run(identified()) for _ in range(3)] == ["", "", ""]
        assert server.asked == 1


async def test_keys_outlive_the_policy_that_had_them_fetched() -> None:
    """A changed policy of the same provider has them at once; another provider's are fetched."""
    with KeyServer() as one, KeyServer(key_set(jwk("RSA", 1))) as other:
        each = sent(authorization=bearing(token()))
        first = authenticator(tokens=policy(keys=one.url))
        first.identify(each)
        await first.refreshed()
        same = Policy((per_minute(),), identity=IdentityPolicy(policy(keys=one.url, leeway_s=20)))
        moved = Policy((per_minute(),), identity=IdentityPolicy(policy(keys=other.url)))

        assert Authenticator(same, first).identify(each).fault == ""
        assert Authenticator(moved, first).identify(each).fault == PENDING
        assert one.asked == 1


def test_offline_nobody_is_asked() -> None:
    """What is explained offline has no keys but those of files."""
    with KeyServer() as server:
        offline = Authenticator(
            Policy((per_minute(),), identity=IdentityPolicy(policy(keys=server.url), keys())), offline=True
        )

        assert offline.identify(sent(authorization=bearing(token()))).fault == UNAVAILABLE
        assert offline.identify(sent("k1")).principal == "acme"
        assert server.asked == 0


class Counting:
    """A verifier that counts what it verifies."""

    def __init__(self, inner: TokenVerifier) -> None:
        self.inner = inner
        self.verified = 0
        self.unread = inner.unread

    def known(self, token: bytes, keys: Any, now_s: float) -> Any:
        return self.inner.known(token, keys, now_s)

    def verify(self, token: bytes, keys: Any, now_s: float) -> Any:
        self.verified += 1
        return self.inner.verify(token, keys, now_s)


def test_invented_tokens_of_one_client_are_verified_some_times_only() -> None:
    """A client over its budget is refused unread, other clients are not, and a token that was good before still is."""
    now = [1_800_000_000_000]
    tokens = policy(algorithms=("RS256",), key_set=key_set())
    made = Authenticator(Policy((per_minute(),), identity=IdentityPolicy(tokens)), clock=lambda: now[0])
    verifier = made._verifier = Counting(made._verifier)  # type: ignore[assignment]
    good = token(exp=1_900_000_000)

    def fault(credential: bytes, peer: str = "192.0.2.7") -> str:
        return made.identify(request(headers=[("Authorization", bearing(credential))], peer=peer)).fault

    assert "" == fault(good)
    for number in range(100):
        assert TOKEN_INVALID == fault(good[:-6] + b"%06d" % number)
    assert 1 + FAILURES_MAX == verifier.verified
    assert "" == fault(good)
    assert TOKEN_INVALID == fault(token(sub="bob", exp=1_900_000_000))
    assert "" == fault(token(sub="bob", exp=1_900_000_000), "192.0.2.8")
    now[0] += WINDOW_MS
    assert "" == fault(token(sub="carol", exp=1_900_000_000))
