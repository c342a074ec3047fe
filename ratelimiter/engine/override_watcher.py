"""The orders of operators, as a limiter obeys them: looked for twice a second, and kept while the store is out."""

from __future__ import annotations

import asyncio
import ipaddress
import json
import logging
import random
import weakref
from bisect import bisect_right
from typing import TYPE_CHECKING, Any

from ratelimiter.clock import Clock, unix_ms
from ratelimiter.core.override_index import OverrideIndex
from ratelimiter.core.overrides import FOR_EVER, NO_OVERRIDES, Block, Override, RuntimeOverrides, parse_pattern
from ratelimiter.core.policy import override_fault
from ratelimiter.errors import Kind, StoreError
from ratelimiter.parsing.units import UNLIMITED, parse_limit
from ratelimiter.stores.base import DEGRADED

if TYPE_CHECKING:
    from collections.abc import Callable, Generator

    from ratelimiter.core.policy import Policy
    from ratelimiter.engine.limiter import Limiter
    from ratelimiter.stores.overrides import OverrideStore, Snapshot

POLL_S = 0.5  # an override is applied everywhere within a second
READ_AGAIN_MS = 60_000  # the store's clock, against which ours may have moved
DRIFT_MS = 100  # of a clock, which is ignored
NOTED_MAX = 100  # overrides that mean nothing here, each logged once
STEP = 200  # overrides that are built before others go on, about a millisecond's work

log = logging.getLogger("ratelimiter.orders")


def field_of_block(digest: str) -> str:
    """Return the field of an override store that holds a block."""
    return f"block:{digest}"


def field_of_override(who: str, rule: str) -> str:
    """Return the field of an override store that holds an override: one for each principal or pattern and rule."""
    return f"override:{who}:{rule}"


SHADOW = "shadow"  # the field of the kill switch


def override_from(entry: dict[str, Any], until_ms: int) -> Override:
    """Return the override that a stored JSON object says.

    Raises:
        ValueError: it says none.
    """
    try:
        who, rule, plan, limit = (str(entry.get(name, "")) for name in ("who", "rule", "plan", "limit"))
        pattern = parse_pattern(str(entry["pattern"])) if "pattern" in entry else None
        network = ipaddress.ip_network(str(entry["network"])) if "network" in entry else None
    except (AttributeError, TypeError) as fault:
        raise ValueError(str(fault)) from None
    quota = None if limit in ("", UNLIMITED) else parse_limit(limit)
    if not who or bool(plan) == bool(limit):
        msg = "an override names a principal, and either a plan or a limit"
        raise ValueError(msg)
    return Override(
        frozenset({who}), pattern, str(entry.get("source", "")), rule, quota, plan, until_ms, network=network
    )


def block_from(digest: str, entry: dict[str, Any], until_ms: int) -> Block:
    """Return the block that the JSON of an override store says.

    Raises:
        ValueError: it says none.
    """
    try:
        network = ipaddress.ip_network(str(entry["network"])) if "network" in entry else None
    except (AttributeError, TypeError) as fault:
        raise ValueError(str(fault)) from None
    return Block(digest, until_ms, network)


class _Builder:
    """Makes runtime overrides of snapshots under one policy. What was parsed once is kept, by field and text.

    Args:
        policy: the policy that the overrides are about; one that means nothing to it is left out.
        noted: receives each field that is left out, and the reason.
    """

    def __init__(self, policy: Policy, noted: Callable[[str, str], None]) -> None:
        self.policy = policy
        self._noted = noted
        self._parsed: dict[str, tuple[str, int, Override | Block | None]] = {}

    def steps(self, page: Snapshot, ahead_ms: int) -> Generator[None, None, RuntimeOverrides]:
        """Build the runtime overrides of *page*; yield after every few, so that the caller can let others go on.

        Args:
            page: of an override store.
            ahead_ms: how much the store's clock is ahead of the one whose moments are wanted.
        """
        parsed: dict[str, tuple[str, int, Override | Block | None]] = {}
        overrides: list[Override] = []
        blocks: list[Block] = []
        index = OverrideIndex()
        ends: set[int] = set()
        for number, (field, (until_ms, text)) in enumerate(page.fields.items(), 1):
            ours_ms = until_ms - ahead_ms if until_ms else FOR_EVER
            known = self._parsed.get(field)
            if known is None or known[0] != text or known[1] != ours_ms:
                known = text, ours_ms, self._parse(field, text, ours_ms)
            parsed[field] = known
            item = known[2]
            if isinstance(item, Override):
                overrides.append(item)
                index.add(item)
            elif item is not None:
                blocks.append(item)
                index.blocks.add(item)
            if ours_ms:
                ends.add(ours_ms)
            if not number % STEP:
                yield
        self._parsed = parsed
        shadow = page.fields.get(SHADOW)
        until_ms = 0 if shadow is None else shadow[0]
        return RuntimeOverrides(
            page.version,
            tuple(overrides),
            tuple(blocks),
            shadow is not None,
            until_ms - ahead_ms if until_ms else FOR_EVER,
            index,
            tuple(ends),
        )

    def _parse(self, field: str, text: str, until_ms: int) -> Override | Block | None:
        """Return the override or block that a field says; None if it is left out, or is the kill switch."""
        kind, _, rest = field.partition(":")
        if field == SHADOW:
            return None
        try:
            if kind == "block":
                return block_from(rest, json.loads(text), until_ms)
            override = override_from(json.loads(text), until_ms)
            fault = override_fault(self.policy, override)
        except ValueError as error:
            fault = str(error)
        else:
            if not fault:
                return override
        self._noted(field, fault)
        return None


def orders_of(page: Snapshot, policy: Policy, ahead_ms: int, noted: Callable[[str, str], None]) -> RuntimeOverrides:
    """Return what *page* says under *policy*, at once.

    Args:
        page: of an override store.
        policy: the policy that it is about; what means nothing to it is left out.
        ahead_ms: how much the store's clock is ahead of the one whose moments are wanted.
        noted: receives each field that is left out, and the reason.
    """
    return _finished(_Builder(policy, noted).steps(page, ahead_ms))


def _finished(steps: Generator[None, None, RuntimeOverrides]) -> RuntimeOverrides:
    while True:
        try:
            next(steps)
        except StopIteration as end:
            overrides: RuntimeOverrides = end.value
            return overrides


class OverrideWatcher:
    """Applies the runtime overrides of a limiter's store and policy, and the ends of overrides, as long as it lives.

    The store is asked for a change every *poll_s*; while it cannot be read, the last overrides stand until they end.
    Their ends are moments of the store's clock, however wrong ours is. Only what has changed is parsed, and the event
    loop goes on in between, so that 100,000 overrides delay no request.

    Args:
        limiter: the limiter. If its store keeps no runtime overrides, only those of the policy come to their end.
        clock: the limiter's; Unix time in milliseconds.
        poll_s: the longest pause between two looks, in seconds.
    """

    def __init__(self, limiter: Limiter, *, clock: Clock = unix_ms, poll_s: float = POLL_S) -> None:
        # Weakly, so that an application that is let go of is not held by its own timer.
        self._limiter = weakref.ref(limiter)
        self._clock = clock
        self._poll_s = poll_s
        self._overrides = NO_OVERRIDES  # all, the ended ones included
        self._builder = _Builder(limiter.policy, self._note_senseless)
        self._built: Snapshot | None = None  # what they were built of
        self._name = ""
        self._page: Snapshot | None = None
        self._read_ms = 0  # when the page was read, or the store's clock
        self._ahead_ms = 0  # how much the store's clock is ahead of ours
        self._ends: tuple[int, ...] = ()  # of overrides, ascending
        self._next_end_ms = 0
        self._failing = ""  # kind of the last logged error
        self._noted: set[str] = set()
        self._task: asyncio.Task[None] | None = None
        self._loop: asyncio.AbstractEventLoop | None = None
        self._store: OverrideStore | None = None
        self._note_ends(limiter)
        self._open(limiter)

    def _open(self, limiter: Limiter) -> None:
        self._page, self._built, self._name = None, None, limiter.policy.name
        self._store = limiter.store.override_store(self._name)
        if self._store is not None:
            self._store.listen(self._written)
            page = self._store.page()
            if page is not None and page.version:
                self._written()

    @property
    def needs_time(self) -> bool:
        """True if something changes unannounced: another process writes, or an override ends."""
        limiter = self._limiter()
        remote = limiter is not None and not limiter.store.unwrap().embedded
        return remote or (self._store is not None and self._store.shared) or bool(self._next_end_ms)

    def start(self) -> None:
        """Look from now on, on the running event loop. Does nothing if that is so."""
        loop = asyncio.get_running_loop()
        if loop is not self._loop or self._task is None or self._task.done():
            self._loop = loop
            self._task = loop.create_task(self._run())

    async def stop(self) -> None:
        """Stop looking."""
        task, self._task = self._task, None
        if task is not None and self._loop is asyncio.get_running_loop():
            task.cancel()
            await asyncio.wait([task])

    async def poll(self) -> None:
        """Look once, and apply what has changed. Never raises for a store."""
        limiter = self._limiter()
        if limiter is None:
            return
        if limiter.policy.name != self._name:
            self._open(limiter)
        if self._store is not None:
            try:
                await self._look(self._store)
            except StoreError as error:
                if limiter.store.state != DEGRADED:  # else the outage is logged already
                    self._note_failure(error)
            else:
                self._note_success()
        steps = self._steps(limiter)
        if steps is not None:
            while True:  # in slices, with requests in between
                try:
                    next(steps)
                except StopIteration as end:
                    self._take(limiter, end.value)
                    break
                await asyncio.sleep(0)
        self._apply_ends(limiter)

    async def _run(self) -> None:
        limiter = self._limiter()
        if limiter is not None:
            await limiter.store.ask()  # first, so that an outage is logged as one
            del limiter
        while self._limiter() is not None:
            try:
                await self.poll()
            except Exception:  # whatever it is, the next look may do better
                log.exception("runtime overrides could not be looked at; the last ones stay in force")
            # Not all processes at the same moment.
            pause_s = self._poll_s * random.uniform(0.8, 1)  # noqa: S311
            if self._next_end_ms:
                pause_s = min(pause_s, max(0.0, (self._next_end_ms - self._clock()) / 1000))
            await asyncio.sleep(pause_s)

    async def _look(self, store: OverrideStore) -> None:
        """Read the runtime overrides if they have changed, and now and then the store's clock."""
        now_ms = self._clock()
        page = self._page
        if page is None or await store.version() != page.version:
            self._note_page(await store.read())
        elif now_ms - self._read_ms >= READ_AGAIN_MS and self._ends:
            self._note_page(page._replace(now_ms=await store.now_ms()))

    def _written(self) -> None:
        """Apply at once what this process has written."""
        limiter = self._limiter()
        page = None if self._store is None else self._store.page()
        if limiter is None or page is None:
            return
        self._note_page(page)
        steps = self._steps(limiter)
        if steps is not None:
            self._take(limiter, _finished(steps))
        if self._next_end_ms:
            self.start()

    def _note_page(self, page: Snapshot) -> None:
        self._page, self._read_ms = page, self._clock()
        ahead_ms = page.now_ms - self._read_ms
        if abs(ahead_ms - self._ahead_ms) > DRIFT_MS:  # else each look would move every end by how long it took
            self._ahead_ms, self._built = ahead_ms, None

    def _steps(self, limiter: Limiter) -> Generator[None, None, RuntimeOverrides] | None:
        """Return the steps that build the overrides anew; None if they are up to date."""
        if limiter.policy is not self._builder.policy:
            self._builder, self._built = _Builder(limiter.policy, self._note_senseless), None
            if self._page is None:
                self._note_ends(limiter)
        page, built = self._page, self._built
        if page is None or (built is not None and built.version == page.version):
            return None
        return self._builder.steps(page, self._ahead_ms)

    def _take(self, limiter: Limiter, overrides: RuntimeOverrides) -> None:
        """Put newly built overrides in force."""
        self._built, self._overrides = self._page, overrides
        self._note_ends(limiter)
        limiter.apply(overrides.at(self._clock()))
        self._set_next_end()

    def _apply_ends(self, limiter: Limiter) -> None:
        """Put overrides out of force whose end has come, and in force after a limiter lost them."""
        ended = bool(self._next_end_ms) and self._clock() >= self._next_end_ms
        if ended or (self._built is not None and limiter.overrides.version != self._overrides.version):
            limiter.apply(self._overrides.at(self._clock()))
        self._set_next_end()

    def _note_ends(self, limiter: Limiter) -> None:
        table = limiter.policy.override_table
        stated = (*limiter.policy.overrides, *(() if table is None else table.overrides))
        ends = {*self._overrides.ends_ms, *(override.until_ms for override in stated)} - {FOR_EVER}
        self._ends = tuple(sorted(ends))
        self._set_next_end()

    def _set_next_end(self) -> None:
        place = bisect_right(self._ends, self._clock())
        self._next_end_ms = self._ends[place] if place < len(self._ends) else 0

    def _note_senseless(self, field: str, fault: str) -> None:
        if field not in self._noted and len(self._noted) < NOTED_MAX:
            self._noted.add(field)
            log.error("a runtime override is not applied: %s: %s", field[:100], " ".join(fault.split())[:200])

    def _note_failure(self, error: StoreError) -> None:
        if error.kind != self._failing:
            self._failing = error.kind
            what = "the ACL user needs +hget +hscan" if error.kind is Kind.PERMISSION else "the last ones stay in force"
            log.warning("runtime overrides cannot be read (%s): %s", error.kind, what)

    def _note_success(self) -> None:
        if self._failing:
            self._failing = ""
            log.info("runtime overrides can be read again")
