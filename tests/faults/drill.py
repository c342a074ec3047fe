"""One fault under traffic: three limiters, one per failure mode, each the whole chain that production runs, asked all
the time by callers who check every answer.
"""

from __future__ import annotations

import asyncio
import contextlib
import gc
import os
import secrets
import time
from collections import Counter
from contextvars import ContextVar
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, Self

from ratelimiter.asgi.middleware import RateLimitMiddleware
from ratelimiter.core.match import Match
from ratelimiter.core.policy import Policy
from ratelimiter.core.principal import parse_source
from ratelimiter.core.quota import Quota
from ratelimiter.core.receipt import FAIL_CLOSED, FAIL_OPEN, LOCAL, REMEMBERED, STORE
from ratelimiter.core.rule import OnStoreError, Rule
from ratelimiter.stores.factory import store_for
from ratelimiter.stores.fallback import FallbackStore
from ratelimiter.stores.refusal_cache import RefusalCache
from tests.asgi_client import http_scope, send_request
from tests.faults.records import RECORDS, Record

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from ratelimiter.core.decision import Decision
    from ratelimiter.core.rule import Hit
    from ratelimiter.stores.base import Store

DEADLINE_MS = 50
# What a decision may take beyond its deadline. 10 ms are for timers and for the callers of this test, who share one
# event loop with three limiters, a proxy and a stopwatch; the rest is for a machine of two cores that runs other suites
# as well: the time that our process was ready to run and did not get the processor is taken off first (`Stopwatch`),
# but a virtual machine has pauses that no guest can see.
SLACK_MS = 50
RECOVERY_MS = 1000  # after the fault's end the store is asked again
WIDE = 1_000_000  # units that no drill uses up
TIGHT = 20  # requests that every drill uses up
LOCAL_SHARE = 0.5
WINDOW_MS = 60_000
# Each caller pays a prime of his own, so a tally that is not a multiple of it is somebody else's.
COSTS = (101, 103, 107)
BURSTS = {107: 2}  # with a burst a request has two keys
PACE_S = 0.01  # between an answer and the same caller's next request
ENOUGH = 10  # answers in a row that settle what state a limiter is in
PATIENCE_S = 10.0

STAND_INS = {OnStoreError.ALLOW: FAIL_OPEN, OnStoreError.DENY: FAIL_CLOSED, OnStoreError.LOCAL: LOCAL}
HEALTHY = (STORE, REMEMBERED)

_decided: ContextVar[list[Decision]] = ContextVar("decided")


class Watcher:
    """Hands the caller the decision that its answer was made of."""

    def decided(self, decision: Decision, hits: Sequence[Hit], seconds: float) -> None:
        _decided.get().append(decision)


class Stopwatch:
    """Time on the wall, and how much of it others had the processor although we were ready to run."""

    _path = Path("/proc/thread-self/schedstat")

    def __init__(self) -> None:
        self.begun_s = time.monotonic()
        self._queued_s = self._queued()

    def _queued(self) -> float:
        try:
            return int(self._path.read_text().split()[1]) / 1e9
        except (OSError, IndexError):  # not every kernel tells
            return 0.0

    def read_ms(self) -> tuple[float, float]:
        """Without that time, and with it."""
        raw_s = time.monotonic() - self.begun_s
        return (raw_s - min(raw_s, self._queued() - self._queued_s)) * 1000, raw_s * 1000


class Sample(NamedTuple):
    """One request and its answer."""

    mode: OnStoreError
    path: str
    begun_s: float
    took_ms: float
    raw_ms: float
    status: int
    source: str

    @property
    def ended_s(self) -> float:
        return self.begun_s + self.raw_ms / 1000


def rules(mode: OnStoreError, window_ms: int) -> tuple[Rule, ...]:
    """One rule for each caller who is never refused, and one for the caller who mostly is."""
    principal = (parse_source("header:X-API-Key"),)
    return (
        *(
            Rule(
                f"wide-{cost}",
                Quota(WIDE, window_ms),
                match=Match(path=f"/wide/{cost}"),
                principal=principal,
                cost=cost,
                burst=BURSTS.get(cost, 0),
                on_store_error=mode,
                lease=0,  # each request asks, so that each tally is a number of requests
            )
            for cost in COSTS
        ),
        Rule("tight", Quota(TIGHT, window_ms), match=Match(path="/tight"), principal=principal, on_store_error=mode),
    )


async def application(scope: Any, receive: Any, send: Any) -> None:
    await send({"type": "http.response.start", "status": 200, "headers": []})
    await send({"type": "http.response.body", "body": b"served"})


class Service:
    """One limiter as production runs it: the middleware, and what guards its store.

    Args:
        url: of the store.
        mode: what happens without it, for every rule.
        inner: instead of the store that *url* names.
        window_ms: of every rule.
        forgetful: whether the store may lose tallies.
    """

    def __init__(
        self,
        url: str,
        mode: OnStoreError,
        *,
        inner: Store | None = None,
        window_ms: int = WINDOW_MS,
        forgetful: bool = False,
    ) -> None:
        self.mode = mode
        self.forgetful = forgetful
        self.policy = Policy(
            rules(mode, window_ms),
            name=mode.value,
            store=url,
            decision_timeout_ms=DEADLINE_MS,
            local_share=LOCAL_SHARE,
            secret=b"secret of the digests",
        )
        store = RefusalCache(FallbackStore(inner, local_share=LOCAL_SHARE)) if inner else store_for(self.policy)
        assert isinstance(store, RefusalCache)
        assert isinstance(store._store, FallbackStore)
        self.store, self.guarded = store, store._store
        self.app = RateLimitMiddleware(application, config=self.policy, store=store, observer=Watcher())
        self.samples: list[Sample] = []
        self.admitted: Counter[str] = Counter()  # of the tight rule, by source
        self.issued: Counter[tuple[str, str]] = Counter()  # requests by path and principal
        self.answered: Counter[tuple[str, str]] = Counter()  # those that the store has admitted
        self.mistakes: list[str] = []

    async def ask(self, path: str, principal: str, cost: int = 1) -> Sample:
        """One request, its answer checked."""
        asked = path, principal
        decisions: list[Decision] = []
        _decided.set(decisions)
        self.issued[asked] += 1
        answered = self.answered[asked]
        watch = Stopwatch()
        answer = await send_request(self.app, http_scope(target=path, headers={"X-API-Key": principal}))
        took_ms, raw_ms = watch.read_ms()
        assert answer.error is None, answer.error
        sample = Sample(self.mode, path, watch.begun_s, took_ms, raw_ms, answer.status, decisions[0].source)
        self.samples.append(sample)
        if path == "/tight" and answer.status == 200:
            self.admitted[sample.source] += 1
        if sample.source in (STORE, LOCAL) and answer.status == 200:
            limit = int(answer.line("x-ratelimit-limit") or 0)
            room = limit if sample.source == STORE else int(limit * LOCAL_SHARE)
            used = room - int(answer.line("x-ratelimit-remaining") or 0)
            self._check_tally(asked, used, cost, answered, sample.source)
            if sample.source == STORE:
                self.answered[asked] += 1
        if answer.status == 503 and not int(answer.line("retry-after") or 0):
            self.mistakes.append("a 503 that does not say when to come back")
        self._check_label(sample)
        return sample

    def _check_tally(self, asked: tuple[str, str], used: int, cost: int, answered: int, source: str) -> None:
        """Its own tally: of its own cost, of no request that was not made, of every one that was admitted.

        A local tally begins with the share of what the store last said, rounded up, so it is checked in wholes.
        """
        least = answered + 1 if source == STORE and not self.forgetful else 1
        most, over = self.issued[asked], 0
        if source == LOCAL:
            used, most, over = int(used / LOCAL_SHARE), int(most / LOCAL_SHARE), int(1 / LOCAL_SHARE) - 1
        if used % cost > over or not least <= used // cost <= most:
            self.mistakes.append(f"{asked[0]} of cost {cost}: {used} used by {source}, {least} to {most} times")

    def _check_label(self, sample: Sample) -> None:
        expected = {
            STORE: (200, 429),
            REMEMBERED: (429,),
            FAIL_OPEN: (200,),
            FAIL_CLOSED: (503,),
            LOCAL: (200, 429),
        }[sample.source]
        if sample.source not in (*HEALTHY, STAND_INS[self.mode]) or sample.status not in expected:
            self.mistakes.append(f"{sample.status} from {sample.source} at mode {self.mode}")

    def since(self, begun_s: float) -> list[Sample]:
        """The answers to requests made after *begun_s*."""
        return [sample for sample in self.samples if sample.begun_s >= begun_s]

    def settled(self, begun_s: float) -> bool:
        """Whether the last answers to requests made after *begun_s*, some of each caller, are all the store's."""
        last = [sample.source in HEALTHY for sample in self.since(begun_s)][-ENOUGH:]
        return len(last) == ENOUGH and all(last) and self.paused_s(begun_s) < PATIENCE_S

    def paused_s(self, begun_s: float) -> float:
        """How long after *begun_s* the store answered for good."""
        degraded = [sample.ended_s for sample in self.since(begun_s) if sample.source not in HEALTHY]
        last_s = max(degraded, default=begun_s)
        back = [sample.ended_s for sample in self.since(begun_s) if sample.source == STORE and sample.ended_s >= last_s]
        return min(back) - begun_s if back and degraded else 0.0 if not degraded else PATIENCE_S


class Drill:
    """Traffic on three services while something goes wrong. Use as `async with`.

    Args:
        url: of the store.
        window_ms: of every rule.
        modes: which services there are.
        inner: makes the store that is guarded, instead of the one that *url* names.
        losses: how often the store may forget its tallies: each time may admit a limit once more.
    """

    def __init__(
        self,
        url: str,
        *,
        window_ms: int = WINDOW_MS,
        modes: tuple[OnStoreError, ...] = tuple(OnStoreError),
        inner: Callable[[], Store] | None = None,
        losses: int = 0,
    ) -> None:
        self.losses = losses
        self.token = secrets.token_hex(8)  # in every principal's name, and never in a log
        self.services = {
            mode: Service(url, mode, window_ms=window_ms, inner=inner() if inner else None, forgetful=bool(losses))
            for mode in modes
        }
        self.begun_s = 0.0  # when the fault began
        self.ended_s = 0.0
        self.recovery_ms: float | None = None  # None while there was nothing to recover from
        self.fds_max = self.tasks_max = 0
        self._stop = asyncio.Event()
        self._tasks: list[asyncio.Task[None]] = []

    async def __aenter__(self) -> Self:
        gc.collect()  # a pause for the garbage of other tests is not the product's
        gc.freeze()
        self._fds = len(os.listdir("/proc/self/fd"))
        self._others = len(asyncio.all_tasks())
        for service in self.services.values():
            for cost in COSTS:
                self._start(self._call(service, f"/wide/{cost}", self.principal(service, str(cost)), cost))
            self._start(self._call(service, "/tight", self.principal(service, "greedy"), 1))
        self._start(self._watch())
        return self

    async def __aexit__(self, *_: object) -> None:
        self._stop.set()
        results = await asyncio.gather(*self._tasks, return_exceptions=True)
        for service in self.services.values():
            await service.store.close()
        gc.unfreeze()
        for result in results:
            if isinstance(result, BaseException):
                raise result

    def principal(self, service: Service, name: str) -> str:
        """Who the caller called *name* of *service* is charged as."""
        return f"key-{self.token}-{service.mode}-{name}"

    def _start(self, running: Any) -> None:
        self._tasks.append(asyncio.create_task(running))

    async def _call(self, service: Service, path: str, principal: str, cost: int) -> None:
        while not self._stop.is_set():
            await service.ask(path, principal, cost)
            await asyncio.sleep(PACE_S)

    async def _watch(self) -> None:
        while not self._stop.is_set():
            self.fds_max = max(self.fds_max, len(os.listdir("/proc/self/fd")) - self._fds)
            self.tasks_max = max(self.tasks_max, len(asyncio.all_tasks()) - self._others - len(self._tasks))
            await asyncio.sleep(0.02)

    async def until(self, condition: Callable[[], object], what: str, within_s: float = PATIENCE_S) -> None:
        """Let traffic flow until *condition* holds."""
        end_s = time.monotonic() + within_s
        while not condition():
            for task in self._tasks:
                if task.done() and not self._stop.is_set():
                    await task  # raises what ended it
            if time.monotonic() > end_s:
                seen = {mode.value: self.sources(service.samples[-50:]) for mode, service in self.services.items()}
                faults = {mode.value: dict(service.guarded.faults) for mode, service in self.services.items()}
                msg = f"not within {within_s} s: {what}; last answers {seen}, faults {faults}"
                raise AssertionError(msg)
            await asyncio.sleep(0.005)

    async def until_told(self, condition: Callable[[], object], what: str, within_s: float = 30) -> None:
        """Let traffic flow until *condition* holds, which asks servers: in a thread, and seldom, as threads share one
        interpreter.
        """
        end_s = time.monotonic() + within_s
        while not await asyncio.to_thread(condition):
            assert time.monotonic() < end_s, f"not within {within_s} s: {what}"
            await asyncio.sleep(0.05)

    @staticmethod
    def sources(samples: list[Sample]) -> dict[str, int]:
        return dict(Counter(sample.source for sample in samples))

    async def settled(self) -> None:
        """Wait until the store decides in every service."""
        begun_s = time.monotonic()
        await self.until(
            lambda: all(service.settled(begun_s) for service in self.services.values()), "the store decides"
        )
        await self.until(
            lambda: all(s.issued["/tight", self.principal(s, "greedy")] >= TIGHT for s in self.services.values()),
            "the limit is used up",
        )

    @contextlib.contextmanager
    def fault(self) -> Iterator[None]:
        """What goes wrong begins here, and is over at the end."""
        self.begun_s = time.monotonic()
        yield
        self.ended_s = time.monotonic()

    async def endured(self, answers: int = 40, at_least_s: float = 0.5) -> None:
        """Wait until every service has made so many decisions without the store, and probed it twice; return just after
        a probe has failed, the worst moment for a fault to end.
        """

        def enough() -> bool:
            degraded = [
                sum(sample.source not in HEALTHY for sample in service.since(self.begun_s))
                for service in self.services.values()
            ]
            return min(degraded) >= answers and time.monotonic() - self.begun_s >= at_least_s

        await self.until(enough, "decisions without the store")
        failed = self.kinds().total()
        await self.until(lambda: self.kinds().total() > failed, "a probe fails")

    async def flowed(self, for_s: float = 0.5) -> None:
        """Let traffic flow for a while: of a fault that nobody may notice there is no sign to wait for."""
        await asyncio.sleep(for_s)

    async def recovered(self) -> float:
        """Wait until the store decides for good in every service; how long after the fault's end that began."""
        assert self.ended_s
        await self.until(
            lambda: all(service.settled(self.ended_s) for service in self.services.values()), "the store decides again"
        )
        took_s = max(service.paused_s(self.ended_s) for service in self.services.values())
        self.recovery_ms = max(self.recovery_ms or 0.0, took_s * 1000)
        return self.recovery_ms

    def samples(self) -> list[Sample]:
        return [sample for service in self.services.values() for sample in service.samples]

    def during(self) -> list[Sample]:
        """The answers to requests made while it was wrong; of the last of them it had already ended."""
        end_s = self.ended_s or time.monotonic()
        return [sample for sample in self.samples() if self.begun_s <= sample.begun_s and sample.ended_s < end_s]

    def kinds(self) -> Counter[str]:
        """How often each kind of error has come from the store."""
        return sum((service.guarded.faults for service in self.services.values()), Counter[str]())

    def check(self, row: int, how: str, *, fds: int = 4, stall_ms: int = 0, crowd: int = 0) -> Record:
        """Every promise that holds whatever the fault was; keeps the record.

        Args:
            row: of the matrix.
            how: the fault, as it was produced.
            fds: sockets that one service may have open at a time.
            crowd: callers at a time beside those of the drill itself.
            stall_ms: how long our own event loop was made to stand still.
        """
        samples = self.samples()
        slowest = max(samples, key=lambda sample: sample.took_ms)
        mistakes = [mistake for service in self.services.values() for mistake in service.mistakes]
        assert not mistakes, (len(mistakes), mistakes[:5])
        assert slowest.took_ms <= DEADLINE_MS + SLACK_MS + stall_ms, slowest
        assert self.fds_max <= fds * len(self.services), self.fds_max
        # Each service may be connecting, which is a task or three, and probing, which is one; and no more.
        assert self.tasks_max - crowd <= 7 * len(self.services), self.tasks_max
        for mode, service in self.services.items():
            assert service.admitted[STORE] <= TIGHT * (1 + self.losses), (mode, service.admitted)
            assert service.admitted[LOCAL] <= TIGHT * LOCAL_SHARE, (mode, service.admitted)
        assert self.recovery_ms is None or self.recovery_ms <= RECOVERY_MS, self.recovery_ms
        record = Record(
            row,
            how,
            slowest.took_ms,
            max(sample.raw_ms for sample in samples),
            self._outcome(),
            ", ".join(f"{m} {sum(s.admitted.values())}" for m, s in self.services.items()),
            self.recovery_ms,
        )
        RECORDS.append(record)
        return record

    def _outcome(self) -> str:
        """Who made the decisions while it was wrong; of a fault that was but a moment, until all was well again."""
        until_s = self.ended_s + (self.recovery_ms or 0) / 1000
        during = self.during() or [s for s in self.samples() if self.begun_s <= s.begun_s <= until_s]
        seen = sorted({sample.source for sample in during or self.samples() if sample.source != REMEMBERED})
        kinds = ", ".join(sorted(self.kinds()))
        return " / ".join(seen) + (f" ({kinds})" if kinds else "")
