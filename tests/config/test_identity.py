"""Goal: who proves who he is gets his own limit, and nobody else does. Method: real tokens and keys through the
middleware and the sidecar, on the embedded store and a real Redis; what the client is told and what the upstream sees.
"""

from __future__ import annotations

import asyncio
import json
import logging
import secrets
from contextlib import asynccontextmanager
from dataclasses import replace
from typing import TYPE_CHECKING, Any, NamedTuple

import pytest

from ratelimiter.asgi.middleware import RateLimitMiddleware
from ratelimiter.asgi.request_state import SCOPE_KEY
from ratelimiter.config import loader
from ratelimiter.core.identity import UNAVAILABLE
from ratelimiter.core.overrides import Override, PlanChoice
from ratelimiter.core.planner import Planner
from ratelimiter.core.quota import Quota, Slots
from ratelimiter.core.requirement import REASONS
from ratelimiter.core.rule import Rule
from ratelimiter.identity.api_keys import hash_key
from ratelimiter.stores.factory import store_for
from tests.asgi_client import http_scope, send_request
from tests.identity.provider import AUDIENCE, ISSUER, KeyServer, jwk, key_set, refusing_url, token
from tests.proxy.wire import Upstream, sidecar
from tests.stores.redis_server import RedisServer

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
    from pathlib import Path

    from ratelimiter.core.policy import Policy

KEYS: dict[str, dict[str, Any]] = {
    "user-key": {"principal": "ulla", "plan": "gold", "scopes": ["lookup"], "kind": "user", "org": "acme"},
    "org-key": {"principal": "acme", "kind": "org"},
    "second-key": {"principal": "ulla"},
    "revoked-key": {"principal": "ulla", "revoked": True},
    "expired-key": {"principal": "ulla", "expires": "2020-01-01T00:00:00Z"},
    "odd-key": {"principal": "Zoë %0d, \u202e", "kind": "user"},
}
LIMIT = 5


class Got(NamedTuple):
    """What came of one request."""

    status: int
    headers: list[tuple[str, str]]
    body: bytes
    seen: list[tuple[str, str]] | None  # what the upstream saw of it; None when it saw nothing

    def header(self, name: str) -> list[str]:
        return [value for key, value in self.headers if key.lower() == name]

    def told(self, name: str) -> list[str]:
        """What the upstream saw under *name*, or what it might take for that."""
        assert self.seen is not None
        return [value for key, value in self.seen if key.lower().replace("_", "-") == name]

    @property
    def remaining(self) -> int:
        (value,) = self.header("x-ratelimit-remaining")
        return int(value)


Header = tuple[str, str | bytes]
if TYPE_CHECKING:
    Ask = Callable[..., Awaitable[Got]]


@asynccontextmanager
async def by_middleware(policy: Path | Policy) -> AsyncIterator[Ask]:
    seen: list[list[tuple[str, str]]] = []

    async def app(scope: Any, receive: Any, send: Any) -> None:
        seen.append([(name.decode(), value.decode("latin-1")) for name, value in scope["headers"]])
        await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"2")]})
        await send({"type": "http.response.body", "body": b"ok"})

    limited = RateLimitMiddleware(app, config=policy)

    async def ask(*headers: Header, method: str = "GET", target: str = "/") -> Got:
        before = len(seen)
        scope = http_scope(method, target, client=("127.0.0.1", 1))
        scope["headers"] += [(n.lower().encode(), v if isinstance(v, bytes) else v.encode()) for n, v in headers]
        answer = await send_request(limited, scope)
        pairs = [(name.decode(), value.decode()) for name, value in answer.start["headers"]]
        return Got(answer.status, pairs, answer.body, seen[-1] if len(seen) > before else None)

    try:
        yield ask
    finally:
        await limited.limiter.store.close()


@asynccontextmanager
async def by_sidecar(policy: Path | Policy) -> AsyncIterator[Ask]:
    upstream = Upstream()
    store = store_for(loader.build(config=policy, environ={}))
    async with upstream.serving(), sidecar(upstream, limit=None, config=policy, store=store) as proxy:

        async def ask(*headers: Header, method: str = "GET", target: str = "/") -> Got:
            before = len(upstream.seen)
            lines = [f"{method} {target} HTTP/1.1".encode(), b"Host: api.example"]
            lines += [n.encode() + b": " + (v if isinstance(v, bytes) else v.encode()) for n, v in headers]
            async with proxy.client() as client:
                answer = await client.exchange(b"\r\n".join([*lines, b"", b""]))
            seen = [_pair(line) for line in upstream.seen[-1].lines] if len(upstream.seen) > before else None
            return Got(answer.status, [_pair(line) for line in answer.lines], answer.body, seen)

        yield ask
    await store.close()


def _pair(line: str) -> tuple[str, str]:
    name, _, value = line.partition(":")
    return name, value.strip()


@pytest.fixture(scope="module")
def redis() -> Iterator[RedisServer]:
    with RedisServer() as server:
        yield server


@pytest.fixture(params=["memory", "redis"])
def store(request: pytest.FixtureRequest) -> str:
    if request.param == "memory":
        return "memory://"
    return f"redis://127.0.0.1:{request.getfixturevalue('redis').port}/0"


@pytest.fixture(params=[by_middleware, by_sidecar], ids=["middleware", "sidecar"])
def way(request: pytest.FixtureRequest) -> Any:
    return request.param


def write_keys(folder: Path, keys: dict[str, dict[str, Any]] = KEYS, secret: bytes = b"") -> None:
    entries = [{"hash": hash_key(key.encode(), secret).hex(), **said} for key, said in keys.items()]
    (folder / "keys.yaml").write_text(json.dumps({"keys": entries}))


def write_policy(folder: Path, store: str = "memory://", **changes: Any) -> Path:
    """A policy with both ways to identify a caller, unless *changes* say otherwise."""
    write_keys(folder)
    (folder / "jwks.json").write_bytes(key_set())
    identity = {
        "jwt": {"issuer": ISSUER, "audience": AUDIENCE, "keys": "./jwks.json", "plan": "plan"},
        "api_keys": {"file": "./keys.yaml"},
        "tell_upstream": {"principal": "X-Auth-Principal", "plan": "X-Auth-Plan", "scopes": "X-Auth-Scopes"},
    }
    document = {
        # A name of its own keeps the keys of one test apart from those of another in the same Redis.
        "name": f"p{secrets.token_hex(4)}",
        "store": store,
        "principal": ["header:X-API-Key", "bearer", "client"],
        "decision_timeout": "2s",
        "identity": identity,
        "rules": [{"name": "each", "limit": f"{LIMIT}/hour"}],
    }
    file = folder / "policy.yaml"
    file.write_text(json.dumps({**document, **changes}))
    return file


def bearer(**changes: Any) -> Header:
    return ("Authorization", b"Bearer " + token(**changes))


def key(value: str) -> Header:
    return ("X-API-Key", value)


# --- who is charged --------------------------------------------------------------------------------------------------


async def test_a_user_is_one_principal_whatever_the_token(tmp_path: Path, store: str, way: Any) -> None:
    """Every new token of one user counts on; another user begins anew."""
    async with way(write_policy(tmp_path, store)) as ask:
        of_alice = [await ask(bearer(jti=str(number))) for number in range(LIMIT + 1)]
        of_bob = await ask(bearer(sub="bob"))

    assert [got.status for got in of_alice] == [*[200] * LIMIT, 429]
    assert (of_bob.status, of_bob.remaining) == (200, LIMIT - 1)


async def test_a_principal_is_one_whatever_the_key(tmp_path: Path, store: str, way: Any) -> None:
    """Two keys of one principal count together; a key and a token do not, even of the same name."""
    async with way(write_policy(tmp_path, store)) as ask:
        left = [(await ask(key(value))).remaining for value in ("user-key", "second-key", "org-key")]
        by_token = await ask(bearer(sub="ulla"))

    assert left == [LIMIT - 1, LIMIT - 2, LIMIT - 1]
    assert by_token.remaining == LIMIT - 1


ROTATING: dict[str, Callable[[int], list[Header]]] = {
    "keys": lambda n: [key(f"guess-{n}")],
    "tokens of nobody": lambda n: [("Authorization", f"Bearer {n}.{n}.{n}")],
    "tokens of another issuer": lambda n: [bearer(iss=f"https://{n}.example/")],
    "tokens that expired": lambda n: [bearer(exp=n + 1)],
    "invented names of keys": lambda n: [bearer(header={"kid": f"invented-{n}"})],
    "schemes": lambda n: [("Authorization", f"Basic {n}")],
    "keys that were good": lambda n: [key(("revoked-key", "expired-key")[n % 2])],
    "keys in lines of their own case": lambda n: [("x-API-key" if n % 2 else "X-Api-Key", f"guess-{n}")],
    "both": lambda n: [key(f"guess-{n}"), bearer(aud=f"guess-{n}")],
}


@pytest.mark.parametrize("rotating", ROTATING.values(), ids=ROTATING.keys())
async def test_rotating_bad_credentials_meets_the_limit_of_the_address(
    tmp_path: Path, store: str, way: Any, rotating: Callable[[int], list[Header]]
) -> None:
    """Whatever is invented, it is charged to the address, and told 401 as long as that has room; then 429."""
    policy = write_policy(tmp_path, store, require=[{"credentials": True}])
    async with way(policy) as ask:
        got = [await ask(*rotating(number)) for number in range(LIMIT + 3)]
        anonymous = await ask()
        honest = await ask(bearer())

    assert [each.status for each in got] == [*[401] * LIMIT, *[429] * 3]
    assert [each.remaining for each in got[:LIMIT]] == list(range(LIMIT - 1, -1, -1))
    assert anonymous.status == 429
    assert (honest.status, honest.remaining) == (200, LIMIT - 1)
    assert all(each.seen is None for each in got)


async def test_a_bad_credential_beside_a_good_one(tmp_path: Path, store: str, way: Any) -> None:
    """The good one is charged, so adding rubbish to a key is no way around its limit; and it is told of the rubbish."""
    async with way(write_policy(tmp_path, store)) as ask:
        got = [await ask(key("user-key"), ("Authorization", f"Bearer x.y.{n}")) for n in range(LIMIT + 1)]
    assert [each.status for each in got] == [*[200] * LIMIT, 429]
    assert got[0].told("x-auth-principal") == []

    folder = tmp_path / "strict"
    folder.mkdir()
    async with way(write_policy(folder, store, require=[{"credentials": True}], dialect="intrace")) as ask:
        got = [await ask(key("user-key"), ("Authorization", "Bearer x.y.z"))]
        got += [await ask(key("wrong"), bearer())]
        both = await ask(key("user-key"), bearer())
    codes = [json.loads(each.body)["error"]["code"] for each in got]
    assert [each.status for each in got] == [401, 401]
    assert codes == ["token_invalid", "api_key_invalid"]
    assert (both.status, both.remaining, both.told("x-auth-principal")) == (200, LIMIT - 2, ["ulla"])


@pytest.mark.parametrize(
    "spelling", ["Bearer {}", "bearer {}", "BEARER {}", "Bearer\t{}", "bEaReR   {}", "Bearer {}  "]
)
async def test_spellings_of_the_scheme(tmp_path: Path, way: Any, spelling: str) -> None:
    """A scheme has no case (RFC 9110 section 11.1), and any white space parts it from the token."""
    policy = write_policy(tmp_path, require=[{"credentials": True}])
    async with way(policy) as ask:
        got = await ask(("Authorization", spelling.format(token().decode())))

    assert (got.status, got.told("x-auth-principal")) == (200, ["alice"])


@pytest.mark.parametrize(
    "headers",
    [
        [("Authorization", "Bearer a.b.c"), ("Authorization", "Bearer d.e.f")],
        [("Authorization", "Basic x"), ("authorization", "Bearer a.b.c")],
        [key("user-key"), key("org-key")],
        [key("user-key"), key("user-key")],
        [key("k" * 1025)],
        [("Authorization", "Bearer " + "x" * 8193)],
    ],
    ids=["two tokens", "two schemes", "two keys", "one key twice", "a long key", "a long token"],
)
async def test_credentials_of_two_meanings_are_refused(tmp_path: Path, way: Any, headers: list[Header]) -> None:
    """Which one the upstream reads is not ours to know: 400, and the upstream hears nothing."""
    async with way(write_policy(tmp_path)) as ask:
        got = await ask(*headers)

    assert (got.status, got.seen) == (400, None)


async def test_underscore_twins(tmp_path: Path, way: Any) -> None:
    """`X_API_Key` is no key, and nobody behind us reads it as one."""
    policy = write_policy(tmp_path, require=[{"credentials": True}])
    async with way(policy) as ask:
        alone = await ask(("X_API_Key", "user-key"))
        beside = await ask(("X_API_Key", "org-key"), key("user-key"))

    assert alone.status in (400, 401)
    assert beside.status == 400 or beside.told("x-api-key") == ["user-key"]


# --- what is told ----------------------------------------------------------------------------------------------------

FORGED = [
    *[(name, "admin") for name in ("X-Auth-Principal", "x-auth-principal", "X-AUTH-PRINCIPAL")],
    *[(name, "admin") for name in ("X_Auth_Principal", "X-Auth_Principal", "x_auth-principal", "X-Auth-Plan")],
    ("X-Auth-Scopes", "root"),
    ("X_Auth_Scopes", "root"),
]


@pytest.mark.parametrize(
    ("credentials", "told"),
    [
        ([key("user-key")], ("ulla", "gold", "lookup")),
        ([key("org-key")], ("acme", None, None)),
        ([bearer(plan="basic", scope="b a")], ("alice", "basic", "a b")),
        ([], (None, None, None)),
        ([key("wrong")], (None, None, None)),
    ],
    ids=["user", "org", "token", "nobody", "wrong"],
)
async def test_nobody_forges_what_the_upstream_is_told(
    tmp_path: Path, way: Any, credentials: list[Header], told: tuple[str | None, ...]
) -> None:
    """In whatever spelling a client sends them, the upstream sees these headers from us, or not at all."""
    async with way(write_policy(tmp_path)) as ask:
        got = await ask(*FORGED, *credentials)

    names = ("x-auth-principal", "x-auth-plan", "x-auth-scopes")
    assert [got.told(name) for name in names] == [[] if value is None else [value] for value in told]


@pytest.mark.parametrize(
    ("principal", "told"),
    [
        ("Zoë", "Zo%C3%AB"),
        ("a\r\nX-Auth-Plan: gold", "a%0D%0AX-Auth-Plan:%20gold"),
        ("100%", "100%25"),
        ("\u0000\u007f", "%00%7F"),
        (" a ", "%20a%20"),
        ("alice@example.com|a/b+c", "alice@example.com|a/b+c"),
    ],
)
async def test_what_is_told_is_safe_in_a_header(tmp_path: Path, way: Any, principal: str, told: str) -> None:
    """What an issuer signed may be anything; what leaves is visible ASCII that can be read back."""
    async with way(write_policy(tmp_path)) as ask:
        got = await ask(bearer(sub=principal))

    assert (got.told("x-auth-principal"), got.told("x-auth-plan")) == ([told], [])


async def test_the_application_learns_of_the_identity(tmp_path: Path) -> None:
    """From the exchange in the scope, as it is."""
    seen: list[Any] = []

    async def app(scope: Any, receive: Any, send: Any) -> None:
        seen.append(scope[SCOPE_KEY].identity)
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": b""})

    limited = RateLimitMiddleware(app, config=write_policy(tmp_path))
    inner = RateLimitMiddleware(limited, limit="100/minute")  # which identifies nobody
    await send_request(inner, http_scope(headers={"X-API-Key": "odd-key"}))
    await send_request(limited, http_scope())

    assert [(identity.principal, identity.fault) for identity in seen] == [
        ("Zoë %0d, \u202e", ""),
        ("", "credentials_missing"),
    ]


async def test_nobody_is_named(tmp_path: Path, store: str, way: Any, caplog: pytest.LogCaptureFixture) -> None:
    """No principal, key or token is in an answer, a log or a key of the store (8)."""
    caplog.set_level(logging.DEBUG)
    policy = write_policy(tmp_path, store, require=[{"credentials": True, "credential": "user", "scopes": ["lookup"]}])
    names = ["ulla", "acme", "user-key", "org-key", "Zo", "marvin"]
    async with way(policy) as ask:
        got = [await ask(key(each)) for each in KEYS]
        sent = bearer(sub="marvin", scope="lookup")
        got += [await ask(sent) for _ in range(LIMIT + 1)]
        got += [await ask(key("marvin-wrong"))]
    told = b"\n".join([each.body + repr(each.headers).encode() for each in got]).decode()
    hits = [record.getMessage() for record in caplog.records]

    assert {200, 401, 403, 429} == {each.status for each in got}
    for name in (*names, sent[1][7:40].decode() if isinstance(sent[1], bytes) else ""):
        assert name not in told
        assert not [line for line in hits if name in line]


# --- what is required ------------------------------------------------------------------------------------------------

REQUIRED = {
    "credentials": {"credentials": True},
    "scope": {"scopes": ["lookup"]},
    "user": {"credential": "user"},
    "org": {"org": True},
    "email": {"email_verified": True},
    "tenant": {"header": "X-Tenant-ID", "format": "uuid"},
}
UUID = "7d3f6b0e-4c1a-4f5e-9b57-2d1c8a9e0f36"
# Dialect, requirement, headers: status, and what of the body.
Documented = tuple[str, str, list[Header], int, dict[str, Any]]
DOCUMENTED: list[Documented] = [
    ("trace", "credentials", [], 401, {"error": "authentication_required"}),
    ("trace", "credentials", [key("x")], 401, {"error": "invalid_api_key", "message": "Invalid or revoked API key"}),
    ("trace", "credentials", [key("revoked-key")], 401, {"error": "invalid_api_key"}),
    (
        "trace",
        "user",
        [key("org-key")],
        403,
        {
            "error": "user_credential_required",
            "credential_type_used": "org_api_key",
            "credential_type_required": "user_api_key_or_jwt",
        },
    ),
    ("trace", "user", [key("user-key")], 200, {}),
    ("trace", "user", [bearer()], 200, {}),
    ("trace", "org", [key("org-key")], 403, {"error": "key_missing_org_association"}),
    ("trace", "org", [key("user-key")], 200, {}),
    ("trace", "email", [key("user-key")], 403, {"error": "email_verification_required"}),
    ("trace", "email", [bearer(email_verified=True)], 200, {}),
    ("trace", "email", [bearer(email_verified="true")], 403, {"error": "email_verification_required"}),
    ("tracefinance", "credentials", [], 401, {"code": "UNAUTHORIZED"}),
    ("tracefinance-v1", "credentials", [key("x")], 401, {"code": "UNAUTHORIZED"}),
    ("tracefinance", "tenant", [], 400, {"code": "MISSING_REQUIRED_HEADER"}),
    ("sentinel", "tenant", [], 401, {"error": "Unauthorized", "message": "missing tenant ID", "status": 401}),
    ("sentinel", "tenant", [("X-Tenant-ID", "")], 401, {"message": "missing tenant ID"}),
    ("sentinel", "tenant", [("X-Tenant-ID", "7")], 401, {"message": "missing tenant ID"}),
    ("sentinel", "tenant", [("X-Tenant-ID", UUID + "0")], 401, {"message": "missing tenant ID"}),
    ("sentinel", "tenant", [("X-Tenant-ID", UUID), ("x-tenant-id", UUID)], 401, {"message": "missing tenant ID"}),
    ("sentinel", "tenant", [("X-Tenant-ID", UUID)], 200, {}),
    ("sentinel", "tenant", [("x-tenant-id", UUID.upper())], 200, {}),
    ("sentinel", "credentials", [], 401, {"error": "Unauthorized", "status": 401}),
    ("sentinel", "scope", [key("org-key")], 403, {"error": "Forbidden", "status": 403}),
    ("problem", "scope", [key("org-key")], 403, {"title": "Forbidden"}),
    ("problem", "credentials", [], 401, {"title": "Unauthorized", "detail": "No credentials were given."}),
]


@pytest.mark.parametrize("documented", DOCUMENTED)
async def test_what_is_required_is_answered_as_documented(tmp_path: Path, way: Any, documented: Documented) -> None:
    """Each code under its own cause."""
    dialect, required, headers, status, body = documented
    policy = write_policy(tmp_path, dialect=dialect, require=[REQUIRED[required]])
    async with way(policy) as ask:
        got = await ask(*headers)

    assert got.status == status
    assert body == ({} if status == 200 else {name: json.loads(got.body)[name] for name in body})
    assert got.header("x-ratelimit-remaining") == [str(LIMIT - 1)]


@pytest.mark.parametrize(
    ("headers", "status", "code"),
    [
        ([], 401, "credentials_missing"),
        ([bearer(exp=1)], 401, "token_expired"),
        ([bearer(aud="other")], 401, "token_invalid"),
        ([key("x")], 401, "api_key_invalid"),
        ([key("org-key")], 403, "insufficient_scope"),
    ],
)
async def test_intrace(tmp_path: Path, way: Any, headers: list[Header], status: int, code: str) -> None:
    """The five documented codes, each with its documented message."""
    messages = {
        "credentials_missing": "No Authorization header or X-API-Key header was provided.",
        "token_expired": "The Bearer JWT has expired.",
        "token_invalid": "The Bearer JWT signature or claims are invalid.",
        "api_key_invalid": "The API key does not exist or has been revoked.",
        "insufficient_scope": "The principal's role does not grant access to this endpoint.",
    }
    policy = write_policy(tmp_path, dialect="intrace", require=[{"scopes": ["lookup"]}])
    async with way(policy) as ask:
        got = await ask(*headers)

    assert got.status == status
    assert json.loads(got.body)["error"] == {"code": code, "message": messages[code], "details": []}


@pytest.mark.parametrize(
    ("headers", "told"),
    [
        ([], 'Bearer realm="shop"'),
        ([key("x")], 'Bearer realm="shop"'),
        ([bearer(exp=1)], 'Bearer realm="shop", error="invalid_token", error_description="the token has expired"'),
        (
            [bearer(iss="x")],
            'Bearer realm="shop", error="invalid_token", error_description="the token is not valid here"',
        ),
        ([bearer()], 'Bearer realm="shop", error="insufficient_scope", scope="lookup"'),
    ],
)
async def test_what_would_do(tmp_path: Path, way: Any, headers: list[Header], told: str) -> None:
    """WWW-Authenticate says it (RFC 9110 section 11.6.1, RFC 6750 section 3); without credentials there is no error."""
    policy = write_policy(tmp_path, name="shop", require=[{"scopes": ["lookup"]}])
    async with way(policy) as ask:
        got = await ask(*headers)
    expected = [told] if got.status == 403 else [told, 'ApiKey realm="shop", header="x-api-key"']

    assert got.header("www-authenticate") == expected


async def test_requirements_match_as_rules_do(tmp_path: Path, way: Any) -> None:
    """By method and by path, in whatever spelling the path comes; what none is about passes."""
    require = [
        {"match": {"methods": ["POST"], "path": "/v1/admin/**", "except": "/v1/admin/ping"}, "credentials": True}
    ]
    async with way(write_policy(tmp_path, require=require, rules=[{"limit": "1000/hour"}])) as ask:
        asked = ["/v1/admin", "/v1//admin/x", "/v1/%61dmin/x", "/v1/x/../admin/x", "/v1/admin/ping", "/v1/other"]
        statuses = [(await ask(method="POST", target=target)).status for target in asked]
        reading = await ask(target="/v1/admin/x")

    assert statuses == [401, 401, 401, 401, 200, 200]
    assert reading.status == 200


async def test_no_rule_and_still_a_requirement(tmp_path: Path, way: Any) -> None:
    """What no rule counts is not for everybody."""
    rules = [{"limit": "1/hour", "match": {"path": "/other"}}]
    async with way(write_policy(tmp_path, require=[{"credentials": True}], rules=rules)) as ask:
        statuses = [(await ask(*headers)).status for headers in ([], [key("user-key")], [key("user-key")])]

    assert statuses == [401, 200, 200]


# --- providers of keys -----------------------------------------------------------------------------------------------


def write_fetching(folder: Path, url: str, **jwt: Any) -> Path:
    section = {"issuer": ISSUER, "audience": AUDIENCE, "keys": url, "timeout": "300ms", **jwt}
    return write_policy(
        folder, identity={"jwt": section}, require=[{"credentials": True}], rules=[{"limit": "99/hour"}]
    )


async def test_keys_are_fetched_and_rotated(tmp_path: Path, way: Any) -> None:
    """The first token has them fetched; one of a key that nobody has seen has them fetched anew, at most so often."""
    with KeyServer() as server:
        async with way(write_fetching(tmp_path, server.url, cooldown="1s")) as ask:
            first = await asyncio.gather(*(ask(bearer()) for _ in range(10)))
            assert server.asked == 1
            server.body = key_set(jwk("RSA", 1))
            early = await ask(bearer(number=1))
            invented = [await ask(bearer(header={"kid": f"k{n}"})) for n in range(20)]
            assert server.asked == 1
            await asyncio.sleep(1)
            rotated = await ask(bearer(number=1))
            old = await ask(bearer())

    assert [got.status for got in first] == [200] * 10
    assert [got.status for got in (early, *invented)] == [401] * 21
    assert (rotated.status, old.status) == (200, 401)
    assert server.asked == 2


@pytest.mark.parametrize("how", ["down", "silent", "nonsense"])
async def test_a_provider_that_never_was_there(tmp_path: Path, way: Any, how: str) -> None:
    """Nobody can say whether a token is good: 503 with Retry-After, and soon; who brings none is told 401 as ever."""
    with KeyServer(b"nonsense") as server:
        server.silent = how == "silent"
        url = refusing_url() if how == "down" else server.url
        async with way(write_fetching(tmp_path, url)) as ask:
            got = [await asyncio.wait_for(ask(bearer()), 5) for _ in range(3)]
            without = await ask()

    assert [(each.status, each.header("retry-after")) for each in got] == [(503, ["5"])] * 3
    assert without.status == 401


async def test_a_provider_that_goes_down(tmp_path: Path, way: Any) -> None:
    """What it has signed with keys that we have is good on."""
    with KeyServer() as server:
        async with way(write_fetching(tmp_path, server.url, refresh="1s", keep="1h")) as ask:
            before = await ask(bearer())
            server.stop()
            await asyncio.sleep(1.1)
            after = [await ask(bearer(sub=f"user-{n}")) for n in range(3)]

    assert [got.status for got in (before, *after)] == [200] * 4


# --- changes while it runs -------------------------------------------------------------------------------------------


async def eventually(ask: Ask, status: int, *headers: Header) -> Got:
    for _ in range(200):
        got = await ask(*headers)
        if got.status == status:
            return got
        await asyncio.sleep(0.05)
    raise AssertionError(got)


async def test_a_key_is_revoked_under_a_running_application(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """The middleware sees a changed key file within two looks; a bad one changes nothing, and counters stay."""
    policy = write_policy(tmp_path, require=[{"credentials": True}], rules=[{"limit": "1000/hour"}])
    async with by_middleware(policy) as ask:
        first = await ask(key("user-key"))
        (tmp_path / "keys.yaml").write_text("keys: nonsense")
        for _ in range(100):
            if "nonsense" in caplog.text:
                break
            await ask(key("user-key"))
            await asyncio.sleep(0.05)
        kept = await ask(key("user-key"))
        write_keys(tmp_path, {"new-key": {"principal": "ulla"}})
        await eventually(ask, 401, key("user-key"))
        new = await ask(key("new-key"))

    assert (first.status, first.remaining) == (200, 999)
    assert "keys.yaml:1:7: keys: 'nonsense' is not a list of keys" in caplog.text
    assert kept.status == 200
    assert (new.status, new.remaining < kept.remaining) == (200, True)


async def test_who_wants_no_reload_gets_none(tmp_path: Path) -> None:
    """With `reload=False` nothing looks at the file again."""

    async def app(scope: Any, receive: Any, send: Any) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": b""})

    before = asyncio.all_tasks()
    limited = RateLimitMiddleware(app, config=write_policy(tmp_path), reload=False)
    await send_request(limited, http_scope())
    assert asyncio.all_tasks() == before

    limited = RateLimitMiddleware(app, config=write_policy(tmp_path))
    await send_request(limited, http_scope())
    assert len(asyncio.all_tasks() - before) == 1


def test_every_reason_was_seen() -> None:
    """The tables above name every reason but those that only an outage gives."""
    words = {"credentials_missing", "token_expired", "token_invalid", "api_key_invalid", "insufficient_scope"}
    words |= {"credential_kind", "org_missing", "email_unverified", "header_missing"}

    assert set(REASONS) == words | {UNAVAILABLE}


# --- with what else there is -----------------------------------------------------------------------------------------


async def test_refusals_of_ours_are_responses_to_count(tmp_path: Path, store: str, way: Any) -> None:
    """A rule that counts 401s counts ours, so guessing keys is limited by itself; who is known is not."""
    rules = [{"name": "guesses", "limit": "3/hour", "count": [401], "principal": "client"}]
    async with way(write_policy(tmp_path, store, require=[{"credentials": True}], rules=rules)) as ask:
        statuses = []
        for headers in ([key("user-key")], [key("x1")], [key("x2")], [key("user-key")], [key("x3")], [key("x4")]):
            statuses.append((await ask(*headers)).status)
            await asyncio.sleep(0.05)  # what is given back goes to the store by itself

    assert statuses == [200, 401, 401, 200, 401, 429]


async def test_a_refusal_holds_no_slot(tmp_path: Path, store: str, way: Any) -> None:
    """Who is told 401 has given back his place by the next request."""
    policy = loader.load(write_policy(tmp_path, store, require=[{"credentials": True}]))
    async with way(replace(policy, rules=(Rule("slots", Slots(1)),))) as ask:
        statuses = []
        for _ in range(3):
            statuses.append((await ask()).status)
            await asyncio.sleep(0.05)
        statuses.append((await ask(key("user-key"))).status)

    assert statuses == [401, 401, 401, 200]


async def test_websockets_are_asked_too(tmp_path: Path) -> None:
    """A handshake without credentials is denied; one with them is told on as any request."""
    seen: list[Any] = []

    async def app(scope: Any, receive: Any, send: Any) -> None:
        seen.append([value for name, value in scope["headers"] if name == b"x-auth-principal"])
        await send({"type": "websocket.accept", "headers": []})

    limited = RateLimitMiddleware(app, config=write_policy(tmp_path, require=[{"credentials": True}]))
    scope: dict[str, Any] = {"type": "websocket", "extensions": {"websocket.http.response": {}}}
    connect = [{"type": "websocket.connect"}]
    without = await send_request(limited, http_scope(**scope), list(connect))
    good = await send_request(limited, http_scope(headers={"X-API-Key": "user-key"}, **scope), list(connect))

    assert without.status == 401
    assert [message["type"] for message in good.messages] == ["websocket.accept"]
    assert seen == [[b"ulla"]]


async def test_plans_of_credentials(tmp_path: Path, store: str, way: Any) -> None:
    """The plan of a key and of a claim decides which limit applies; nobody's is the default."""
    policy = loader.load(write_policy(tmp_path, store))
    plans = (("basic", Quota(2, 3_600_000)), ("gold", Quota(7, 3_600_000)))
    rules = (replace(policy.rules[0], plans=plans),)
    async with way(replace(policy, rules=rules, plan=PlanChoice(default="basic"))) as ask:
        got = [await ask(*headers) for headers in ([key("user-key")], [bearer(plan="gold")], [bearer(sub="b")], [])]
        upgraded = await ask(bearer(sub="b", plan="gold"))

    assert [each.header("x-ratelimit-limit") for each in got] == [["7"], ["7"], ["2"], ["2"]]
    assert (upgraded.header("x-ratelimit-limit"), upgraded.remaining) == (["7"], 5)
    assert [each.told("x-auth-plan") for each in got] == [["gold"], ["gold"], ["basic"], ["basic"]]


async def test_an_override_of_the_plan_is_told(tmp_path: Path, way: Any) -> None:
    """What applies is told: the override before what the credentials say."""
    policy = loader.load(write_policy(tmp_path))
    plans = (("basic", Quota(2, 3_600_000)), ("gold", Quota(7, 3_600_000)))
    rules = (replace(policy.rules[0], plans=plans),)
    digest = Planner(policy).reader.principal("bearer", b"alice").digest
    overrides = (Override(frozenset({digest}), plan="basic"),)
    async with way(replace(policy, rules=rules, plan=PlanChoice("basic"), overrides=overrides)) as ask:
        got = [await ask(bearer(plan="gold", sub=name)) for name in ("alice", "bob")]

    assert [each.header("x-ratelimit-limit") + each.told("x-auth-plan") for each in got] == [
        ["2", "basic"],
        ["7", "gold"],
    ]
