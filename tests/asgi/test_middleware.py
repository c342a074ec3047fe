"""The middleware, driven message by message; frameworks are in test_frameworks.py."""

from __future__ import annotations

import asyncio
import json
from typing import TYPE_CHECKING, Any

import pytest

from ratelimiter import ConfigError, RateLimitMiddleware
from ratelimiter.stores.memory import MemoryStore
from ratelimiter.testing import FakeClock
from tests.asgi_client import get, http_scope, send_request
from tests.stores.redis_server import RedisServer

if TYPE_CHECKING:
    from pathlib import Path

    from ratelimiter.core.decision import Decision

NOW_S = 1_800_000_000


class App:
    """Answers 200 with a header of its own, and counts how often it was asked."""

    def __init__(self, *messages: dict[str, Any]) -> None:
        self.messages = messages or (
            {"type": "http.response.start", "status": 200, "headers": [(b"x-own", b"1")]},
            {"type": "http.response.body", "body": b"hello"},
        )
        self.scopes: list[dict[str, Any]] = []

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        self.scopes.append(scope)
        for message in self.messages:
            await send(message)


class Failing(App):
    """Raises before it has answered, or after it has begun."""

    def __init__(self, *, begins: bool = False) -> None:
        super().__init__()
        self.begins = begins

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        if self.begins:
            await send({"type": "http.response.start", "status": 200, "headers": []})
        msg = "a secret of the application"
        raise RuntimeError(msg)


def limited(app: Any, clock: FakeClock | None = None, limit: Any = "2/minute", **settings: Any) -> RateLimitMiddleware:
    return RateLimitMiddleware(app, limit=limit, store=MemoryStore(clock=clock or FakeClock()), **settings)


class TestAdmission:
    async def test_headers_are_on_every_response(self) -> None:
        """An admitted response keeps its own headers and says limit, remaining and reset as a Unix time."""
        answer = await get(limited(App()))

        assert 200 == answer.status
        assert b"hello" == answer.body
        assert ["1"] == answer.lines("x-own")
        assert ["2"] == answer.lines("x-ratelimit-limit")
        assert ["1"] == answer.lines("x-ratelimit-remaining")
        assert [str(NOW_S + 60)] == answer.lines("x-ratelimit-reset")
        assert [] == answer.lines("retry-after")

    async def test_messages_pass_unbuffered_and_unchanged(self) -> None:
        """A stream reaches the client chunk by chunk, and only the first start gets headers."""
        stream = (
            {"type": "http.response.debug", "info": {}},
            {"type": "http.response.start", "status": 200, "headers": [(b"x-own", b"1")], "trailers": True},
            {"type": "http.response.body", "body": b"a", "more_body": True},
            {"type": "http.response.body", "body": b"b", "more_body": False},
            {"type": "http.response.trailers", "headers": [(b"x-end", b"1")]},
        )
        seen: list[str] = []

        class Streaming(App):
            async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
                for message in stream:
                    await send(message)
                    seen.append(answer_types()[-1])

        sent: list[dict[str, Any]] = []

        def answer_types() -> list[str]:
            return [message["type"] for message in sent]

        async def send(message: Any) -> None:
            sent.append(message)

        await limited(Streaming())(http_scope(), None, send)  # type: ignore[arg-type]

        assert [message["type"] for message in stream] == seen
        assert [stream[0], *stream[2:]] == [sent[0], *sent[2:]]
        assert (stream[1]["trailers"], 4) == (sent[1]["trailers"], len(sent[1]["headers"]))

    async def test_applications_message_is_not_changed_in_place(self) -> None:
        """The application may send the same message twice: ours is a copy."""
        app = App()
        middleware = limited(app)
        await get(middleware)
        await get(middleware)

        assert [(b"x-own", b"1")] == app.messages[0]["headers"]

    @pytest.mark.parametrize("headers", [(), [], ((b"x-own", b"1"),), iter([(b"x-own", b"1")])])
    async def test_headers_may_be_any_iterable(self, headers: Any) -> None:
        """ASGI allows any iterable of headers, and none at all."""
        app = App({"type": "http.response.start", "status": 204, "headers": headers}, {"type": "http.response.body"})
        answer = await get(limited(app))

        assert "1" == answer.line("x-ratelimit-remaining")

    @pytest.mark.parametrize("status", [204, 304, 404, 500])
    async def test_status_makes_no_difference(self, status: int) -> None:
        """304 and the application's own errors carry the headers, too."""
        app = App({"type": "http.response.start", "status": status}, {"type": "http.response.body"})
        answer = await get(limited(app))

        assert (status, "1") == (answer.status, answer.line("x-ratelimit-remaining"))

    async def test_applications_own_figures_are_replaced(self) -> None:
        """A response has one X-RateLimit-Limit, and it is ours."""
        own = [(b"x-ratelimit-limit", b"99"), (b"x-own", b"1")]
        app = App({"type": "http.response.start", "status": 200, "headers": own}, {"type": "http.response.body"})
        answer = await get(limited(app))

        assert ("2", "1") == (answer.line("x-ratelimit-limit"), answer.line("x-own"))

    async def test_draft_11_is_added_to_the_applications_own(self) -> None:
        """RateLimit is a list: what the application reports of its quotas stays."""
        own = [(b"ratelimit", b'"inner";r=1;t=1')]
        app = App({"type": "http.response.start", "status": 200, "headers": own}, {"type": "http.response.body"})
        answer = await get(limited(app, headers="draft-11"))

        assert ['"inner";r=1;t=1', '"per-minute";r=1;t=60'] == answer.lines("ratelimit")
        assert ['"per-minute";q=2;w=60'] == answer.lines("ratelimit-policy")

    async def test_every_rule_is_in_the_lists_and_the_tightest_in_the_single_fields(self) -> None:
        """With two limits draft-11 names both, X-RateLimit the one with less left."""
        middleware = limited(App(), limit=["5/minute", "3/hour"], headers=["x-ratelimit", "draft-11"])
        answer = await get(middleware)

        assert '"per-minute";q=5;w=60, "per-hour";q=3;w=3600' == answer.line("ratelimit-policy")
        assert '"per-minute";r=4;t=60, "per-hour";r=2;t=3600' == answer.line("ratelimit")
        assert ("3", "2") == (answer.line("x-ratelimit-limit"), answer.line("x-ratelimit-remaining"))

    async def test_no_headers_when_none_are_asked_for(self) -> None:
        """`headers: []` leaves the application's response as it is."""
        answer = await get(limited(App(), headers=[]))

        assert [(b"x-own", b"1")] == answer.start["headers"]

    async def test_browsers_may_read_the_headers(self) -> None:
        """`expose_headers` names them for cross-origin scripts, on refusals too."""
        middleware = limited(App(), limit="1/minute", expose_headers=True)
        expected = "X-RateLimit-Limit, X-RateLimit-Remaining, X-RateLimit-Reset, Retry-After"

        assert expected == (await get(middleware)).line("access-control-expose-headers")
        assert expected == (await get(middleware)).line("access-control-expose-headers")


class TestRefusal:
    async def test_application_is_not_called(self) -> None:
        """Over the limit the answer is ours: 429, Retry-After, the figures, and a body of the stated length."""
        app = App()
        middleware = limited(app, limit="1/minute")
        await get(middleware)
        answer = await get(middleware)

        assert 1 == len(app.scopes)
        assert (429, "60", "0") == (answer.status, answer.line("retry-after"), answer.line("x-ratelimit-remaining"))
        assert str(NOW_S + 60) == answer.line("x-ratelimit-reset")
        assert str(len(answer.body)) == answer.line("content-length")
        assert ["per-minute"] == json.loads(answer.body)["violated-policies"]

    async def test_retry_after_is_true(self) -> None:
        """Come back then and you are in; one millisecond earlier you are not."""
        clock = FakeClock(NOW_S * 1000)
        middleware = limited(App(), clock, limit="1/minute")
        await get(middleware)
        clock.advance(59_001)
        refused = await get(middleware)

        assert "1" == refused.line("retry-after")
        clock.advance(998)
        assert 429 == (await get(middleware)).status
        clock.advance(1)
        assert 200 == (await get(middleware)).status

    async def test_head_has_headers_and_no_body(self) -> None:
        """A refused HEAD looks like the refused GET, without its body (RFC 9110 section 9.3.2); both spend one
        bucket.
        """
        middleware = limited(App(), limit="1/minute")
        await get(middleware)
        got = await get(middleware)
        head = await send_request(middleware, http_scope("HEAD"))

        assert (429, b"") == (head.status, head.body)
        assert got.start["headers"] == head.start["headers"]

    async def test_principals_do_not_share(self) -> None:
        """One caller's refusal is not another's."""
        middleware = limited(App(), limit="1/minute", principal="header:X-API-Key")
        statuses = [(await get(middleware, headers={"X-API-Key": key})).status for key in ("a", "b", "a", "b")]

        assert [200, 200, 429, 429] == statuses

    async def test_equal_decisions_are_equal_bytes(self) -> None:
        """Two principals who are refused at the same moment read the same bytes (invariants 8 and 9)."""
        middleware = limited(App(), limit="1/minute", principal="header:X-API-Key")
        for key in ("alice", "bob"):
            await get(middleware, headers={"X-API-Key": key})
        alice, bob = [await get(middleware, headers={"X-API-Key": key}) for key in ("alice", "bob")]

        assert alice.messages == bob.messages
        assert "alice" not in str(alice.messages)

    async def test_malformed_request_is_a_400_and_charges_nobody(self) -> None:
        """Two API keys could be two identities: refused in the dialect, and the key's tally stays."""
        middleware = limited(App(), limit="1/minute", principal="header:X-API-Key")
        twice = http_scope()
        twice["headers"] += [(b"x-api-key", b"a"), (b"x-api-key", b"b")]
        answer = await send_request(middleware, twice)

        assert 400 == answer.status
        assert [] == answer.lines("x-ratelimit-limit")
        assert 200 == (await get(middleware, headers={"X-API-Key": "a"})).status

    @pytest.mark.parametrize(
        ("dialect", "begins"),
        [("intrace", b'{"error": {"code": "rate_limit_exceeded"'), ("tracefinance", b'{"code": "RATE_LIMIT_EXCEEDED"')],
    )
    async def test_dialect_writes_the_body(self, dialect: str, begins: bytes) -> None:
        """The documented body comes from the dialect."""
        middleware = limited(App(), limit="1/minute", dialect=dialect)
        await get(middleware)

        assert (await get(middleware)).body.startswith(begins)


class TestRequestId:
    async def test_generated_where_documented(self) -> None:
        """Every tracefinance response has an X-Request-Id, a new one each time."""
        middleware = limited(App(), dialect="tracefinance")
        one, other = await get(middleware), await get(middleware)

        assert 36 == len(one.line("x-request-id") or "")
        assert one.line("x-request-id") != other.line("x-request-id")

    async def test_taken_over_from_the_caller_when_well_formed(self) -> None:
        """A UUID is kept, and anything else is replaced: it must not carry bytes of the caller's choice."""
        middleware = limited(App(), dialect="tracefinance", limit="9/minute")
        theirs = "0a6f2a1e-3c5b-4d7e-8f90-a1b2c3d4e5f6"

        assert theirs == (await get(middleware, headers={"X-Request-Id": theirs})).line("x-request-id")
        assert "evil" not in ((await get(middleware, headers={"X-Request-Id": "evil"})).line("x-request-id") or "")

    async def test_is_the_request_id_of_the_body(self) -> None:
        """What a caller quotes to support is in header and body alike, and the application can read it."""
        app = App()
        middleware = limited(app, limit="1/minute", dialect="intrace")
        admitted = await get(middleware)
        refused = await get(middleware)

        assert admitted.line("x-request-id") == app.scopes[0]["ratelimiter"].request_id
        assert json.loads(refused.body)["request_id"] == refused.line("x-request-id")

    async def test_not_invented_where_undocumented(self) -> None:
        """The default dialect documents no X-Request-Id, so there is none."""
        assert [] == (await get(limited(App()))).lines("x-request-id")


class TestErrorsOfTheApplication:
    async def test_unhandled_error_is_the_dialects_500_with_headers(self) -> None:
        """It goes out in the dialect, without internals, with the figures, and is raised on for the server's log."""
        answer = await get(limited(Failing(), dialect="trace"))

        assert isinstance(answer.error, RuntimeError)
        assert (500, b'{"error": "Internal server error"}') == (answer.status, answer.body)
        assert "1" == answer.line("x-ratelimit-remaining")

    async def test_begun_response_is_left_alone(self) -> None:
        """After the start there is nothing to be said any more."""
        answer = await get(limited(Failing(begins=True)))

        assert ["http.response.start"] == [message["type"] for message in answer.messages]
        assert isinstance(answer.error, RuntimeError)


class TestStack:
    async def test_same_limit_twice_counts_once(self) -> None:
        """A limiter that was added twice by mistake is one limiter."""
        store = MemoryStore(clock=FakeClock())
        inner = RateLimitMiddleware(App(), limit="2/minute", store=store)
        outer = RateLimitMiddleware(inner, limit="2/minute", store=store)
        answers = [await get(outer) for _ in range(3)]

        assert [200, 200, 429] == [answer.status for answer in answers]
        assert "1" == answers[0].line("x-ratelimit-remaining")

    async def test_inner_limiter_adds_its_own_rule(self) -> None:
        """A stricter limit further in holds, and the headers speak of it once."""
        inner = limited(App(), limit="1/hour")
        outer = limited(inner, limit="5/minute")
        first, second = await get(outer), await get(outer)

        assert ("1", "0") == (first.line("x-ratelimit-limit"), first.line("x-ratelimit-remaining"))
        assert (429, "3600", "1") == (second.status, second.line("retry-after"), second.line("x-ratelimit-limit"))

    async def test_inner_limiter_of_the_same_window_still_holds(self) -> None:
        """Two limits with the same name are not the same limit."""
        inner = limited(App(), limit="1/minute")
        outer = limited(inner, limit="5/minute")

        assert [200, 429] == [(await get(outer)).status for _ in range(2)]


class TestScopes:
    async def test_lifespan_is_the_applications(self) -> None:
        """Anything but http and websocket passes untouched."""
        app = App({"type": "lifespan.startup.complete"})
        scope = {"type": "lifespan", "asgi": {"version": "3.0"}}
        answer = await send_request(limited(app), scope)

        assert [{"type": "lifespan.startup.complete"}] == answer.messages
        assert app.scopes[0] is scope
        assert {"type", "asgi"} == set(scope)

    async def test_nothing_is_left_at_the_end(self, tmp_path: Path) -> None:
        """When the server says goodbye nothing of ours runs on, and the store that was opened here is closed."""
        policy = tmp_path / "policy.yaml"
        with RedisServer() as server, server.client() as looking:
            policy.write_text(f"store: {server.url}\nrules: [{{name: all, limit: 5/minute}}]")
            middleware = RateLimitMiddleware(App(), config=policy)
            assert 200 == (await get(middleware)).status
            begun = asyncio.all_tasks() - {asyncio.current_task()}
            middleware.app = App({"type": "lifespan.shutdown.complete"})
            answer = await send_request(middleware, {"type": "lifespan", "asgi": {"version": "3.0"}})
            await asyncio.wait(begun, timeout=5)
            left = [client["name"] for client in looking.client_list() if client["name"]]

        assert begun
        assert all(task.done() for task in begun)
        assert [] == left
        assert [{"type": "lifespan.shutdown.complete"}] == answer.messages

    async def test_unknown_client_is_somebody(self) -> None:
        """On a unix socket the peer has no address: one principal, not nobody."""
        middleware = limited(App(), limit="1/minute")

        assert [200, 429] == [(await get(middleware, client=None)).status for _ in range(2)]

    async def test_raw_path_may_be_missing(self) -> None:
        """ASGI calls it optional; then the decoded path stands in."""
        middleware = RateLimitMiddleware(App(), config=_path_policy())
        scope = http_scope(target="/v1/deep")
        del scope["raw_path"]

        assert [200, 429] == [(await send_request(middleware, dict(scope))).status for _ in range(2)]

    @pytest.mark.parametrize(
        "target", ["/v1/deep/", "//v1//deep", "/v1/./deep", "/v1/x/../deep", "/v1/%64eep", "/v1/deep?x=1"]
    )
    async def test_spelling_is_no_escape(self, target: str) -> None:
        """However the path is spelled, its rule applies."""
        middleware = RateLimitMiddleware(App(), config=_path_policy())
        await get(middleware, "/v1/deep")

        assert 429 == (await get(middleware, target)).status

    async def test_root_path_is_not_part_of_the_path(self) -> None:
        """Behind a prefix, whether the server's or a mount's, rules are relative to the application."""
        middleware = RateLimitMiddleware(App(), config=_path_policy())
        statuses = [(await get(middleware, "/api/v1/deep", root_path="/api")).status for _ in range(2)]

        assert [200, 429] == statuses


def _path_policy() -> Any:
    from ratelimiter.core.match import Match
    from ratelimiter.core.policy import Policy
    from ratelimiter.core.quota import Quota
    from ratelimiter.core.rule import Rule

    return Policy((Rule("deep", Quota(1, 60_000), match=Match(path="/v1/deep")),))


class TestWebSocket:
    ACCEPTING = ({"type": "websocket.accept", "headers": [(b"x-own", b"1")]},)

    def scope(self, **more: Any) -> dict[str, Any]:
        scope = http_scope(**more)
        del scope["method"]
        return {**scope, "type": "websocket", "scheme": "ws", "subprotocols": []}

    async def ask(self, app: Any, **more: Any) -> Any:
        return await send_request(app, self.scope(**more), [{"type": "websocket.connect"}])

    async def test_accepted_handshake_carries_the_headers(self) -> None:
        """The figures are in the response to the handshake, next to the application's own."""
        answer = await self.ask(limited(App(*self.ACCEPTING)))

        assert b"x-ratelimit-remaining" in dict(answer.messages[0]["headers"])
        assert b"x-own" in dict(answer.messages[0]["headers"])

    async def test_refused_with_the_denial_response_where_offered(self) -> None:
        """With the extension the client sees the same 429 as over http."""
        middleware = limited(App(*self.ACCEPTING), limit="1/minute")
        await self.ask(middleware)
        answer = await self.ask(middleware, extensions={"websocket.http.response": {}})

        assert ["websocket.http.response.start", "websocket.http.response.body"] == [m["type"] for m in answer.messages]
        assert (429, "60") == (answer.status, answer.line("retry-after"))
        assert ["per-minute"] == json.loads(answer.body)["violated-policies"]

    async def test_refused_by_closing_before_accept_otherwise(self) -> None:
        """Without it the handshake is closed, which servers answer with 403."""
        app = App(*self.ACCEPTING)
        middleware = limited(app, limit="1/minute")
        await self.ask(middleware)
        answer = await self.ask(middleware)

        assert ["websocket.close"] == [message["type"] for message in answer.messages]
        assert 1 == len(app.scopes)

    async def test_handshake_spends_what_a_get_spends(self) -> None:
        """A limit on GET includes handshakes: they are GETs (RFC 6455 section 4.1)."""
        middleware = limited(App(*self.ACCEPTING), limit="1/minute")
        await get(middleware)

        assert "websocket.close" == (await self.ask(middleware)).messages[0]["type"]


class TestSettings:
    async def test_observer_is_told_every_decision(self) -> None:
        """Metrics hang on one method."""
        seen: list[Decision] = []

        class Observer:
            def decided(self, decision: Decision, *_: object) -> None:
                seen.append(decision)

        middleware = limited(App(), limit="1/minute", observer=Observer())
        await get(middleware)
        await get(middleware)

        assert [(True, "within_limit"), (False, "over_limit")] == [(d.allowed, d.reason) for d in seen]

    @pytest.mark.parametrize(
        ("settings", "named"),
        [
            ({"limit": "10 parsecs"}, "limit"),
            ({"limit": "1/minute", "dialect": "intrase"}, "intrace"),
            ({"limit": "1/minute", "principal": "cookies:x"}, "cookies:x"),
            ({"limit": "1/minute", "headers": "x-rate"}, "x-ratelimit"),
            ({"limit": "1/minute", "ipv6_prefix": 300}, "ipv6_prefix"),
            ({}, "limit"),
            ({"config": "no/such/file.yaml"}, "no/such/file.yaml"),
            ({"limit": "1/minute", "store": "ftp://x"}, "ftp"),
        ],
    )
    def test_wrong_argument_is_named_at_once(self, settings: dict[str, Any], named: str) -> None:
        """A mistake is told when the application starts, in words that say what would do."""
        with pytest.raises(ConfigError, match=named):
            RateLimitMiddleware(App(), **settings)
