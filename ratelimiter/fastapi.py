"""Limits as FastAPI dependencies: for one endpoint, a router or a whole application, by what the application knows.

    limits = RateLimits(store="redis://localhost:6379/0")
    app = FastAPI(lifespan=limits.lifespan)

    @app.get("/reports", dependencies=[limits("10/minute", by=current_user)])

Needs fastapi only when it is imported.
"""

from __future__ import annotations

import inspect
from contextlib import asynccontextmanager
from functools import wraps
from typing import TYPE_CHECKING, Any, Unpack

from fastapi import FastAPI, Response
from fastapi.params import Depends
from starlette.concurrency import run_in_threadpool
from starlette.requests import HTTPConnection

from ratelimiter.asgi.assembly import Assembly
from ratelimiter.asgi.endpoint_hook import HOOK_KEY, EndpointHook
from ratelimiter.asgi.endpoint_rules import chosen, draft_of, named, place_of
from ratelimiter.asgi.openapi import document, guards_of
from ratelimiter.asgi.refusal import refuse
from ratelimiter.asgi.request_state import SCOPE_KEY, RequestState
from ratelimiter.asgi.scope import request_of
from ratelimiter.core.caller import Caller, identity_of
from ratelimiter.core.identity import NOBODY
from ratelimiter.errors import ConfigError

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Sequence

    from ratelimiter.asgi.assembly import Settings
    from ratelimiter.asgi.endpoint_rules import Limit
    from ratelimiter.core.reply import Reply
    from ratelimiter.core.rule import Rule
    from ratelimiter.engine.observer import DecisionObserver, Observer

__all__ = ["Caller", "EndpointLimit", "RateLimits", "RefusedError"]


class RefusedError(Exception):
    """A request is over a limit of its endpoint; answered in the dialect before any other handler sees it.

    Attributes:
        reply: the answer.
        reason: `Decision.reason`.
    """

    def __init__(self, reply: Reply, reason: str) -> None:
        super().__init__(reason)
        self.reply = reply
        self.reason = reason


class _Refusal(Response):
    """The answer to a refused request, or the close of a websocket that can carry none."""

    def __init__(self, refused: RefusedError) -> None:
        super().__init__(refused.reply.body, refused.reply.status)
        self.raw_headers = list(refused.reply.headers)
        self._refused = refused

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        await refuse(scope, receive, send, self._refused.reply, self._refused.reason)


async def _answer(_connection: HTTPConnection, refused: RefusedError) -> Response:
    return _Refusal(refused)


class RateLimits:
    """Makes limits for the endpoints of an application: one store, dialect and set of headers for all of them.

    Args:
        observer: is told every decision; an `Observer` also of policies, reloads, runtime overrides and the store.
        reload: True if a changed policy file takes effect while the application runs.
        settings: as of `RateLimitMiddleware`; without `limit` and `config` the limits of endpoints are all there is,
            and without `store` they are counted in this process.

    Attributes:
        limiter: judges requests.

    Raises:
        ConfigError: an argument or the file cannot be used.
    """

    def __init__(
        self,
        *,
        observer: Observer | DecisionObserver | None = None,
        reload: bool = True,
        **settings: Unpack[Settings],
    ) -> None:
        if settings.get("store") is None and settings.get("config") is None:
            settings["store"] = "memory://"
        self._assembly = Assembly(settings, observer=observer, reload=reload, without_rules=True)
        self.limiter = self._assembly.limiter

    # --- Limits

    def __call__(
        self,
        *limits: Limit,
        by: Callable[..., Any] | None = None,
        cost: int | Callable[..., Any] = 1,
        shared: str = "",
        count: int | str | Sequence[int | str] = (),
        exempt: Callable[..., Any] | None = None,
    ) -> EndpointLimit:
        """Return a dependency that charges each request to *limits*, all or none.

        Args:
            limits: like `5/minute` or `10 concurrent`; or a limit for each plan, of which the first is the default.
            by: a dependency whose value is charged: text, a number, a `Caller`, or None for the client's address, which
                is charged without it.
            cost: units, or a dependency whose value they are.
            shared: a name under which several endpoints have one budget; each has its own without it.
            count: only responses of these statuses, like 401 or `4xx`.
            exempt: a dependency; a request for which its value is true is not limited.

        Raises:
            ConfigError: a limit cannot be read.
        """
        if not limits:
            msg = "limits: there is none; write one like 5/minute"
            raise ConfigError(msg)
        drafts = [draft_of(limit, count=count, cost=cost) for limit in limits]
        return EndpointLimit(self._assembly, drafts, shared, by=by, cost=cost, exempt=exempt)

    def rule(self, name: str, *, by: Callable[..., Any] | None = None) -> EndpointLimit:
        """Return a dependency that charges each request to the rule *name* of the policy file.

        Operations can change it without a deployment. Its conditions are not asked, as the endpoint chose it.

        Raises:
            ConfigError: there is no such rule.
        """
        known = [rule.name for rule in self.limiter.policy.rules]
        if name not in known:
            msg = f"rule: {name!r} is no rule of the policy; write {' or '.join(known) or 'a config with rules'}"
            raise ConfigError(msg)
        return EndpointLimit(self._assembly, [], name, by=by, cost=1, exempt=None)

    def limit(self, *limits: Limit, **options: Any) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
        """Return a decorator that limits an endpoint of Starlette, whose first argument is its request.

        Args:
            limits: as of a dependency.
            options: as of a dependency; what is a dependency there is a function of the request here.
        """
        guard = self(*limits, **options)

        def decorate(endpoint: Callable[..., Any]) -> Callable[..., Any]:
            @wraps(endpoint)
            async def limited(connection: HTTPConnection, *args: Any, **kwargs: Any) -> Any:
                values = [await _called(each, connection) for each in (guard.by, guard.cost, guard.exempt)]
                await guard.judge(connection, None, *values)
                return await _called(endpoint, connection, *args, **kwargs)

            return limited

        return decorate

    # --- The application

    @asynccontextmanager
    async def lifespan(self, app: FastAPI) -> AsyncIterator[None]:
        """Serve *app* with headers on limited responses, documented in its OpenAPI; close the store in the end.

        An application with a lifespan of its own enters this one in it.
        """
        if app.middleware_stack is not None and not _hooked(app):
            app.middleware_stack = EndpointHook(app.middleware_stack, self._assembly)
        document(app, self._assembly)
        try:
            yield
        finally:
            await self.close()

    def install(self, app: FastAPI) -> None:
        """Do what `lifespan` does for an application that was built already, or whose lifespan does not run."""
        app.add_middleware(EndpointHook, assembly=self._assembly)
        document(app, self._assembly)
        own = app.router.lifespan_context

        @asynccontextmanager
        async def lifespan(served: FastAPI) -> AsyncIterator[Any]:
            async with own(served) as state:
                try:
                    yield state
                finally:
                    await self.close()

        app.router.lifespan_context = lifespan

    async def close(self) -> None:
        """Send what is to be settled, and close the store if it was opened here."""
        await self._assembly.close()


class EndpointLimit(Depends):
    """A dependency that judges the requests of the endpoints that have it.

    Attributes:
        by: whose value is charged.
        cost: units, or whose value they are.
        exempt: whose value is true where nothing is limited.
    """

    def __init__(
        self,
        assembly: Assembly,
        drafts: Sequence[Sequence[tuple[str, Rule | None]]],
        shared: str,
        *,
        by: Callable[..., Any] | None,
        cost: int | Callable[..., Any],
        exempt: Callable[..., Any] | None,
    ) -> None:
        super().__init__(self)
        for name, value in (
            ("by", by),
            ("cost", cost),
            ("exempt", exempt),
            ("_assembly", assembly),
            ("_drafts", drafts),
            ("_shared", shared),
            ("_rules", {}),
            ("__signature__", _signature(by, cost, exempt)),
        ):
            object.__setattr__(self, name, value)

    by: Callable[..., Any] | None
    cost: int | Callable[..., Any]
    exempt: Callable[..., Any] | None
    _assembly: Assembly
    _drafts: Sequence[Sequence[tuple[str, Rule | None]]]
    _shared: str
    _rules: dict[tuple[str, str], tuple[Rule, ...]]

    def __hash__(self) -> int:
        return id(self)

    def __eq__(self, other: object) -> bool:
        return self is other

    async def __call__(
        self, connection: HTTPConnection, response: Response, caller: Any = None, cost: Any = None, exempted: Any = None
    ) -> None:
        """Judge the request of *connection*; FastAPI calls it with the values of the dependencies that it asks for."""
        await self.judge(connection, response, caller, cost, exempted)

    async def judge(
        self, connection: HTTPConnection, response: Response | None, caller: Any, cost: Any, exempted: Any
    ) -> None:
        """Charge the request of *connection*, or raise `RefusedError`.

        Args:
            connection: http or websocket.
            response: takes the headers where no hook does.
            caller: value of `by`.
            cost: value of `cost`, if that is a dependency.
            exempted: value of `exempt`.
        """
        if exempted:
            return
        scope = connection.scope
        identity = identity_of(caller) or NOBODY
        rules = self.rules_of(scope, identity.plan)
        if not rules:  # the caller's plan has no limit
            return
        presenter, limiter = self._assembly.presenter, self._assembly.limiter
        state: RequestState | None = scope.get(SCOPE_KEY)
        hook = scope.get(HOOK_KEY)
        if hook is None and any(rule.settles for rule in rules):
            msg = "a limit settled by the response needs FastAPI(lifespan=limits.lifespan) or limits.install(app)"
            raise RuntimeError(msg)
        judgement = await limiter.judge_rules(
            rules, request_of(scope), identity, cost=_units(cost), charged=() if state is None else state.charged
        )
        if state is None:
            identifier = presenter.request_id(scope.get("headers", ()))
            state = scope[SCOPE_KEY] = RequestState(presenter, limiter, judgement, identifier)
        else:
            state.add(limiter, judgement)
        if judgement.pending is not None and hook is not None:
            hook.append(judgement.pending)
        if not judgement.decision.allowed:
            reply = presenter.refusal(judgement.decision, state.request_id)
            if hook is None and not state.started:  # no hook will add them
                reply = reply._replace(headers=[*reply.headers, *state.headers])
            scope["starlette.exception_handlers"][0].setdefault(RefusedError, _answer)
            raise RefusedError(reply, judgement.decision.reason)
        if hook is None and response is not None:
            response.raw_headers.extend(state.headers)

    def rules_of(self, scope: Any, plan: str = "") -> tuple[Rule, ...]:
        """Return the rules that a request of *scope* on *plan* is charged to; none if that plan has no limit."""
        if not self._drafts:
            return tuple(rule for rule in self._assembly.limiter.policy.rules if rule.name == self._shared)
        place = self._shared or place_of(scope)
        rules = self._rules.get((place, plan))
        if rules is None:
            taken = [] if self._shared else self._names_before(scope)
            rules_named = []
            for draft, unit in zip(self._drafts, self.units, strict=True):
                rule = chosen(draft, plan)
                # Several limits of one kind and window at one place are told apart by their order.
                number = taken.count(unit)
                taken.append(unit)
                if rule is not None:
                    rules_named.append(named(rule, f"{place} {number}" if number else place))
            rules = self._rules[place, plan] = tuple(rules_named)
        return rules

    @property
    def units(self) -> list[str]:
        """The name of each of its limits, beside its place."""
        return [next(rule.name for _, rule in draft if rule is not None) for draft in self._drafts]

    def _names_before(self, scope: Any) -> list[str]:
        """Return the names of the endpoint's limits that stand before this one, but for shared ones."""
        names: list[str] = []
        for guard in guards_of(getattr(scope.get("route"), "dependant", None)):
            if guard is self:
                break
            if not guard._shared:
                names += guard.units
        return names


def _signature(
    by: Callable[..., Any] | None, cost: int | Callable[..., Any], exempt: Callable[..., Any] | None
) -> inspect.Signature:
    """Return what FastAPI is to call an endpoint's limit with: dependencies only where they were asked for."""
    kind = inspect.Parameter.KEYWORD_ONLY
    parameters = [
        inspect.Parameter("connection", kind, annotation=HTTPConnection),
        inspect.Parameter("response", kind, annotation=Response),
    ]
    for name, dependency in (("caller", by), ("cost", cost if callable(cost) else None), ("exempted", exempt)):
        if dependency is not None:
            # FastAPI wraps a dependency that is given as such already.
            default = dependency if isinstance(dependency, Depends) else Depends(dependency)
            parameters.append(inspect.Parameter(name, kind, default=default, annotation=Any))
    return inspect.Signature(parameters)


def _units(cost: Any) -> int | None:
    if cost is None:
        return None
    if isinstance(cost, bool) or not isinstance(cost, int) or cost < 0:
        msg = f"a cost is a whole number of units, not {cost!r}"
        raise TypeError(msg)
    return cost


async def _called(function: Any, *args: Any, **kwargs: Any) -> Any:
    """Return what *function* returns, be it a coroutine or not; what is no function has no value of its own."""
    if not callable(function):
        return None
    if inspect.iscoroutinefunction(function):
        return await function(*args, **kwargs)
    return await run_in_threadpool(function, *args, **kwargs)


def _hooked(app: FastAPI) -> bool:
    classes: list[Any] = [each.cls for each in app.user_middleware]
    return EndpointHook in classes
