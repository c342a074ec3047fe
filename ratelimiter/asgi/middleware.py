"""The limiter as ASGI middleware: judge first, then let the application answer or answer in its place."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any
from urllib.parse import quote

from ratelimiter.asgi.body import BodyReader
from ratelimiter.asgi.refusal import refuse
from ratelimiter.asgi.request_state import SCOPE_KEY, RequestState
from ratelimiter.asgi.response_hook import settling
from ratelimiter.config import loader as configuration
from ratelimiter.config.reload import Reloader, Reloading
from ratelimiter.core.receipt import new
from ratelimiter.core.request import Request
from ratelimiter.engine.limiter import Limiter
from ratelimiter.engine.observer import observer_of
from ratelimiter.engine.override_watcher import OverrideWatcher
from ratelimiter.engine.presenter import Presenter
from ratelimiter.stores.factory import store_for

if TYPE_CHECKING:
    import os
    from collections.abc import Awaitable, Callable, Sequence

    from ratelimiter.core.policy import Policy
    from ratelimiter.engine.observer import DecisionObserver, Observer
    from ratelimiter.stores.base import Store

    # As frameworks type them, whose checkers would refuse anything narrower.
    Scope = Any
    Message = Any
    Receive = Callable[[], Awaitable[Message]]
    Send = Callable[[Message], Awaitable[None]]
    ASGIApp = Callable[[Scope, Receive, Send], Awaitable[None]]


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

    The others are fields of a policy file, by their names there (docs/reference/policy.md). What is given here wins
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
        presenter = Presenter(policy)
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
        self._present(presenter)

    def swap(self, policy: Policy) -> None:
        """Judge and answer under *policy* from the next request on; what is counted stays.

        Raises:
            ConfigError: its dialect cannot be used, or it says something else of the store; then nothing has changed.
        """
        presenter = Presenter(policy)
        self.limiter.swap(policy)
        self._present(presenter)

    def _present(self, presenter: Presenter) -> None:
        self.presenter = presenter
        self._timed = self._reloading is not None or self._standing.needs_time

    async def __call__(  # noqa: PLR0912  # the hot path: each coroutine more would cost as much as a dozen branches
        self, scope: Scope, receive: Receive, send: Send
    ) -> Any:
        """Serve one connection scope; anything but http and websocket is the application's own."""
        kind = scope["type"]
        if self._timed:
            self._begin()
        if kind not in ("http", "websocket"):
            return await self.app(scope, receive, self._behind_the_end(send) if kind == "lifespan" else send)
        presenter, limiter = self.presenter, self.limiter
        body = BodyReader(receive)
        outer: RequestState | None = scope.get(SCOPE_KEY)
        if outer is None:
            judgement = await limiter.judge(_request(scope), body=body)
            identifier = presenter.request_id(scope.get("headers", ())) if presenter.id_header is not None else ""
            state = scope[SCOPE_KEY] = RequestState(presenter, limiter, judgement, identifier)
            send = state.sender(send)
        else:  # another limiter further out has let it through, and writes the headers of all decisions at once
            state = outer
            judgement = await limiter.judge(_request(scope), body=body, charged=state.charged)
            state.add(limiter, judgement)
        decision, _, identity, pending = judgement
        if not decision.allowed:
            reply = presenter.refusal(decision, state.request_id)
            if pending is not None:
                pending.refused(reply.status)
            return await refuse(scope, body.receive, send, reply, decision.reason)
        if presenter.identity_headers.names:
            scope["headers"] = presenter.identity_headers.replaced(scope.get("headers", ()), identity)
        if pending is not None:
            send = settling(send, pending)
        try:
            return await self.app(scope, body.receive, send)
        except Exception:
            if pending is not None:
                pending.responded(500, ())
            # A framework answers this outside of us, so past our headers, and raises on; servers do no better. Where
            # the application has said how, it is left to.
            if outer is None and kind == "http" and not state.started and not _handles_errors(scope):
                await refuse(scope, body.receive, send, presenter.error(500, state.request_id), "")
            raise
        finally:
            if pending is not None:
                pending.ended()

    def _begin(self) -> None:
        """See to it that what changes by itself is looked after on the running event loop."""
        if self._reloading is not None:
            self._reloading.begin()
        if self._standing.needs_time:
            self._standing.start()

    async def close(self) -> None:
        """Tell the store all there is to tell, and let go of what was begun: of the store, too, if it was opened here.

        Done by itself where the server speaks lifespan. A request that comes after all begins everything anew.
        """
        if self._reloading is not None:
            self._reloading.end()
        await self._standing.stop()
        await (self.limiter.close() if self._opened else self.limiter.settled())

    def _behind_the_end(self, send: Send) -> Send:
        """Return *send* of a lifespan, which says goodbye only when nothing of ours is left."""

        async def send_behind(message: Message) -> None:
            if message["type"].startswith("lifespan.shutdown"):
                await self.close()
            await send(message)

        return send_behind


def _request(scope: Scope) -> Request:
    client = scope.get("client")
    path = scope["path"]
    return new(
        Request,
        (
            scope.get("method", "GET"),  # a websocket's handshake is a GET (RFC 6455 section 4.1)
            scope.get("raw_path") or quote(path).encode(),
            scope.get("headers", ()),
            client[0] if client else None,
            scope.get("root_path", ""),
            path,
            b"" if scope["type"] == "websocket" else None,  # its handshake has none
        ),
    )


def _handles_errors(scope: Scope) -> bool:
    """Return whether the application has its own answer to an unhandled error, as Starlette's and FastAPI's can."""
    app = scope.get("app")
    handlers = getattr(app, "exception_handlers", None) or {}
    return bool(getattr(app, "debug", False)) or 500 in handlers or Exception in handlers
