"""The engine as the doors of the service ask it: requests by way of a proxy's judge, descriptors by their hits."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from ratelimiter.core.descriptors import DescriptorPlanner
from ratelimiter.core.identity import NOBODY
from ratelimiter.core.overrides import BlockedError
from ratelimiter.core.planner import reader_for
from ratelimiter.core.request import MalformedRequest
from ratelimiter.engine.observer import NULL_OBSERVER
from ratelimiter.service.deadlines import Deadlines
from ratelimiter.sidecar.judge import NEEDING_NO_TASK, LimiterJudge

if TYPE_CHECKING:
    import asyncio
    from collections.abc import Sequence

    from ratelimiter.core.decision import Decision
    from ratelimiter.core.policy import Policy
    from ratelimiter.core.receipt import Receipt
    from ratelimiter.core.reply import Reply
    from ratelimiter.core.request import Request
    from ratelimiter.core.rule import Hit
    from ratelimiter.core.settlement import Settlement
    from ratelimiter.engine.observer import Observer
    from ratelimiter.proxy.interfaces import Verdict
    from ratelimiter.stores.base import Store

    Header = tuple[bytes, bytes]


class Decided(NamedTuple):
    """The result of a request, with everything that a caller may want to know of it."""

    decision: Decision
    hits: Sequence[Hit]
    reply: Reply | None  # to send in place of the application's; None if the request is admitted
    headers: Sequence[Header]  # for the response, the application's or `reply`
    sent_on: Sequence[Header]  # for the request, if it is admitted


class Charged(NamedTuple):
    """The result of a charge of descriptors."""

    decision: Decision
    receipt: Receipt


class Decider:
    """A limiter, its words, and the descriptors of its policy.

    Args:
        policy: what is admitted, and how refusals are written.
        store: where it is counted.
        loop: that all of it runs on.
        observer: is told every decision.

    Attributes:
        gate: judges requests.
        descriptors: the rules on descriptors, ready to be asked; another object after each change of the policy.
    """

    def __init__(
        self, policy: Policy, store: Store, loop: asyncio.AbstractEventLoop, *, observer: Observer | None = None
    ) -> None:
        self.gate = LimiterJudge(policy, store, observer=observer or NULL_OBSERVER)
        self._observer = observer
        scheme = policy.store.partition("://")[0].lower()
        self._loop = loop
        self._deadlines = Deadlines(
            store, loop, policy.decision_timeout_ms / 1000, in_task=scheme not in NEEDING_NO_TASK
        )
        self._read(policy)

    @property
    def missed(self) -> int:
        """The number of decisions made without the store for want of time."""
        return self._deadlines.missed

    @property
    def policy(self) -> Policy:
        """The policy in force."""
        return self.gate.policy

    def swap(self, policy: Policy) -> None:
        """Judge and answer under *policy* from now on.

        Raises:
            ConfigError: it cannot be used; then nothing has changed.
        """
        self.gate.swap(policy)
        self._read(policy)

    def _read(self, policy: Policy) -> None:
        self.descriptors = DescriptorPlanner(policy, reader_for(policy))

    async def judge(self, request: Request) -> Verdict:
        """Return the verdict on *request*."""
        return await self.gate.judge(request)

    async def decide(self, request: Request, cost: int | None = None) -> Decided:
        """Return the decision on *request*; *cost* units, if given, are charged in place of what the rules say.

        The caller settles what is settled: leases that it does not settle lapse by themselves.
        """
        limiter, presenter = self.gate.limiter, self.gate.presenter
        hits: Sequence[Hit] = () if cost is None else await self._priced(request, cost)
        if hits:
            decision, identity = (await self.charge(hits, None)).decision, NOBODY
            self.tell(decision, hits, 0.0)
        else:
            decision, hits, identity, pending = await limiter.judge(request)
            if pending is not None:
                pending.forget()  # the caller has a token instead
        identifier = presenter.request_id(request.headers)
        of_id = presenter.id_headers(identifier)
        if decision.allowed:
            told = [*of_id, *presenter.upstream_headers(identity)]
            return Decided(decision, hits, None, [*presenter.headers(decision), *of_id], told)
        reply, headers = presenter.refused(decision, identifier)
        return Decided(decision, hits, reply, [*headers, *of_id], of_id)

    async def _priced(self, request: Request, cost: int) -> Sequence[Hit]:
        """Return what *request* is charged at *cost* units; nothing if it is for the limiter to say what is wrong."""
        try:
            hits, requirements = await self.gate.limiter.matched(request)
        except (MalformedRequest, BlockedError):
            return ()
        return () if requirements else [hit._replace(cost=cost) if hit.cost else hit for hit in hits]

    async def charge(self, hits: Sequence[Hit], due_s: float | None) -> Charged:
        """Charge *hits* or none, with an answer before *due_s* on the event loop's clock."""
        receipt = await self._deadlines.charge(hits, due_s)
        return Charged(self.gate.limiter.conclude(hits, receipt), receipt)  # the kill switch is in there

    def tell(self, decision: Decision, hits: Sequence[Hit], seconds: float) -> None:
        """Tell the observer of *decision*."""
        if self._observer is not None:
            self._observer.decided(decision, hits, seconds)

    async def settle(self, settlements: Sequence[Settlement], source: str) -> None:
        """Give back, or charge more, of what was charged."""
        await self.gate.limiter.store.settle(settlements, source)

    def headers(self, decision: Decision) -> list[Header]:
        """Return the rate limit headers of *decision*."""
        return self.gate.presenter.headers(decision)

    def refusal(self, decision: Decision) -> tuple[Reply, Sequence[Header]]:
        """Return the dialect's reply to what *decision* refuses, and the headers that go with it."""
        presenter = self.gate.presenter
        identifier = presenter.request_id(())
        reply, headers = presenter.refused(decision, identifier)
        return reply, [*headers, *presenter.id_headers(identifier)] if identifier else headers

    async def close(self) -> None:
        """Send what is settled, and close the store."""
        await self.gate.limiter.close()
