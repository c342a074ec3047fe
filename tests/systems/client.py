"""A client with a batch of calls to make: one that honours Retry-After, and one that does not.

    python -m tests.systems.client --system intrace --manner polite

starts the system with its policy file from config/, a Redis and keys of its own, makes the batch, and prints a
transcript.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import sys
import tempfile
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, TextIO

import httpx

from tests.systems.scene import Scene
from tests.systems.serving import WAYS
from tests.systems.system import SYSTEMS, Call, System

if TYPE_CHECKING:
    from collections.abc import Iterator

WORKERS = 16  # calls in flight at most
PHASE_S = 10.0  # how long a line of the transcript is about, of one who never pauses
IMPATIENCE_S = 0.25  # how long one waits who does not care
MANNERS = ("polite", "rude")
REFUSED = 429


@dataclass
class Report:
    """What became of a batch."""

    answered: int = 0  # with anything but a 429
    statuses: dict[int, int] = field(default_factory=dict)
    refused: int = 0  # 429s
    surplus: int = 0  # of them, to calls made no earlier than they were told to come back
    unheeded: int = 0  # of them, to calls made earlier than they were told to come back
    waits_s: list[float] = field(default_factory=list)  # how long the whole batch paused
    seconds: float = 0.0


class Pace:
    """When the next call may go: what the answers so far say.

    After a refusal nobody calls until the time it names; then one call alone tries, and after it at most as many at
    once as the last answer said there remain.
    """

    def __init__(self, workers: int) -> None:
        self._workers = workers
        self._at_once = workers
        self._not_before = 0.0
        self.in_flight = 0

    def wait_s(self, now: float) -> float | None:
        """Seconds until the next call may go; None while it waits for an answer."""
        if self.in_flight >= self._at_once:
            return None
        return max(0.0, self._not_before - now)

    def answered(self, remaining: int | None) -> None:
        """An answer other than a 429 has come."""
        if remaining is not None:
            self._at_once = max(1, min(self._workers, remaining))

    def refused(self, until: float) -> None:
        """A 429 has come: it says when to come back."""
        self._not_before = max(self._not_before, until)
        self._at_once = 1


class NoPace(Pace):
    """Of who heeds nothing: each call that was refused is made again at once, or nearly."""

    def answered(self, remaining: int | None) -> None:
        pass

    def refused(self, until: float) -> None:
        pass


class Batch:
    """*calls* calls, each made until it is answered with something else than 429.

    Args:
        client: what to make them with.
        call: the call.
        manner: polite or rude.
        out: where the transcript goes.
    """

    def __init__(self, client: httpx.AsyncClient, call: Call, *, manner: str, out: TextIO | None = None) -> None:
        self._client = client
        self._call = call
        self._polite = manner == "polite"
        self._pace = Pace(WORKERS) if self._polite else NoPace(WORKERS)
        self._out = out
        self._changed = asyncio.Event()
        self._phase = Report()
        self._phase_began = 0.0
        self.report = Report()

    async def run(self, calls: int) -> Report:
        """Make them; what became of them."""
        self._began = self._phase_began = time.monotonic()
        waiting: list[float] = [0.0] * calls  # of each call still to be made: when it was told to come back
        tasks: set[asyncio.Task[None]] = set()
        while waiting or tasks:
            self._changed.clear()
            wait_s = self._pace.wait_s(time.monotonic()) if waiting else None
            if wait_s == 0.0:
                tasks.add(asyncio.create_task(self._make(waiting.pop(), waiting)))
                self._pace.in_flight += 1
            elif wait_s is not None and not self._pace.in_flight:
                await self._pause(wait_s)
            else:
                with contextlib.suppress(TimeoutError):
                    await asyncio.wait_for(self._changed.wait(), wait_s)
            if not self._polite and time.monotonic() - self._phase_began > PHASE_S:
                self._end_phase("told to come back later, and comes back at once")
            for task in [task for task in tasks if task.done()]:
                tasks.remove(task)
                task.result()
        self._end_phase("the batch is done")
        self.report.seconds = time.monotonic() - self._began
        return self.report

    async def _make(self, told: float, waiting: list[float]) -> None:
        made = time.monotonic()
        response = await self._client.request(*self._call[:2], json=self._call.body)
        if response.status_code == REFUSED:
            until = time.monotonic() + float(response.headers["retry-after"])
            for report in self._reports():
                report.refused += 1
                if told:
                    report.surplus += made >= told
                    report.unheeded += made < told
            self._pace.refused(until)
            if not self._polite:
                await asyncio.sleep(IMPATIENCE_S)  # and keeps its place among those in flight
            waiting.append(until)
        else:
            for report in self._reports():
                report.answered += 1
                report.statuses[response.status_code] = report.statuses.get(response.status_code, 0) + 1
            remaining = response.headers.get("x-ratelimit-remaining")
            self._pace.answered(None if remaining is None else int(remaining))
        self._pace.in_flight -= 1
        self._changed.set()

    def _reports(self) -> Iterator[Report]:
        yield self.report
        yield self._phase

    async def _pause(self, wait_s: float) -> None:
        """Nothing is in flight, and nothing may be for a while."""
        self._end_phase(f"told to come back: the whole batch waits {wait_s:.1f} s")
        self.report.waits_s.append(wait_s)
        await asyncio.sleep(wait_s)
        self._phase_began = time.monotonic()

    def _end_phase(self, why: str) -> None:
        phase, self._phase = self._phase, Report()
        now = time.monotonic()
        at = f"{self._phase_began - self._began:7.1f} s to {now - self._began:7.1f} s"
        counted = ", ".join(f"{count} x {status}" for status, count in sorted(phase.statuses.items()))
        self.say(f"{at}  {counted or 'nothing'}, {phase.refused} x 429; {why}")
        self._phase_began = now

    def say(self, line: str) -> None:
        """A line of the transcript."""
        if self._out is not None:
            print(line, file=self._out, flush=True)


def summary(report: Report) -> str:
    """The last lines of a transcript."""
    statuses = ", ".join(f"{count} x {status}" for status, count in sorted(report.statuses.items()))
    return (
        f"answered {report.answered} ({statuses}) in {report.seconds:.1f} s, after {len(report.waits_s)} pauses of "
        f"{sum(report.waits_s):.1f} s together\n"
        f"refused  {report.refused}: {report.unheeded} to calls that came back before the time they were told, "
        f"{report.surplus} to calls that came back no earlier"
    )


async def make_batch(
    url: str, call: Call, *, headers: dict[str, str], manner: str, calls: int, used: int = 0, out: TextIO | None = None
) -> Report:
    """Make a batch of calls against *url*.

    Args:
        url: of the system.
        call: the call.
        headers: that go with it.
        manner: polite or rude.
        calls: how many.
        used: calls that somebody else makes with the same credentials beforehand.
        out: where the transcript goes; None for nowhere.
    """
    limits = httpx.Limits(max_connections=WORKERS)
    async with httpx.AsyncClient(base_url=url, headers=headers, limits=limits, timeout=60) as client:
        batch = Batch(client, call, manner=manner, out=out)
        if used:
            before = await Batch(client, call, manner="polite").run(used)
            batch.say(f"somebody else has made {before.answered} calls with the same credentials")
        return await batch.run(calls)


def run_example(system: System, *, way: str, manner: str, calls: int, out: TextIO) -> Report:
    """Start *system* with its policy file and a Redis of its own, make a batch, write the transcript to *out*."""
    with tempfile.TemporaryDirectory(prefix="ratelimiter-system-") as folder, Scene(system, way, Path(folder)) as scene:
        print(f"{system.name}, {way}, {manner}: {calls} x {system.call}", file=out)
        print(f"policy config/{system.name}.yaml: {system.limits}", file=out, flush=True)
        headers, used = scene.deployment.headers(), system.used
        report = asyncio.run(
            make_batch(scene.served.url, system.call, headers=headers, manner=manner, calls=calls, used=used, out=out)
        )
    print(summary(report), end="\n\n", file=out, flush=True)
    return report


def main(arguments: list[str] | None = None) -> int:
    """Run the command line; 1 if a polite client met a surplus refusal."""
    parser = argparse.ArgumentParser(prog="python -m tests.systems.client", description=__doc__.partition("\n")[0])
    parser.add_argument("--system", choices=sorted(SYSTEMS), required=True)
    parser.add_argument("--manner", choices=MANNERS, default="polite")
    parser.add_argument("--way", choices=WAYS, action="append", help="how it is limited; both by default")
    parser.add_argument("--calls", type=int, default=200)
    given = parser.parse_args(arguments)
    system = SYSTEMS[given.system]
    reports = [
        run_example(system, way=way, manner=given.manner, calls=given.calls, out=sys.stdout)
        for way in given.way or WAYS
    ]
    return int(given.manner == "polite" and any(report.surplus for report in reports))


if __name__ == "__main__":
    sys.exit(main())
