"""The limiter as a proxy asks it: a judge of requests, in the words of a dialect."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

from ratelimiter.core.algorithms.sliding_window import new
from ratelimiter.core.decision import malformed
from ratelimiter.core.headers import renderer, replaced
from ratelimiter.core.identity import NOBODY, Identity, Teller
from ratelimiter.dialects import loader, request_id
from ratelimiter.engine.limiter import Limiter
from ratelimiter.engine.observer import NULL_OBSERVER
from ratelimiter.proxy.interfaces import Verdict

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from ratelimiter.core.decision import Decision
    from ratelimiter.core.policy import Hit, Policy
    from ratelimiter.core.reply import Reply
    from ratelimiter.core.request import Request
    from ratelimiter.engine.observer import Observer
    from ratelimiter.stores.base import Store

    Header = tuple[bytes, bytes]

REMEMBERED_MAX = 1024  # refusals, about 1 kB each

# Stores whose charge waits for futures only. The others use asyncio's timeouts, which are for tasks.
NEEDING_NO_TASK = frozenset({"memory", "redis", "rediss", "unix", "redis+sentinel", "rediss+sentinel"})


class Gate:
    """The proxy's judge, and the words of its errors: a limiter and a dialect.

    Args:
        policy: what is admitted, and how refusals are written.
        store: where it is counted.
        observer: is told every decision.
    """

    def __init__(self, policy: Policy, store: Store, *, observer: Observer = NULL_OBSERVER) -> None:
        self.limiter = Limiter(policy, store, observer=observer)
        self._in_task = policy.store.partition("://")[0].lower() not in NEEDING_NO_TASK
        self._read(policy)

    def swap(self, policy: Policy) -> None:
        """Judge and answer under *policy* from the next request on; what is counted stays.

        Raises:
            ConfigError: its dialect cannot be used; then nothing has changed.
        """
        loader.load(policy.dialect)
        self.limiter.swap(policy)
        self._read(policy)

    def _read(self, policy: Policy) -> None:
        self.policy = policy
        matches = [rule.match for rule in policy.rules] + [each.match for each in policy.requirements]
        self.looks_at_paths = any(match.looks_at_paths for match in matches)
        self.looks_at_bodies = self.limiter.looks_at_bodies
        self._refusals: dict[tuple[object, ...], Verdict] = {}
        self.dialect = loader.load(policy.dialect)
        self._render = renderer(policy.headers, expose=policy.expose_headers)
        self._ids = self.dialect.request_ids
        of_id = frozenset() if self._ids is None else frozenset({self._ids.header})
        self._teller = Teller(() if policy.identity is None else policy.identity.tell_upstream)
        self.reserved_request = of_id | self._teller.names
        self.reserved_response = replaced(policy.headers) | of_id

    def body_wanted(self, request: Request) -> int:
        """How much of the body is to be seen; see `ratelimiter.proxy.interfaces.Judge`."""
        return self.limiter.body_wanted(request)

    async def judge(self, request: Request) -> Verdict:
        """The verdict on *request*; see `ratelimiter.proxy.interfaces.Judge`."""
        identity = await self.limiter.identified(request) if self.limiter.identifies else NOBODY
        deciding = self.limiter.decide(request, (), identity)
        decision, hits = await (asyncio.ensure_future(deciding) if self._in_task else deciding)
        if self.limiter.settles:
            return self._followed(self._verdict(request, decision, identity), decision, hits)
        return self._verdict(request, decision, identity)

    def _followed(self, verdict: Verdict, decision: Decision, hits: Sequence[Hit]) -> Verdict:
        follower = self.limiter.follow(decision, hits)
        if follower is None:
            return verdict
        if verdict.reply is not None:
            follower.refused(verdict.reply.status)
            return verdict
        return verdict._replace(follower=follower)

    def _verdict(self, request: Request, decision: Decision, identity: Identity) -> Verdict:
        told: Sequence[Header] = ()
        if self._teller.names and decision.allowed:
            told = self._teller.headers(self.limiter.placed(request, identity))
        if self._ids is None:
            if decision.allowed:
                return new(Verdict, (None, self._render(decision), told, "", None))
            return self._refused(decision)
        identifier, of_id = self._id(request.headers)
        headers = [*self._render(decision), *of_id]
        if decision.allowed:
            return Verdict(None, headers, [*of_id, *told], identifier)
        return Verdict(self.dialect.refusal(decision, identifier), headers, of_id, identifier)

    def _refused(self, decision: Decision) -> Verdict:
        """The verdict of a refusal that bears no id. A flood is refused in the same words for a second, so these are
        remembered by all the numbers that they speak of.
        """
        if len(decision.outcomes) != 1 or decision.fault is not None:
            return Verdict(self.dialect.refusal(decision), self._render(decision), (), "")
        rule, remaining, reset_ms, retry_after_ms = decision.outcomes[0]
        wait_ms, now_ms = retry_after_ms or 0, decision.now_ms
        key = (
            decision.reason,
            decision.missing,
            rule.name,
            rule.quota,  # which plans and overrides change
            remaining,
            retry_after_ms is None,
            -(-reset_ms // 1000),
            -(-wait_ms // 1000),
            -(-(now_ms + reset_ms) // 1000),
            -(-(now_ms + wait_ms) // 1000),
        )
        verdict = self._refusals.get(key)
        if verdict is None:
            if len(self._refusals) >= REMEMBERED_MAX:
                self._refusals.clear()
            verdict = Verdict(self.dialect.refusal(decision), self._render(decision), (), "")
            self._refusals[key] = verdict
        return verdict

    def error(
        self, status: int, fault: tuple[str, str], verdict: Verdict | None, headers: Iterable[Header]
    ) -> tuple[Reply, Verdict]:
        """An answer that the proxy gives by itself; see `ratelimiter.proxy.interfaces.ErrorWriter`."""
        if verdict is None:
            identifier, of_id = self._id(headers)
            verdict = Verdict(None, of_id, of_id, identifier)
        if status == 400:
            return self.dialect.refusal(malformed(0, *fault), verdict.request_id), verdict
        return self.dialect.reply_for_status(status, request_id=verdict.request_id), verdict

    def trusts(self, peer: str | None) -> bool:
        """Whether *peer*, None on a unix socket, may speak for others."""
        return self.policy.trust.trusts_peer(peer)

    def _id(self, headers: Iterable[Header]) -> tuple[str, list[Header]]:
        ids = self._ids
        if ids is None:
            return "", []
        identifier = request_id.choose(ids, headers)
        return identifier, [(ids.header, identifier.encode())]
