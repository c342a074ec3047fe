"""The proxy's judge: a limiter, and the presenter of its policy."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

from ratelimiter.core.cors import ANSWER
from ratelimiter.core.receipt import new
from ratelimiter.engine.limiter import Limiter
from ratelimiter.engine.observer import NULL_OBSERVER
from ratelimiter.engine.presenter import Presenter
from ratelimiter.proxy.interfaces import Verdict

if TYPE_CHECKING:
    from collections.abc import Iterable

    from ratelimiter.core.policy import Policy
    from ratelimiter.core.reply import Reply
    from ratelimiter.core.request import Request
    from ratelimiter.engine.observer import Observer
    from ratelimiter.stores.base import Store

    Header = tuple[bytes, bytes]

# Stores whose charge waits for futures only. The others use asyncio's timeouts, which are for tasks.
NEEDING_NO_TASK = frozenset({"memory", "redis", "rediss", "unix", "redis+sentinel", "rediss+sentinel"})


class LimiterJudge:
    """The proxy's judge, which renders the proxy's own errors, too.

    Args:
        policy: rules, dialect and header families.
        store: keeps the tallies.
        observer: of the decisions.

    Attributes:
        limiter: judges.
        presenter: words the answers.
    """

    def __init__(self, policy: Policy, store: Store, *, observer: Observer = NULL_OBSERVER) -> None:
        self.limiter = Limiter(policy, store, observer=observer)
        self._in_task = policy.store.partition("://")[0].lower() not in NEEDING_NO_TASK
        self._present(Presenter(policy))

    def swap(self, policy: Policy) -> None:
        """Judge and answer under *policy* from the next request on; what is counted stays.

        Raises:
            ConfigError: its dialect cannot be used; then nothing has changed.
        """
        presenter = Presenter(policy)
        self.limiter.swap(policy)
        self._present(presenter)

    def _present(self, presenter: Presenter) -> None:
        self.presenter = presenter
        self.looks_at_paths = presenter.policy.looks_at_paths
        self.looks_at_bodies = presenter.policy.looks_at_bodies
        self.reserved_request = presenter.reserved_request
        self.reserved_response = presenter.reserved_response
        self.figures = presenter.figures

    @property
    def policy(self) -> Policy:
        """The policy in force."""
        return self.presenter.policy

    def forwarded_target(self, method: str, target: bytes) -> bytes:
        """Return the form of *target* that is forwarded; see `ratelimiter.proxy.interfaces.Judge`."""
        return self.limiter.forwarded_target(method, target)

    def body_wanted(self, request: Request) -> int:
        """Return how much of the body is to be seen; see `ratelimiter.proxy.interfaces.Judge`."""
        return self.limiter.body_wanted(request)

    async def judge(self, request: Request) -> Verdict:
        """Return the verdict on *request*; see `ratelimiter.proxy.interfaces.Judge`."""
        cors = self.presenter.cors
        if cors is not None and cors.is_preflight(request.method, request.headers):
            identifier, of_id = self._id(request.headers)
            reply = cors.preflight(request.headers) if cors.preflights == ANSWER else None
            return Verdict(reply, of_id, of_id, identifier)
        judging = self.limiter.judge(request)
        decision, _, identity, pending = await (asyncio.ensure_future(judging) if self._in_task else judging)
        presenter = self.presenter
        identifier, of_id = self._id(request.headers)
        if decision.allowed:
            headers, told = presenter.headers(decision), of_id
            if of_id:
                headers = [*headers, *of_id]
            if presenter.tells_identity:
                told = [*of_id, *presenter.upstream_headers(identity)]
            return new(Verdict, (None, headers, told, identifier, pending, None))
        self.limiter.refused(decision, identifier, request.method)
        reply, headers = presenter.refused(decision, identifier)
        if pending is not None:
            pending.refused(reply.status)
        if presenter.cors is not None:
            headers = [*headers, *presenter.cors_headers(request.headers)]
        return Verdict(reply, [*headers, *of_id] if of_id else headers, of_id, identifier, None, decision)

    def error(
        self, status: int, fault: tuple[str, str], verdict: Verdict | None, headers: Iterable[Header]
    ) -> tuple[Reply, Verdict]:
        """Render an answer of the proxy itself; see `ratelimiter.proxy.interfaces.ErrorWriter`."""
        if verdict is None:
            identifier, of_id = self._id(headers)
            verdict = Verdict(None, of_id, of_id, identifier)
        if self.presenter.cors is not None:
            verdict = verdict._replace(headers=[*verdict.headers, *self.presenter.cors_headers(headers)])
        if status == 400:
            return self.presenter.malformed(*fault, verdict.request_id), verdict
        return self.presenter.error(status, verdict.request_id), verdict

    def trusts(self, peer: str | None) -> bool:
        """Return True if *peer*, None on a unix socket, is a trusted proxy."""
        return self.policy.trust.trusts_peer(peer)

    def _id(self, headers: Iterable[Header]) -> tuple[str, list[Header]]:
        presenter = self.presenter
        if presenter.id_header is None:
            return "", []
        identifier = presenter.request_id(headers)
        return identifier, presenter.id_headers(identifier)
