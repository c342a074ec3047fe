"""The limiter as ASGI middleware: judge first, then let the application answer or answer in its place."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Any, Unpack

from ratelimiter.asgi.assembly import Assembly
from ratelimiter.asgi.body import BodyReader
from ratelimiter.asgi.caller import identified
from ratelimiter.asgi.lifespan import built_at_startup, faulty, serve_lifespan
from ratelimiter.asgi.refusal import refuse
from ratelimiter.asgi.request_state import SCOPE_KEY, RequestState
from ratelimiter.asgi.response_hook import Drain, SettlingSend
from ratelimiter.asgi.scope import handles_errors, request_of
from ratelimiter.core.cors import ANSWER
from ratelimiter.errors import ConfigError

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from ratelimiter.asgi.assembly import Settings
    from ratelimiter.asgi.caller import Identify
    from ratelimiter.core.policy import Policy
    from ratelimiter.engine.observer import DecisionObserver, Observer

    # As frameworks type them, whose checkers would refuse anything narrower.
    Scope = Any
    Message = Any
    Receive = Callable[[], Awaitable[Message]]
    Send = Callable[[Message], Awaitable[None]]
    ASGIApp = Callable[[Scope, Receive, Send], Awaitable[Any]]


class RateLimitMiddleware:
    """Admits what the policy admits; answers everything else itself, in the dialect, without calling the application.

    Args:
        app: the ASGI application behind it.
        identify: returns the caller of a scope, sync or async: text, a number, a `Caller`, or None if it is unknown. It
            is charged as `identified`, the principal if none is given. What it raises is an error of the application.
        observer: is told every decision; an `Observer` also of policies, reloads, runtime overrides and the store.
        reload: True if a changed policy file, and the files that it names, takes effect while the application runs. A
            file that cannot be used does not; counters stay.
        settings: `limit`, one limit or several like `60/minute`; or `config`, a policy file or a `Policy`; and any
            other field of a policy file by its name there (docs/reference/policy.md). What is given here wins over the
            file, the file over the environment (`RATELIMITER_STORE`, ...).

    Attributes:
        limiter: judges requests.

    Raises:
        ConfigError: an argument or the file cannot be used.
    """

    def __init__(
        self,
        app: ASGIApp,
        *,
        identify: Identify | None = None,
        observer: Observer | DecisionObserver | None = None,
        reload: bool = True,
        **settings: Unpack[Settings],
    ) -> None:
        self.app = app
        if identify is not None and settings.get("principal") is None and settings.get("config") is None:
            settings["principal"] = ["identified", "client"]
        self._identify = identify
        self._fault = ""
        try:
            self._assembly = Assembly(settings, observer=observer, reload=reload)
        except ConfigError as fault:
            if not built_at_startup(sys._getframe(1)):
                raise
            self._fault = str(fault)  # told as the server starts, which an exception now would not stop
            self._assembly = faulty(fault)
        self.limiter = self._assembly.limiter

    def swap(self, policy: Policy) -> None:
        """Judge and answer under *policy* from the next request on; what is counted stays.

        Raises:
            ConfigError: its dialect cannot be used, or it says something else of the store; then nothing has changed.
        """
        self._assembly.swap(policy)

    async def close(self) -> None:
        """Tell the store all there is to tell, and let go of what was begun: of the store, too, if it was opened here.

        Done by itself where the server speaks lifespan. A request that comes after all begins everything anew.
        """
        await self._assembly.close()

    async def __call__(  # noqa: C901, PLR0912, PLR0915  # the hot path: one coroutine more costs as much as a dozen branches
        self, scope: Scope, receive: Receive, send: Send
    ) -> Any:
        """Serve one connection scope; anything but http and websocket is the application's own."""
        kind = scope["type"]
        assembly = self._assembly
        if kind not in ("http", "websocket"):
            if kind == "lifespan":
                return await serve_lifespan(self, self._fault, scope, receive, send)
            return await self.app(scope, receive, send)
        if assembly.timed:
            assembly.begin()
        presenter, limiter = assembly.presenter, self.limiter
        cors = presenter.cors
        if cors is not None and cors.is_preflight(scope.get("method", ""), scope.get("headers", ())):
            if cors.preflights == ANSWER:
                return await refuse(scope, receive, send, cors.preflight(scope["headers"]), "")
            return await self.app(scope, receive, send)
        body = BodyReader()
        body.receive = receive
        outer: RequestState | None = scope.get(SCOPE_KEY)
        identity = None if self._identify is None else await identified(self._identify, scope)
        if outer is None:
            judgement = await limiter.judge(request_of(scope), body=body, identity=identity)
            identifier = "" if presenter.id_header is None else presenter.request_id(scope.get("headers", ()))
            state = scope[SCOPE_KEY] = RequestState(presenter, limiter, judgement, identifier)
            send = state.sender(send)
        else:  # another limiter further out has let it through, and writes the headers of all decisions at once
            state = outer
            judgement = await limiter.judge(request_of(scope), body=body, charged=state.charged, identity=identity)
            state.add(limiter, judgement)
        decision, _, known, pending = judgement
        if not decision.allowed:
            limiter.refused(decision, state.request_id, scope.get("method", "GET"))
            reply = presenter.refusal(decision, state.request_id)
            if cors is not None:
                ours = [*reply.headers, *presenter.cors_headers(scope.get("headers", ()))]
                reply = reply._replace(headers=ours)
            if pending is not None:
                pending.refused(reply.status)
            return await refuse(scope, body.receive, send, reply, decision.reason)
        if presenter.tells_identity:
            scope["headers"] = presenter.identity_headers.replaced(scope.get("headers", ()), known)
        receive, settling, drain, failed = body.receive, None, None, False
        if pending is not None:
            send = settling = SettlingSend(send, pending)
            if pending.drains:
                drain = Drain(receive, send, pending)
                receive, send = drain.receive, drain.send
        try:
            return await self.app(scope, receive, send)
        except Exception:
            failed = True
            if pending is not None:
                pending.responded(500, ())
            # A framework answers this outside of us, so past our headers, and raises on; servers do no better. Where
            # the application has said how, it is left to.
            if outer is None and kind == "http" and not state.started and not handles_errors(scope):
                await refuse(scope, body.receive, send, presenter.error(500, state.request_id), "")
            raise
        finally:
            if settling is not None:
                settling.ended(failed=failed)
            if drain is not None:
                drain.end()

    def begin(self) -> None:
        """Watch the policy file and the runtime overrides on the running event loop, if they are not watched yet."""
        if self._assembly.timed:
            self._assembly.begin()
