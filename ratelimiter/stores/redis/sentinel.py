"""The address of the master, found through Sentinels."""

from __future__ import annotations

import asyncio
from collections import Counter
from typing import TYPE_CHECKING
from urllib.parse import unquote

from ratelimiter.errors import Kind, StoreError, StoreUnavailable
from ratelimiter.stores.redis import control
from ratelimiter.stores.redis.url import OPTIONS, Address, db_of, entry_of, hosts_of, options_of

if TYPE_CHECKING:
    from collections.abc import Sequence
    from urllib.parse import SplitResult

PORT = 26379
TIMEOUT_MS = 250  # for one Sentinel to answer; they are asked at the same time

SENTINEL_OPTIONS = OPTIONS | {
    "sentinel_username": "user at the Sentinels; default: none",
    "sentinel_password": "password at the Sentinels; default: none",
}


# What to write for an error of a Sentinel, which has a password of its own.
ADVICE = {
    Kind.AUTHENTICATION: "a Sentinel has a password of its own; write ?sentinel_password=... into the URL",
    Kind.REFUSED: "write the port of a Sentinel, mostly 26379, and redis:// for a server without Sentinels",
}


class Sentinels:
    """Several Sentinels that watch one master.

    Args:
        sentinels: where they are, and how to get in there.
        service: the name under which they know the master.
        master: how to get in at the master; its place does not count.
    """

    def __init__(self, sentinels: Sequence[Address], service: str, master: Address) -> None:
        self.sentinels = tuple(sentinels)
        self.service = service
        self.master = master

    async def locate(self) -> Address:
        """Return the address of the master that most Sentinels name, as soon as that is certain.

        Raises:
            StoreUnavailable: none answers, or none knows a master.
            StoreMisconfigured: none lets us in.
        """
        votes: Counter[tuple[str, int]] = Counter()
        errors: list[StoreError] = []
        asked = {asyncio.create_task(self._ask(sentinel)) for sentinel in self.sentinels}
        try:
            for answer in asyncio.as_completed(asked):
                try:
                    votes[await answer] += 1
                except StoreError as error:
                    errors.append(error)
                if votes and votes.most_common(1)[0][1] * 2 > len(self.sentinels):
                    break  # one that is cut off from the others may be the first to answer, with what was true once
        finally:
            for task in asked:
                task.cancel()
            await asyncio.gather(*asked, return_exceptions=True)
        if not votes:
            raise errors[0]
        host, port = votes.most_common(1)[0][0]
        return self.master.placed(host, port, db=self.master.db)

    async def _ask(self, sentinel: Address) -> tuple[str, int]:
        try:
            reply = await control.ask(
                sentinel, "SENTINEL", "GET-MASTER-ADDR-BY-NAME", self.service, timeout_ms=TIMEOUT_MS
            )
        except StoreError as error:
            what = f"; {ADVICE[error.kind]}" if error.kind in ADVICE else ""
            raise type(error)(f"the Sentinel at {sentinel}: {error}{what}", error.kind) from error
        if not isinstance(reply, list):
            msg = f"the Sentinel at {sentinel} knows no master {self.service!r}"
            raise StoreUnavailable(msg, Kind.NO_MASTER)
        return reply[0].decode(), int(reply[1])


def sentinels_of(parts: SplitResult) -> Sentinels:
    """Return the Sentinels of a `redis+sentinel://` or `rediss+sentinel://` (TLS with all of them) URL.

    `redis+sentinel://user:password@sentinel1:26379,sentinel2:26379/service/db?option=value`. User and password are
    those of the master; those of the Sentinels are options.

    Raises:
        ValueError: an unknown option, or a value that cannot be used. Never repeats a password.
    """
    options = options_of(parts, SENTINEL_OPTIONS)
    service, _, db = parts.path.strip("/").partition("/")
    if not service:
        msg = f"{parts.path!r} is not the name of a master; write {parts.scheme}://host:{PORT}/mymaster"
        raise ValueError(msg)
    master = entry_of(parts, options)
    entry = Address(
        username=options.get("sentinel_username", ""),
        password=options.get("sentinel_password", ""),
        client_name=master.client_name,
        tls=master.tls,
    )
    return Sentinels(
        [entry.placed(host, port) for host, port in hosts_of(parts, PORT)],
        unquote(service),
        master.placed("", 0, db=db_of(options.get("db", "") or db)),
    )
