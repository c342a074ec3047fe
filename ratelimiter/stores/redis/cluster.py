"""The shared store over several masters: every request goes to the node that serves the slot of its keys."""

from __future__ import annotations

import asyncio
import re
from binascii import crc_hqx
from typing import TYPE_CHECKING, ClassVar, TypeVar

from ratelimiter.core.receipt import STORE, Receipt
from ratelimiter.core.settlement import settlement_of
from ratelimiter.errors import Kind, StoreError, StoreUnavailable
from ratelimiter.stores.base import SILENT, Store, StoreObserver
from ratelimiter.stores.deadline import Deadline
from ratelimiter.stores.overrides import RedisOverrideStore
from ratelimiter.stores.redis import control, script
from ratelimiter.stores.redis.connection import open_connection
from ratelimiter.stores.redis.server import CONTROL_TIMEOUT_MS, Server
from ratelimiter.stores.redis.url import OPTIONS, PORT, entry_of, hosts_of, options_of

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Sequence
    from urllib.parse import SplitResult

    from ratelimiter.clock import Clock
    from ratelimiter.core.receipt import Tally
    from ratelimiter.core.rule import Hit
    from ratelimiter.core.settlement import Settlement
    from ratelimiter.stores.redis.url import Address

    Host = tuple[str, int]

Answer = TypeVar("Answer")

SLOTS = 16384
TIMEOUT_MS = 50
MAP_TIMEOUT_MS = 500  # for one node to return the slot map
FLIGHTS_MAX = 64  # a call serves one slot, so calls are many and small, and pipelined instead
PAUSE_S = 0.005  # while a slot moves
MAP_PAUSE_S = 0.1  # between two requests for the slot map
REDIRECTS_MAX = 3  # without a pause

# The server was not reached, or would not serve: nothing was charged, so the node that has the slot now may be asked.
UNDONE = frozenset({Kind.CLUSTER_DOWN, Kind.READ_ONLY, Kind.NO_MASTER, Kind.UNREACHABLE, Kind.LOADING})
_REDIRECT = re.compile(r"(MOVED|ASK) \d+ (.*):(\d+)$")


def slot_of(key: bytes) -> int:
    """Return the slot of *key*: of the text between its first braces, if there is any, else of all of it."""
    start = key.find(b"{")
    if start >= 0:
        end = key.find(b"}", start + 1)
        if end > start + 1:
            key = key[start + 1 : end]
    return crc_hqx(key, 0) % SLOTS


class ClusterStore(Store):
    """Tallies in a Redis Cluster, shared by all processes that use it.

    Keys of one principal share a slot, and a request that has only such is charged in one call, all or none. If its
    keys are in several slots, all are charged at the same time, and when one of them refuses, the others give back what
    they charged. For that moment, a round trip, other requests may be refused that would have been admitted; never the
    contrary.
    Should a node be lost in that moment, what it has charged stays charged. The clock of such a request is that of each
    node for its own keys.

    What the ACL user needs, beside what `ratelimiter.stores.redis.store.RedisStore` says: `+cluster|slots +asking`.

    Args:
        seeds: some of the nodes, and how to get in; the others are told by them.
        timeout_ms: within this time `charge` returns or raises, at least 1.
        clock: Unix time in milliseconds, instead of the servers'.
        batching: settings of `ratelimiter.stores.redis.group_commit.GroupCommit`.
    """

    leases: ClassVar[bool] = True

    def __init__(
        self, seeds: Sequence[Address], *, timeout_ms: int = TIMEOUT_MS, clock: Clock | None = None, **batching: int
    ) -> None:
        control.preload()
        self._seeds = tuple(seeds)
        self._timeout_ms = timeout_ms
        self._clock = clock
        self._batching = {"flights_max": FLIGHTS_MAX, **batching}
        self._observer: StoreObserver = SILENT
        self._loop: asyncio.AbstractEventLoop | None = None
        self._nodes: dict[Host, Server] = {}
        self._served: dict[int, Host] = {}  # slot: its node
        self._mapping: asyncio.Task[None] | None = None
        self._map_again_s = 0.0  # not earlier
        self._unknown: StoreError = StoreUnavailable(
            "no node has been asked yet"
        )  # the reason for which a slot has no known node
        self._spread: set[asyncio.Task[Receipt]] = set()  # requests over several slots under way

    async def charge(self, hits: Sequence[Hit]) -> Receipt:
        """Charge all *hits* or none; see `ratelimiter.stores.base.Store`.

        Raises:
            StoreError: as `ratelimiter.stores.redis.store.RedisStore`.
        """
        self._belong_here()
        slot = slot_of(hits[0].key)
        async with Deadline(self._timeout_ms):
            if len(hits) == 1 or all(slot_of(hit.key) == slot for hit in hits):
                return await self._charge_group(slot, hits)
            # To its end even if the caller gives up, so that nothing stays charged that is to be given back.
            spread = asyncio.get_running_loop().create_task(self._charge_groups(hits))
            self._spread.add(spread)
            spread.add_done_callback(self._forget)
            return await asyncio.shield(spread)

    async def settle(self, settlements: Sequence[Settlement], source: str = STORE) -> None:  # noqa: ARG002 - its own
        """Replace charges by their final cost, each where its key is; see `ratelimiter.stores.base.Store`.

        Raises:
            StoreError: of one slot; the others may have taken note.
        """
        self._belong_here()
        groups: dict[int, list[Settlement]] = {}
        for settlement in settlements:
            groups.setdefault(slot_of(settlement.key), []).append(settlement)
        async with Deadline(self._timeout_ms):
            calls = [self._charge_group(slot, script.Settling(group)) for slot, group in groups.items()]
            answers = await asyncio.gather(*calls, return_exceptions=True)
        for answer in answers:
            if isinstance(answer, BaseException):
                raise answer

    def observe(self, observer: StoreObserver) -> None:
        """Report every round trip to *observer*; to be called before the first charge."""
        self._observer = observer

    def override_store(self, name: str) -> RedisOverrideStore:
        """Return the place of the runtime overrides of policy *name*."""
        return RedisOverrideStore(self, name)

    async def command(self, key: bytes, *words: str | bytes) -> object:
        """Send one small command to the node that serves *key*; see `ratelimiter.stores.overrides.Commanded`.

        Raises:
            StoreError: as `charge`, and for an error reply.
        """
        self._belong_here()
        async with Deadline(self._timeout_ms):
            return await self._ask_slot(slot_of(key), lambda node, asking: node.call(*words, asking=asking))

    async def control(self, key: bytes, *words: str | bytes) -> object:
        """Send one command that may take long to the node that serves *key*; see `stores.overrides.Commanded`.

        Raises:
            StoreError: as `command`.
        """
        self._belong_here()
        async with Deadline(max(CONTROL_TIMEOUT_MS, self._timeout_ms)):
            return await self._ask_slot(slot_of(key), lambda node, asking: node.control(*words, asking=asking))

    def _belong_here(self) -> None:
        """Drop what belongs to another event loop than the running one."""
        if self._loop is not asyncio.get_running_loop():
            self._loop = asyncio.get_running_loop()
            self._nodes, self._mapping, self._map_again_s = {}, None, 0.0

    async def close(self) -> None:
        """Close all connections. A closed store may be used again and opens them anew."""
        nodes, self._nodes = self._nodes, {}
        if self._loop is not asyncio.get_running_loop():
            return
        running = [*self._spread, *([] if self._mapping is None else [self._mapping])]
        for task in running:
            task.cancel()
        await asyncio.gather(*running, return_exceptions=True)
        for node in nodes.values():
            await node.close()

    def _forget(self, spread: asyncio.Task[Receipt]) -> None:
        self._spread.discard(spread)
        if not spread.cancelled():
            spread.exception()  # the caller has it, or has given up

    async def _charge_group(self, slot: int, hits: Sequence[Hit] | script.Settling) -> Receipt:
        """Charge hits of one slot, wherever that is now, within the deadline."""
        return await self._ask_slot(slot, lambda node, asking: node.charge(hits, -1 - slot if asking else slot))

    async def _ask_slot(self, slot: int, ask_node: Callable[[Server, bool], Awaitable[Answer]]) -> Answer:
        """Ask the node that serves *slot* now, within the deadline."""
        loop = asyncio.get_running_loop()
        until_s = loop.time() + self._timeout_ms / 1000
        redirects = 0
        ask: Host | None = None  # the node that is about to take the slot over
        while True:
            host = ask or self._served.get(slot) or await self._mapped(slot)
            try:
                return await ask_node(self._node(host), ask is not None)
            except StoreError as error:
                if loop.time() >= until_s:
                    raise
                redirect = _REDIRECT.match(str(error)) if error.kind is Kind.MOVED else None
                ask = None
                if redirect is not None:
                    to = (redirect[2] or host[0], int(redirect[3]))
                    if redirect[1] == "ASK":
                        ask = to
                    else:
                        self._served[slot] = to
                        self._remap()
                    redirects += 1
                    if redirects > REDIRECTS_MAX:
                        await asyncio.sleep(PAUSE_S)
                elif str(error).startswith("TRYAGAIN"):
                    await asyncio.sleep(PAUSE_S)
                elif error.kind not in UNDONE or await self._mapped(slot) == host:
                    self._remap()
                    raise

    async def _charge_groups(self, hits: Sequence[Hit]) -> Receipt:
        """Charge hits of several slots at once, and give back if one of them refuses."""
        groups: dict[int, list[int]] = {}
        for index, hit in enumerate(hits):
            groups.setdefault(slot_of(hit.key), []).append(index)
        parts = {slot: [hits[index] for index in indices] for slot, indices in groups.items()}
        answers = await asyncio.gather(
            *[self._charge_group(slot, part) for slot, part in parts.items()], return_exceptions=True
        )
        receipts: list[Receipt] = []
        errors = [answer for answer in answers if isinstance(answer, BaseException)]
        refused = bool(errors) or any(isinstance(answer, Receipt) and not answer.admitted for answer in answers)
        for (slot, part), answer in zip(parts.items(), answers, strict=True):
            if isinstance(answer, Receipt):
                receipts.append(await self._give_back(slot, part, answer) if refused else answer)
        if errors:
            raise errors[0]
        tallies: list[Tally | None] = [None] * len(hits)
        for indices, receipt in zip(groups.values(), receipts, strict=True):
            for index, tally in zip(indices, receipt.tallies, strict=True):
                tallies[index] = tally
        seen = [tally for tally in tallies if tally is not None]
        return Receipt(max(receipt.now_ms for receipt in receipts), not refused, seen)

    async def _give_back(self, slot: int, hits: Sequence[Hit], receipt: Receipt) -> Receipt:
        """Undo the charges of *receipt*; return the receipt as if they had never been."""
        withheld = {hit.rule.name for hit, tally in zip(hits, receipt.tallies, strict=True) if tally.retry_after_ms}
        charged = {
            index: settlement_of(hit, 0, receipt.now_ms)
            for index, hit in enumerate(hits)
            if receipt.admitted and hit.cost and hit.rule.name not in withheld
        }
        if not charged:
            return receipt
        after = await self._charge_group(slot, script.Settling(charged.values()))
        tallies = list(receipt.tallies)
        for index, tally in zip(charged, after.tallies, strict=True):
            tallies[index] = tally
        return receipt._replace(tallies=tallies)

    def _node(self, host: Host) -> Server:
        node = self._nodes.get(host)
        if node is None:
            address = self._seeds[0].placed(*host)
            node = Server(
                address.locate,
                timeout_ms=self._timeout_ms,
                clock=self._clock,
                observer=self._observer,
                **self._batching,
            )
            self._nodes[host] = node
        return node

    def _remap(self) -> None:
        """Ask for the slot map: once for all requests that wait for it, and not too often."""
        loop = asyncio.get_running_loop()
        if (self._mapping is None or self._mapping.done()) and loop.time() >= self._map_again_s:
            self._map_again_s = loop.time() + MAP_PAUSE_S
            self._mapping = loop.create_task(self._ask_around())

    async def _mapped(self, slot: int) -> Host:
        """Ask for the slot map again and return the node that serves *slot*."""
        self._remap()
        if self._mapping is not None:
            await asyncio.wait([self._mapping])  # which outlives a caller that gives up
        if slot not in self._served:
            raise type(self._unknown)(str(self._unknown), self._unknown.kind)
        return self._served[slot]

    async def _ask_around(self) -> None:
        known = [self._seeds[0].placed(*host) for host in dict.fromkeys(self._served.values())]
        for address in (*known, *self._seeds):
            try:
                self._served = await _slots(address)
            except StoreError as error:
                self._unknown = error
            else:
                self._unknown = StoreUnavailable("no node serves the slot", Kind.CLUSTER_DOWN)
                return


async def _slots(address: Address) -> dict[int, Host]:
    """Return the slot map of the node at *address*: each slot with the node that serves it."""
    # Not over redis-py, as decisions may wait for it: measured under faults (docs/decisions/0009-redis-py.md).
    connection = await open_connection(address, MAP_TIMEOUT_MS, role="")
    try:
        async with asyncio.timeout(MAP_TIMEOUT_MS / 1000):
            ranges = await connection.call("CLUSTER", "SLOTS")
    except TimeoutError as error:
        msg = f"the node at {address} does not answer"
        raise StoreUnavailable(msg, Kind.UNREACHABLE) from error
    finally:
        connection.abort(StoreUnavailable("done"))
    served: dict[int, Host] = {}
    if isinstance(ranges, list):
        for first, last, master, *_ in ranges:
            # A node that does not know its own name leaves it out.
            host = ((master[0] or b"").decode() or address.host, master[1])
            served.update(dict.fromkeys(range(first, last + 1), host))
    return served


def open_cluster(parts: SplitResult, timeout_ms: int = TIMEOUT_MS) -> ClusterStore:
    """Return the store of a `redis+cluster://` or `rediss+cluster://` (TLS) URL.

    For example `redis+cluster://user:password@host:7000,host2`.

    Raises:
        ValueError: the URL cannot be used.
    """
    options = options_of(parts, {name: text for name, text in OPTIONS.items() if name != "db"})
    if parts.path.strip("/") not in ("", "0"):
        msg = f"{parts.path!r} is not a database of a cluster, which has but one; write {parts.scheme}://host:{PORT}"
        raise ValueError(msg)
    entry = entry_of(parts, options)
    return ClusterStore([entry.placed(host, port) for host, port in hosts_of(parts, PORT)], timeout_ms=timeout_ms)
