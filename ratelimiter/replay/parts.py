"""A replay by several processes, each for a part of the callers: all keys of one caller are judged by one process."""

from __future__ import annotations

import multiprocessing
import multiprocessing.connection
import os
from typing import TYPE_CHECKING, Any, NamedTuple
from zlib import crc32

from ratelimiter.errors import ConfigError
from ratelimiter.replay.sources import STDIN

if TYPE_CHECKING:
    from collections import Counter
    from collections.abc import Callable
    from multiprocessing.connection import Connection

    from ratelimiter.core.policy import Policy
    from ratelimiter.replay.entry import Caller
    from ratelimiter.replay.run import Replay, Timeline, Unreadable
    from ratelimiter.replay.tracked import Tracked

BYTES_MIN = 32_000_000  # of logs; what is less is judged by the time that processes have started
PROCESSES_MAX = 8
TOLD_EVERY = 4  # batches between two reports of progress


class Part(NamedTuple):
    """One of several parts of the callers."""

    number: int
    of: int

    def has(self, client: str) -> bool:
        """Return True if *client*, an address as logged, belongs to this part.

        All IPv6 addresses are in the first: those of one network are one caller, however they are written.
        """
        if ":" in client:
            client = client.removeprefix("::ffff:")
            if ":" in client:
                return self.number == 0
        return crc32(client.rstrip(",").encode("utf-8", "replace")) % self.of == self.number


class Findings(NamedTuple):
    """The findings of one process, as it sends them to the first."""

    judge: _OfJudge
    other: _OfJudge | None
    timeline: Timeline
    unread: dict[str, Unreadable]
    changes: Counter[tuple[bool, bool]]
    logs: list[tuple[int, int, int, int, int, str]]  # lines, read, omitted, sorted, late, fault


class _OfJudge(NamedTuple):
    counts: tuple[int, ...]  # of `COUNTED`
    waits: Counter[int | None]
    rule_waits: dict[str, Counter[int | None]]
    rule_refused: Counter[str]
    callers: dict[bytes, Caller]
    tracked: dict[tuple[str, int], dict[bytes, Tracked]]
    bounds_refused: list[int]
    compared: list[int]
    first_refusal: tuple[int, str, bytes] | None


COUNTED = ("requests", "refused", "malformed", "unmatched", "unattributed")


def processes_for(replay: Replay, wanted: int | None) -> int:
    """Return how many processes *replay* is worth.

    Args:
        replay: has not run.
        wanted: by the user; None for as many as there are processors, if the logs are large.

    Raises:
        ConfigError: *wanted* are several, and the callers of this replay cannot be parted.
    """
    obstacle = _obstacle(replay)
    if wanted is not None:
        if wanted > 1 and obstacle:
            msg = f"--processes: {wanted} cannot share this replay, as {obstacle}; leave it out"
            raise ConfigError(msg)
        return min(wanted, PROCESSES_MAX)
    if obstacle or replay.size < BYTES_MIN:
        return 1
    return min(len(os.sched_getaffinity(0)), PROCESSES_MAX)


def _obstacle(replay: Replay) -> str:
    """Return why the callers cannot be parted by address; empty if they can."""
    if any(log.source.path == STDIN for log in replay.logs):
        return "standard input can be read once"
    policies: list[Policy] = [replay.told.policy, *([replay.other_told.policy] if replay.other_told else [])]
    if any("principal" in log.format.tells for log in replay.logs):
        return "callers are named by a field"
    for policy in policies:
        if policy.trust.anyone:
            return "addresses are told by proxies"
        sources = {str(rule.principal[0]) if len(rule.principal) == 1 else "" for rule in policy.rules}
        if sources - {"client"}:
            return "a rule charges something else than the address"
    return ""


def run_parted(
    replay: Replay,
    again: Callable[[Part], Replay],
    processes: int,
    progress: Callable[[Replay], None] | None = None,
) -> None:
    """Run *replay* by so many processes, and leave what they found in it.

    Args:
        replay: has not run.
        again: make the same replay once more, for one part of the callers.
        processes: at least 2.
        progress: is told now and then.

    Raises:
        ConfigError: a process found a log that cannot be read, or was ended.
    """
    context = multiprocessing.get_context("fork")  # what was loaded need not be loaded again
    pairs = [context.Pipe(duplex=False) for _ in range(processes)]
    workers = [
        context.Process(target=_work, args=(again, Part(number, processes), pairs[number][1]), daemon=True)
        for number in range(processes)
    ]
    for worker, (_, sender) in zip(workers, pairs, strict=True):
        worker.start()
        sender.close()
    receivers: list[Any] = [receiver for receiver, _ in pairs]
    done: dict[int, tuple[int, int]] = {}
    first = True
    try:
        while receivers:
            for receiver in multiprocessing.connection.wait(receivers):
                told = _told(receiver)
                number = next(index for index, (each, _) in enumerate(pairs) if each is receiver)
                if isinstance(told, tuple) and not isinstance(told, Findings):
                    done[number] = told
                    _tell(replay, done, processes, progress)
                    continue
                receivers.remove(receiver)
                if isinstance(told, list):
                    raise ConfigError(*told)
                _take(replay, told, lines=first)
                first = False
    finally:
        for worker in workers:
            worker.terminate()
            worker.join()


def _told(receiver: Any) -> Any:
    try:
        return receiver.recv()
    except EOFError:
        msg = "a process of the replay was ended, perhaps for want of memory; use --processes 1"
        raise ConfigError(msg) from None


def _tell(
    replay: Replay, done: dict[int, tuple[int, int]], processes: int, progress: Callable[[Replay], None] | None
) -> None:
    """Tell *progress* what the processes have read, as if it were *replay* that read."""
    if progress is None:
        return
    requests, bytes_read = sum(each[0] for each in done.values()), sum(each[1] for each in done.values()) // processes
    kept, replay.judge.requests = replay.judge.requests, requests
    replay.logs[0].source.done = bytes_read
    progress(replay)
    replay.judge.requests = kept


def _work(again: Callable[[Part], Replay], part: Part, sender: Connection) -> None:
    """Run one part, and send what was found; a list of problems if it cannot be run."""
    try:
        replay = again(part)
        batches = 0

        def told(running: Replay) -> None:
            nonlocal batches
            batches += 1
            if batches % TOLD_EVERY == 0:
                sender.send((running.judge.requests, running.done))

        replay.run(told)
        sender.send(_found(replay))
    except ConfigError as fault:
        sender.send(list(fault.problems))
    except (KeyboardInterrupt, BrokenPipeError):
        pass
    finally:
        sender.close()


def _found(replay: Replay) -> Findings:
    logs = [
        (log.lines, log.read, log.omitted, log.disorder.sorted, log.disorder.late, log.source.fault)
        for log in replay.logs
    ]
    other = None if replay.other is None else _of(replay.other)
    return Findings(_of(replay.judge), other, replay.timeline, replay.unread, replay.changes, logs)


def _of(judge: Any) -> _OfJudge:
    first = None
    if judge.first_refusal is not None:
        at_ms, rule, caller = judge.first_refusal
        first = (at_ms, rule, next(digest for digest, each in judge.callers.items() if each is caller))
    for among in judge.tracked.values():
        for each in among.values():
            each.settle_down()
    return _OfJudge(
        tuple(getattr(judge, name) for name in COUNTED), judge.waits, judge.rule_waits, judge.rule_refused,
        judge.callers, judge.tracked, judge.bounds_refused, [each.refused for each in judge.comparisons], first,
    )  # fmt: skip


def _take(replay: Replay, found: Findings, *, lines: bool) -> None:
    """Add what one process found; *lines*: count its lines, which every process has read."""
    _add(replay.judge, found.judge)
    if replay.other is not None and found.other is not None:
        _add(replay.other, found.other)
    replay.timeline.add(found.timeline)
    replay.changes.update(found.changes)
    for kind, each in found.unread.items():
        known = replay.unread.get(kind)
        if known is None:
            replay.unread[kind] = each
            continue
        known.lines += each.lines
        if each.order < known.order:
            known.place, known.text, known.order = each.place, each.text, each.order
    for log, (count, read, omitted, disordered, late, fault) in zip(replay.logs, found.logs, strict=True):
        log.lines += count if lines else 0
        log.read += read
        log.omitted += omitted
        log.disorder.sorted += disordered
        log.disorder.late += late
        log.source.fault = log.source.fault or fault


def _add(judge: Any, found: _OfJudge) -> None:
    for name, count in zip(COUNTED, found.counts, strict=True):
        setattr(judge, name, getattr(judge, name) + count)
    judge.waits.update(found.waits)
    for rule, waits in found.rule_waits.items():
        judge.rule_waits[rule].update(waits)
    judge.rule_refused.update(found.rule_refused)
    judge.callers.update(found.callers)
    for key, among in found.tracked.items():
        judge.tracked.setdefault(key, {}).update(among)
    judge.bounds_refused = [one + other for one, other in zip(judge.bounds_refused, found.bounds_refused, strict=True)]
    for comparison, refused in zip(judge.comparisons, found.compared, strict=True):
        comparison.refused += refused
    if found.first_refusal is not None:
        at_ms, rule, digest = found.first_refusal
        if judge.first_refusal is None or at_ms < judge.first_refusal[0]:
            judge.first_refusal = (at_ms, rule, judge.callers[digest])
