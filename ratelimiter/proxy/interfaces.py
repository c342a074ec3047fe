"""What the proxy asks before it forwards, and what it is told: it knows of no limits, only of verdicts."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, NamedTuple, Protocol, TypeVarTuple

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

    from ratelimiter.core.reply import Reply
    from ratelimiter.core.request import Request
    from ratelimiter.proxy.exchange_record import Exchanged

    Header = tuple[bytes, bytes]

Told = TypeVarTuple("Told")

log = logging.getLogger(__name__)


class Follower(Protocol):
    """Is told what becomes of one request after its verdict. It must be quick and must not raise."""

    def responded(self, status: int, headers: Sequence[Header]) -> None:
        """The head of the response is there: the upstream's final one or its 101, or an error of the proxy's own. It is
        not called when the verdict itself brought the reply, and not when the client was gone before.

        Args:
            status: 101 or 200 to 599.
            headers: that came with it, in order, names in lower case; also those that the client does not get.
        """

    def ended(self) -> None:
        """The exchange is over, however it ended; of a request that became a tunnel, the tunnel. Called exactly once,
        even if the client had gone before the verdict came.
        """


def tell(hearing: Callable[[*Told], None], *told: *Told) -> None:
    """Call a method of a follower; what it raises is logged and harms nobody."""
    try:
        hearing(*told)
    except Exception:
        log.exception("a follower failed")


class Verdict(NamedTuple):
    """What becomes of one request."""

    reply: Reply | None  # sent in the upstream's place; None: forward the request
    headers: Sequence[Header]  # added to the response, whoever gives it
    sent_on: Sequence[Header]  # added to the request that is forwarded
    request_id: str  # quoted in error bodies; empty where there is none
    follower: Follower | None = None  # who is told how it went on


class Judge(Protocol):
    """Decides whether a request is forwarded.

    Attributes:
        looks_at_paths: whether two paths can make a difference. If so, a path that could be read in two ways is refused
            unjudged, else it is forwarded as it is.
        looks_at_bodies: whether `body_wanted` is to be asked at all. Both may change at any time.
    """

    looks_at_paths: bool
    looks_at_bodies: bool

    def body_wanted(self, request: Request) -> int:
        """How many bytes of the body the judge wants to see: that many of its content, or all if there are fewer, are
        the `body` of the request that it is asked about. 0: none, and the body stays unread until the verdict is there.
        Must not raise.
        """

    async def judge(self, request: Request) -> Verdict:
        """The verdict on *request*, asked for once, before the upstream hears of it.

        It runs in no task unless it makes one: `asyncio.timeout` and `asyncio.current_task` are not for it. It is never
        cancelled, as what it has charged stays charged.
        """


class Errors(Protocol):
    """Words the answers that the proxy gives by itself."""

    def error(
        self, status: int, fault: tuple[str, str], verdict: Verdict | None, headers: Iterable[Header]
    ) -> tuple[Reply, Verdict]:
        """The reply that says *status*, and the verdict whose fields go with it.

        Args:
            status: 400 to 599.
            fault: what is wrong: a subject such as `request`, and a predicate such as `has no Host`.
            verdict: what the judge had said, if it was asked.
            headers: of the request as far as they could be read; names in lower case.
        """


class Observer(Protocol):
    """Is told every exchange, at its end."""

    def exchanged(self, exchange: Exchanged) -> None:
        """Take note of *exchange*. Must be quick and must not raise."""
