"""The orders of operators, as a limiter obeys them: looked for twice a second, and kept while the store is out."""

from __future__ import annotations

import asyncio
import ipaddress
import json
import logging
import random
import weakref
from typing import TYPE_CHECKING, Any

from ratelimiter.clock import Clock, unix_ms
from ratelimiter.core.overrides import FOR_EVER, NO_OVERRIDES, Block, Override, RuntimeOverrides, parse_pattern
from ratelimiter.core.policy import override_fault
from ratelimiter.errors import Kind, StoreError
from ratelimiter.parsing.units import UNLIMITED, parse_limit
from ratelimiter.stores.base import DEGRADED

if TYPE_CHECKING:
    from collections.abc import Callable

    from ratelimiter.core.policy import Policy
    from ratelimiter.engine.limiter import Limiter
    from ratelimiter.stores.overrides import OverrideStore, Snapshot

POLL_S = 0.5  # what is ordered is applied everywhere within a second
READ_AGAIN_MS = 60_000  # though nothing has changed: our clock may have, against the store's
DRIFT_MS = 100  # of a clock, that is of no account
NOTED_MAX = 100  # orders that make no sense here, each told of once

log = logging.getLogger("ratelimiter.orders")


def field_of_block(digest: str) -> str:
    """Under which field of a book a block is kept."""
    return f"block:{digest}"


def field_of_override(who: str, rule: str) -> str:
    """Under which field of a book an override is kept: one for each principal, or pattern, and rule."""
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


def orders_of(page: Snapshot, policy: Policy, ahead_ms: int, noted: Callable[[str, str], None]) -> RuntimeOverrides:
    """Return the runtime overrides of *page* that mean something under *policy*.

    Args:
        page: of a book.
        policy: that they are about; what means nothing to it is left out.
        ahead_ms: how much the store's clock is ahead of the one whose moments are wanted.
        noted: is told of the fields that are left out, and why.
    """
    overrides, blocks, shadow, shadow_until_ms = [], [], False, FOR_EVER
    for field, (until_ms, text) in sorted(page.fields.items()):
        ours_ms = until_ms - ahead_ms if until_ms else FOR_EVER
        kind, _, rest = field.partition(":")
        fault = ""
        try:
            if kind == "block":
                blocks.append(block_from(rest, json.loads(text), ours_ms))
            elif field == SHADOW:
                shadow, shadow_until_ms = True, ours_ms
            else:
                override = override_from(json.loads(text), ours_ms)
                fault = override_fault(policy, override)
                if not fault:
                    overrides.append(override)
        except ValueError as error:
            fault = str(error)
        if fault:
            noted(field, fault)
    return RuntimeOverrides(page.version, tuple(overrides), tuple(blocks), shadow, shadow_until_ms)


class OverrideWatcher:
    """Has one limiter obey what the book of its store and policy says, as long as it is there.

    A change is looked for every *poll_s*; while the book cannot be read, the last orders stand until they end. Their
    ends are the store's moments, however wrong our clock is.

    Args:
        limiter: that obeys. Where its store keeps no book, only overrides of the policy come to their end.
        clock: the limiter's; Unix time in milliseconds.
        poll_s: seconds between two looks, at most.
    """

    def __init__(self, limiter: Limiter, *, clock: Clock = unix_ms, poll_s: float = POLL_S) -> None:
        # Weakly, so that an application that is let go of is not held by its own timer.
        self._limiter = weakref.ref(limiter)
        self._clock = clock
        self._poll_s = poll_s
        self._orders = NO_OVERRIDES
        self._policy = limiter.policy
        self._name = ""
        self._page: Snapshot | None = None
        self._read_ms = 0  # when
        self._ahead_ms = 0  # how much the store's clock is, of ours
        self._next_end_ms = 0
        self._failing = ""  # as it was told
        self._noted: set[str] = set()
        self._task: asyncio.Task[None] | None = None
        self._loop: asyncio.AbstractEventLoop | None = None
        self._book: OverrideStore | None = None
        self._set_next_end(limiter)
        self._open(limiter)

    def _open(self, limiter: Limiter) -> None:
        self._page, self._orders, self._name = None, NO_OVERRIDES, limiter.policy.name
        self._book = limiter.store.override_store(self._name)
        if self._book is not None:
            self._book.listen(self._written)
            page = self._book.page()
            if page is not None and page.version:
                self._written()

    @property
    def needs_time(self) -> bool:
        """Whether something changes unannounced: another process writes, or an override ends."""
        limiter = self._limiter()
        remote = limiter is not None and not limiter.store.unwrap().embedded
        return remote or (self._book is not None and self._book.shared) or bool(self._next_end_ms)

    def start(self) -> None:
        """Look from now on, on the running event loop; nothing happens if that is so."""
        loop = asyncio.get_running_loop()
        if loop is not self._loop or self._task is None or self._task.done():
            self._loop = loop
            self._task = loop.create_task(self._run())

    async def stop(self) -> None:
        """Look no longer."""
        task, self._task = self._task, None
        if task is not None and self._loop is asyncio.get_running_loop():
            task.cancel()
            await asyncio.wait([task])

    async def poll(self) -> None:
        """Look once, and have done what has changed. Never raises for a store."""
        limiter = self._limiter()
        if limiter is None:
            return
        changed = False
        if limiter.policy.name != self._name:
            self._open(limiter)
        if self._book is not None:
            try:
                changed = await self._look(self._book)
            except StoreError as error:
                if limiter.store.state != DEGRADED:  # else the outage is told already
                    self._note_failure(error)
            else:
                self._note_success()
        self._obey(limiter, changed=changed)

    async def _run(self) -> None:
        limiter = self._limiter()
        if limiter is not None:
            await limiter.store.ask()  # first, so that an outage is told as what it is
            del limiter
        while self._limiter() is not None:
            try:
                await self.poll()
            except Exception:  # whatever it is, the next look may do better
                log.exception("the orders of operators could not be looked at; the last ones stay in force")
            # Not all processes at the same moment.
            pause_s = self._poll_s * random.uniform(0.8, 1)  # noqa: S311
            if self._next_end_ms:
                pause_s = min(pause_s, max(0.0, (self._next_end_ms - self._clock()) / 1000))
            await asyncio.sleep(pause_s)

    async def _look(self, book: OverrideStore) -> bool:
        """Read the book if that is due; whether it says something new."""
        due = self._page is None or self._clock() - self._read_ms >= READ_AGAIN_MS
        if not due and self._page is not None and await book.version() == self._page.version:
            return False
        page = await book.read()
        changed = page.version != ("" if self._page is None else self._page.version)
        self._take(page)
        return changed

    def _written(self) -> None:
        """Apply at once what this process has written."""
        limiter = self._limiter()
        page = None if self._book is None else self._book.page()
        if limiter is None or page is None:
            return
        self._take(page)
        self._obey(limiter, changed=True)
        if self._next_end_ms:
            self.start()

    def _take(self, page: Snapshot) -> None:
        self._page, self._read_ms = page, self._clock()
        ahead_ms = page.now_ms - self._read_ms
        if abs(ahead_ms - self._ahead_ms) > DRIFT_MS:  # else each look would move every end by how long it took
            self._ahead_ms = ahead_ms
        self._orders = NO_OVERRIDES  # to be made of the page

    def _obey(self, limiter: Limiter, *, changed: bool) -> None:
        now_ms = self._clock()
        if limiter.policy is not self._policy:
            self._policy, self._orders, changed = limiter.policy, NO_OVERRIDES, True
        if self._orders is NO_OVERRIDES and self._page is not None:
            self._orders = orders_of(self._page, limiter.policy, self._ahead_ms, self._note_senseless)
        ended = bool(self._next_end_ms) and now_ms >= self._next_end_ms
        orders = self._orders.at(now_ms)
        if changed or ended or orders != limiter.overrides:
            limiter.apply(orders)
        self._set_next_end(limiter)

    def _set_next_end(self, limiter: Limiter) -> None:
        now_ms = self._clock()
        moments = (*self._orders.ends_ms, *(override.until_ms for override in limiter.policy.overrides))
        self._next_end_ms = min((moment for moment in moments if moment > now_ms), default=0)

    def _note_senseless(self, field: str, fault: str) -> None:
        if field not in self._noted and len(self._noted) < NOTED_MAX:
            self._noted.add(field)
            log.error("an order is not applied here: %s: %s", field[:100], " ".join(fault.split())[:200])

    def _note_failure(self, error: StoreError) -> None:
        if error.kind != self._failing:
            self._failing = error.kind
            what = (
                "the ACL user needs +hget +hgetall" if error.kind is Kind.PERMISSION else "the last ones stay in force"
            )
            log.warning("the orders of operators cannot be read (%s): %s", error.kind, what)

    def _note_success(self) -> None:
        if self._failing:
            self._failing = ""
            log.info("the orders of operators can be read again")
