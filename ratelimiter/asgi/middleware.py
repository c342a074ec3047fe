"""The limiter as ASGI middleware: judge first, then let the application answer or answer in its place."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any
from urllib.parse import quote

from ratelimiter.asgi.body import peek
from ratelimiter.asgi.request_state import SCOPE_KEY, Exchange, Manner
from ratelimiter.asgi.response_hook import overheard
from ratelimiter.config import loader as configuration
from ratelimiter.config.reload import Reloader, Reloading
from ratelimiter.core.algorithms.sliding_window import new
from ratelimiter.core.headers import renderer, replaced
from ratelimiter.core.identity import NOBODY, Teller
from ratelimiter.core.request import Request
from ratelimiter.dialects import loader, request_id
from ratelimiter.engine.limiter import Limiter
from ratelimiter.engine.observer import observer_of
from ratelimiter.engine.override_watcher import OverrideWatcher
from ratelimiter.stores.factory import store_for

if TYPE_CHECKING:
    import os
    from collections.abc import Awaitable, Callable, Sequence

    from ratelimiter.core.decision import Decision
    from ratelimiter.core.identity import Identity
    from ratelimiter.core.policy import Hit, Policy
    from ratelimiter.core.reply import Reply
    from ratelimiter.engine.observer import DecisionObserver, Observer
    from ratelimiter.stores.base import Store

    # As frameworks type them, whose checkers would refuse anything narrower.
    Scope = Any
    Message = Any
    Receive = Callable[[], Awaitable[Message]]
    Send = Callable[[Message], Awaitable[None]]
    ASGIApp = Callable[[Scope, Receive, Send], Awaitable[None]]

DENIAL_RESPONSE = "websocket.http.response"  # extension of the ASGI specification
POLICY_VIOLATION = 1008  # RFC 6455 section 7.4.1


class RateLimitMiddleware:
    """Admits what the policy admits; answers everything else itself, in the dialect, without calling the application.

    Args:
        app: the ASGI application behind it.
        limit: one limit or several, like `60/minute`, each on every request of a principal.
        config: a policy file, or a `Policy`, instead of *limit*.
        store: URL of the store, or a `Store`.
        dialect: name of a dialect, or the path of a dialect file.
        principal: where to find who is charged, like `header:X-API-Key`; several are tried in order.
        headers: header families on every response: `x-ratelimit`, `draft-11`, `draft-06`.
        trusted_proxies: networks whose forwarding headers are believed.
        observer: is told every decision; an `Observer` also of policies, reloads, runtime overrides and the store.
        reload: whether a changed policy file, and the files that it names, take effect while the application runs. A
            file that cannot be used does not; counters stay.

    The others are fields of a policy file, by their names there (README, "The policy file"). What is given here wins
    over the file, the file over the environment (`RATELIMITER_STORE`, ...).

    Raises:
        ConfigError: an argument or the file cannot be used.
    """

    def __init__(
        self,
        app: ASGIApp,
        *,
        limit: str | Sequence[str] | None = None,
        config: str | os.PathLike[str] | Policy | None = None,
        store: str | Store | None = None,
        dialect: str | None = None,
        principal: str | Sequence[str] | None = None,
        headers: str | Sequence[str] | None = None,
        trusted_proxies: str | Sequence[str] | None = None,
        trusted_hops: int | None = None,
        client_header: str | None = None,
        ipv6_prefix: int | None = None,
        on_store_error: str | None = None,
        local_share: float | None = None,
        decision_timeout: str | None = None,
        expose_headers: bool | None = None,
        ambiguous_paths: str | None = None,
        path_case: str | None = None,
        method_override: bool | None = None,
        json_bytes_max: int | None = None,
        mode: str | None = None,
        name: str | None = None,
        secret: str | bytes | None = None,
        observer: Observer | DecisionObserver | None = None,
        reload: bool = True,
    ) -> None:
        # Spelled out rather than **settings, so that type checkers and editors know them, and frameworks' checkers
        # agree.
        settings: dict[str, Any] = {
            "limit": limit,
            "config": config,
            "store": store if isinstance(store, str) else None,
            "dialect": dialect,
            "principal": principal,
            "headers": headers,
            "trusted_proxies": trusted_proxies,
            "trusted_hops": trusted_hops,
            "client_header": client_header,
            "ipv6_prefix": ipv6_prefix,
            "on_store_error": on_store_error,
            "local_share": local_share,
            "decision_timeout": decision_timeout,
            "expose_headers": expose_headers,
            "ambiguous_paths": ambiguous_paths,
            "path_case": path_case,
            "method_override": method_override,
            "json_bytes_max": json_bytes_max,
            "mode": mode,
            "name": name,
            "secret": secret,
        }
        policy = configuration.build(**settings)
        observed = observer_of(observer)
        self.app = app
        self._opened = store is None or isinstance(store, str)
        if store is None or isinstance(store, str):
            store = store_for(policy, observed)
        self.limiter = Limiter(policy, store, observer=observed)
        self._standing = OverrideWatcher(self.limiter)
        file = configuration.file_of(limit, config) if reload else None
        self._reloading = None
        if file is not None:
            self._reloading = Reloading(
                lambda: Reloader(
                    file,
                    self.limiter.policy,
                    self.swap,
                    load=lambda: configuration.build(**settings),
                    observer=observed,
                )
            )
        self._read(policy)

    def swap(self, policy: Policy) -> None:
        """Judge and answer under *policy* from the next request on; what is counted stays.

        Raises:
            ConfigError: its dialect cannot be used, or it says something else of the store; then nothing has changed.
        """
        loader.load(policy.dialect)
        self.limiter.swap(policy)
        self._read(policy)

    def _read(self, policy: Policy) -> None:
        self.dialect = loader.load(policy.dialect)
        self._timed = self._reloading is not None or self._standing.needs_time
        self._ids = self.dialect.request_ids
        id_header = self._ids.header if self._ids is not None else None
        # What the application says of these is dropped: a response has one of each, and it is ours.
        ours = replaced(policy.headers) if id_header is None else replaced(policy.headers) | {id_header}
        self._manner = Manner(ours, renderer(policy.headers, expose=policy.expose_headers), id_header)
        self._teller = Teller(() if policy.identity is None else policy.identity.tell_upstream)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one connection scope; anything but http and websocket is the application's own."""
        kind = scope["type"]
        if self._timed:
            self._begin()
        if kind not in ("http", "websocket"):
            await self.app(scope, receive, self._behind_the_end(send) if kind == "lifespan" else send)
            return
        if SCOPE_KEY in scope:
            await self._further_in(scope[SCOPE_KEY], scope, receive, send)
            return
        request, limiter = _request(scope), self.limiter
        if limiter.looks_at_bodies:
            request, receive = await self._with_body(request, receive)
        identity = await limiter.identified(request) if limiter.identifies else NOBODY
        decision, hits = await limiter.decide(request, (), identity)
        chosen = "" if self._ids is None else request_id.choose(self._ids, scope["headers"])
        exchange = scope[SCOPE_KEY] = Exchange(self._manner, chosen, decision, hits, identity)
        send = exchange.sender(send)
        if not decision.allowed:
            await _refuse(scope, receive, send, self._refusal(decision, hits, exchange))
            return
        if limiter.identifies:
            self._tell(request, identity, exchange, scope)
        follower = limiter.follow(decision, hits) if limiter.settles else None
        if follower is not None:
            send = overheard(send, follower)
        try:
            await self.app(scope, receive, send)
        except Exception:
            if follower is not None:
                follower.responded(500, ())
            # A framework answers this outside of us, so past our headers, and raises on; servers do no better. Where
            # the application has said how, it is left to.
            if kind == "http" and not exchange.started and not _handles_errors(scope):
                reply = self.dialect.reply_for_status(500, request_id=exchange.request_id)
                await _refuse(scope, receive, send, reply)
            raise
        finally:
            if follower is not None:
                follower.ended()

    def _begin(self) -> None:
        """See to it that what changes by itself is looked after on the running event loop."""
        if self._reloading is not None:
            self._reloading.begin()
        if self._standing.needs_time:
            self._standing.start()

    def _refusal(self, decision: Decision, hits: Sequence[Hit], exchange: Exchange) -> Reply:
        """The reply to what is not let through."""
        reply = self.dialect.refusal(decision, exchange.request_id)
        follower = self.limiter.follow(decision, hits) if self.limiter.settles else None
        if follower is not None:
            follower.refused(reply.status)
        return reply

    async def close(self) -> None:
        """Tell the store all there is to tell, and let go of what was begun: of the store, too, if it was opened here.

        Done by itself where the server speaks lifespan. A request that comes after all begins everything anew.
        """
        if self._reloading is not None:
            self._reloading.end()
        await self._standing.stop()
        await (self.limiter.close() if self._opened else self.limiter.settled())

    def _behind_the_end(self, send: Send) -> Send:
        """*send* of a lifespan, which says goodbye only when nothing of ours is left."""

        async def send_behind(message: Message) -> None:
            if message["type"].startswith("lifespan.shutdown"):
                await self.close()
            await send(message)

        return send_behind

    async def _further_in(self, exchange: Exchange, scope: Scope, receive: Receive, send: Send) -> None:
        """Judge a request that another limiter has let through; that one writes the headers, of all decisions at
        once.
        """
        request = _request(scope)
        if self.limiter.looks_at_bodies:
            request, receive = await self._with_body(request, receive)
        identity = await self.limiter.identified(request) if self.limiter.identifies else NOBODY
        decision, hits = await self.limiter.decide(request, exchange.charged, identity)
        exchange.decisions = (*exchange.decisions, decision)
        exchange.charged = (*exchange.charged, *hits)
        if not decision.allowed:
            await _refuse(scope, receive, send, self._refusal(decision, hits, exchange))
            return
        if self.limiter.policy.identity is not None:
            self._tell(request, identity, exchange, scope)
        follower = self.limiter.follow(decision, hits) if self.limiter.settles else None
        if follower is None:
            await self.app(scope, receive, send)
            return
        try:
            await self.app(scope, receive, overheard(send, follower))
        except Exception:
            follower.responded(500, ())
            raise
        finally:
            follower.ended()

    def _tell(self, request: Request, identity: Identity, exchange: Exchange, scope: Scope) -> None:
        """Let the application know whom *request* is from, in the exchange and in headers that are ours to set."""
        exchange.identity = self.limiter.placed(request, identity)
        if self._teller.names:
            scope["headers"] = self._teller.replaced(scope["headers"], exchange.identity)

    async def _with_body(self, request: Request, receive: Receive) -> tuple[Request, Receive]:
        """*request* with as much of its body as some rule asks for, and what the application receives from."""
        wanted = 0 if request.body is not None else self.limiter.body_wanted(request)
        if not wanted:
            return request, receive
        body, receive = await peek(receive, wanted)
        return request._replace(body=body), receive


def _request(scope: Scope) -> Request:
    client = scope.get("client")
    path = scope["path"]
    return new(
        Request,
        (
            scope.get("method", "GET"),  # a websocket's handshake is a GET (RFC 6455 section 4.1)
            scope.get("raw_path") or quote(path).encode(),
            scope["headers"],
            client[0] if client else None,
            scope.get("root_path", ""),
            path,
            b"" if scope["type"] == "websocket" else None,  # its handshake has none
        ),
    )


def _handles_errors(scope: Scope) -> bool:
    """Whether the application has its own answer to an unhandled error, as Starlette's and FastAPI's can."""
    app = scope.get("app")
    handlers = getattr(app, "exception_handlers", None) or {}
    return bool(getattr(app, "debug", False)) or 500 in handlers or Exception in handlers


async def _refuse(scope: Scope, receive: Receive, send: Send, reply: Reply) -> None:
    """Send *reply* in the application's place."""
    prefix = "http.response"
    if scope["type"] == "websocket":
        await receive()  # websocket.connect
        if DENIAL_RESPONSE not in (scope.get("extensions") or {}):
            # Before the handshake is accepted, servers make of this a plain 403.
            await send({"type": "websocket.close", "code": POLICY_VIOLATION, "reason": "rate limited"})
            return
        prefix = DENIAL_RESPONSE
    body = b"" if scope.get("method") == "HEAD" else reply.body
    await send({"type": f"{prefix}.start", "status": reply.status, "headers": reply.headers})
    await send({"type": f"{prefix}.body", "body": body})
