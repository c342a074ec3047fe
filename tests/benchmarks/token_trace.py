"""A trace of a language model service, replayed in virtual time through the limiter, against two others.

    python -m tests.benchmarks.token_trace TRACE.csv [--callers N] [--limit N] [--speed N] [--picture FILE.png]

TRACE.csv has the columns TIMESTAMP, ContextTokens and GeneratedTokens, as in the Azure LLM inference traces (CC BY 4.0,
Microsoft Azure Public Dataset; Patel et al., Splitwise, ISCA 2024). Its requests are dealt to the callers in turn, and
each caller has the limit. A request's body has about four bytes for each of its tokens, more or less by caller, and it
asks for at most `--bound` tokens of output, so no more are made. Its answer streams them at `--pace` a second. The end
tells its usage.

Judged side by side:

* ours: the engine, with a store in this process whose clock is the trace's; reserved at admission, settled at the end;
* clairvoyant: an exact sliding log that knows the usage beforehand, and admits what fits;
* charge at the end: admitted while what has been charged is below the limit, as most gateways do.

Overspent is what a caller used in some window of a minute beyond the limit, each request dated at its admission.
"""

from __future__ import annotations

import argparse
import asyncio
import csv
import heapq
import json
import time
from collections import deque
from datetime import datetime
from itertools import count
from typing import TYPE_CHECKING, NamedTuple, Protocol

from ratelimiter.core.policy import Policy
from ratelimiter.core.principal import parse_source
from ratelimiter.core.quota import Quota
from ratelimiter.core.request import Request
from ratelimiter.core.rule import Rule
from ratelimiter.core.token_terms import TokenTerms
from ratelimiter.engine.limiter import Limiter
from ratelimiter.engine.observer import Observer
from ratelimiter.stores.memory import MemoryStore
from ratelimiter.testing import FakeClock

if TYPE_CHECKING:
    from collections.abc import Iterable
    from pathlib import Path

    from ratelimiter.core.usage import Usage
    from ratelimiter.engine.settlements import PendingRequest

WINDOW_MS = 60_000
START_MS = 1_700_000_000_000
SSE = [(b"content-type", b"text/event-stream")]


class Call(NamedTuple):
    """One request of the trace."""

    at_ms: int
    caller: int
    context: int
    generated: int

    @property
    def tokens(self) -> int:
        """What it uses."""
        return self.context + self.generated


class Limited(Protocol):
    """A way to limit."""

    async def admits(self, call: Call) -> bool:
        """Judge *call* at its moment."""

    async def ends(self, call: Call, now_ms: int) -> None:
        """Learn that *call*, which was admitted, has ended."""


class Ours(Observer):
    """The engine on a clock of ours."""

    def __init__(self, limit: int, bound: int) -> None:
        by_key = (parse_source("header:X-API-Key"),)
        rule = Rule("tokens", Quota(limit, WINDOW_MS), principal=by_key, tokens=TokenTerms("openai"))
        self.clock = FakeClock(START_MS)
        self.overdrafts = 0
        self.limiter = Limiter(Policy((rule,)), MemoryStore(clock=self.clock), clock=self.clock, observer=self)
        self._bound = bound
        self._pending: dict[Call, PendingRequest] = {}

    def used(self, rule: str, model: str, usage: Usage, reserved: int, due: int) -> None:
        """Count answers that used more than was reserved."""
        self.overdrafts += due > reserved

    async def admits(self, call: Call) -> bool:
        """Reserve by the size of the body."""
        self.clock.now_ms = START_MS + call.at_ms
        head = b'{"model":"m","max_tokens":%d}' % self._bound
        size = call.context * (340 + call.caller * 7 % 120) // 100  # 3.4 to 4.6 bytes a token, by caller
        headers = [(b"x-api-key", b"%d" % call.caller), (b"content-length", b"%d" % max(size, len(head)))]
        judgement = await self.limiter.judge(Request("POST", b"/v1/chat/completions", headers, "192.0.2.1", body=head))
        if judgement.pending is not None:
            self._pending[call] = judgement.pending
        return judgement.decision.allowed

    async def ends(self, call: Call, now_ms: int) -> None:
        """Settle by the usage at the stream's end."""
        self.clock.now_ms = START_MS + now_ms
        pending = self._pending.pop(call)
        observer = pending.responded(200, SSE)
        if observer is not None:
            usage = b'{"choices":[],"usage":{"prompt_tokens":%d,"completion_tokens":%d}}'
            observer(b"data: " + usage % (call.context, call.generated) + b"\n\ndata: [DONE]\n\n")
        pending.ended(True, False)
        await self.limiter.settled()


class Log:
    """An exact sliding log of tokens for each caller."""

    def __init__(self, limit: int) -> None:
        self.limit = limit
        self._logs: dict[int, deque[tuple[int, int]]] = {}
        self._sums: dict[int, int] = {}

    def used(self, caller: int, now_ms: int) -> int:
        """Return the tokens in the window that ends now."""
        log = self._logs.setdefault(caller, deque())
        while log and log[0][0] <= now_ms - WINDOW_MS:
            self._sums[caller] -= log.popleft()[1]
        return self._sums.setdefault(caller, 0)

    def add(self, caller: int, now_ms: int, tokens: int) -> None:
        """Note that *tokens* were used."""
        self.used(caller, now_ms)
        self._logs[caller].append((now_ms, tokens))
        self._sums[caller] += tokens


class Clairvoyant(Log):
    """Knows what a call will use."""

    async def admits(self, call: Call) -> bool:
        """Admit what fits."""
        fits = self.used(call.caller, call.at_ms) + call.tokens <= self.limit
        if fits:
            self.add(call.caller, call.at_ms, call.tokens)
        return fits

    async def ends(self, call: Call, now_ms: int) -> None:
        """Know it already."""


class ChargeAtTheEnd(Log):
    """Looks at what was charged, and charges at the end."""

    async def admits(self, call: Call) -> bool:
        """Admit while there is room for anything."""
        return self.used(call.caller, call.at_ms) < self.limit

    async def ends(self, call: Call, now_ms: int) -> None:
        """Charge."""
        self.add(call.caller, now_ms, call.tokens)


class Result(NamedTuple):
    """What came of the trace."""

    name: str
    admitted: int
    tokens: int  # of the calls that were admitted
    overspent: int  # the most that a caller used in a window beyond the limit
    callers_overspent: int
    worst: list[tuple[int, int]]  # of the caller that overspent most: moments, and the tokens in the window up to each
    seconds: float


def calls_of(path: Path | str, callers: int, speed: float, bound: int) -> list[Call]:
    """Return the requests of a trace."""
    calls: list[Call] = []
    first: datetime | None = None
    with open(path, newline="") as file:
        for number, row in enumerate(csv.DictReader(file)):
            at = datetime.fromisoformat(row["TIMESTAMP"][:26])
            first = first or at
            at_ms = int((at - first).total_seconds() * 1000 / speed)
            calls.append(
                Call(at_ms, number % callers, int(row["ContextTokens"]), min(int(row["GeneratedTokens"]), bound))
            )
    return calls


async def played(name: str, limited: Limited, calls: Iterable[Call], limit: int, pace: float) -> Result:
    """Return what *limited* makes of *calls*, ended in their order among the beginnings."""
    started_s = time.perf_counter()
    ending: list[tuple[int, int, Call]] = []
    admitted: list[Call] = []
    order = count()
    for call in calls:
        while ending and ending[0][0] <= call.at_ms:
            at_ms, _, ended = heapq.heappop(ending)
            await limited.ends(ended, at_ms)
        if await limited.admits(call):
            admitted.append(call)
            heapq.heappush(ending, (call.at_ms + 300 + int(call.generated * 1000 / pace), next(order), call))
    while ending:
        at_ms, _, ended = heapq.heappop(ending)
        await limited.ends(ended, at_ms)
    worst, excess, overspent = 0, -1, set()
    truth = Log(limit)
    courses: dict[int, list[tuple[int, int]]] = {}
    for call in admitted:
        truth.add(call.caller, call.at_ms, call.tokens)
        used = truth.used(call.caller, call.at_ms)
        courses.setdefault(call.caller, []).append((call.at_ms, used))
        if used > limit:
            overspent.add(call.caller)
        if used - limit > excess:
            excess, worst = used - limit, call.caller
    tokens = sum(call.tokens for call in admitted)
    seconds = time.perf_counter() - started_s
    return Result(name, len(admitted), tokens, max(0, excess), len(overspent), courses.get(worst, []), seconds)


async def compared(calls: list[Call], limit: int, bound: int, pace: float) -> tuple[list[Result], int]:
    """Return what each way makes of *calls*, and how many answers used more than we had reserved."""
    ours = Ours(limit, bound)
    ways: list[tuple[str, Limited]] = [
        ("ours", ours),
        ("clairvoyant", Clairvoyant(limit)),
        ("charge at the end", ChargeAtTheEnd(limit)),
    ]
    return [await played(name, way, calls, limit, pace) for name, way in ways], ours.overdrafts


def draw(path: str, results: list[Result], limit: int) -> None:
    """Draw the worst caller's tokens in the last minute, over time, each way."""
    import matplotlib  # of the extra `dashboard`

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(figsize=(9, 3.6), dpi=80)
    for result, colour in zip(results, ("#1f77b4", "#999999", "#d62728"), strict=True):
        if result.name != "clairvoyant":
            moments = [at_ms / 60_000 for at_ms, _ in result.worst]
            axes.step(moments, [used for _, used in result.worst], where="post", label=result.name, color=colour, lw=1)
    axes.axhline(limit, color="black", lw=1, ls="--", label="limit")
    axes.set_xlabel("minutes")
    axes.set_ylabel("tokens in the last minute")
    axes.set_title("The caller that spends most, dated at admission", fontsize=10)
    axes.set_ylim(bottom=0)
    axes.legend(loc="upper right", fontsize=8)
    figure.tight_layout()
    figure.savefig(path)


def main() -> None:
    """Replay a trace and print a line of JSON for each way."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("trace", metavar="TRACE.csv")
    parser.add_argument("--callers", type=int, default=50)
    parser.add_argument("--limit", type=int, default=10_000, help="tokens a minute, of each caller")
    parser.add_argument("--bound", type=int, default=1000, help="max_tokens of each request")
    parser.add_argument("--pace", type=float, default=50, help="tokens a second that an answer streams at")
    parser.add_argument("--speed", type=float, default=1, help="how much faster than recorded the requests come")
    parser.add_argument("--picture", metavar="FILE.png")
    given = parser.parse_args()
    calls = calls_of(given.trace, given.callers, given.speed, given.bound)
    results, overdrafts = asyncio.run(compared(calls, given.limit, given.bound, given.pace))
    best = results[1]
    for result in results:
        told = {
            "way": result.name,
            "requests": len(calls),
            "admitted": result.admitted,
            "of_clairvoyant": round(result.admitted / best.admitted, 4),
            "tokens_of_clairvoyant": round(result.tokens / best.tokens, 4),
            "overspent_at_most": result.overspent,
            "callers_overspent": result.callers_overspent,
            "seconds": round(result.seconds, 2),
        }
        print(json.dumps(told | ({"overdrafts": overdrafts} if result.name == "ours" else {})))
    if given.picture:
        draw(given.picture, results, given.limit)


if __name__ == "__main__":
    main()
