"""Every seam of the proxy: what it asks of a judge, tells observers, and what its own parts ask of each other."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol, TypeVar, TypeVarTuple

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

    from ratelimiter.core.reply import Reply
    from ratelimiter.core.request import Request
    from ratelimiter.proxy.exchange_record import ExchangeRecord
    from ratelimiter.proxy.head import Fields, ResponseHead

    Header = tuple[bytes, bytes]
    BodyObserver = Callable[[bytes], None]

Arguments = TypeVarTuple("Arguments")
Result = TypeVar("Result")

log = logging.getLogger(__name__)


# --- What a judge provides


class Follower(Protocol):
    """Learns the outcome of one forwarded request. Its methods must be quick and must not raise."""

    def responded(self, status: int, headers: Sequence[Header]) -> BodyObserver | None:
        """Note the head of the response, and return an observer of the response's body if one is wanted.

        The head is the upstream's final one or its 101, or that of an error of the proxy. The method is not called if
        the verdict brought its own reply, or if the client left before any response.

        Args:
            status: 101 or 200 to 599.
            headers: all fields in order, names in lower case, those that are not passed on included.

        Returns:
            A callable, which gets each piece of the response's content before it is sent on (without its transfer
            coding, with its content coding); None to see nothing, which costs nothing. It gets neither the bytes of a
            tunnel nor the body of an error of the proxy.
        """

    @property
    def drains(self) -> bool:
        """True if the response is to be read to its end though the client has left; asked when it leaves."""

    def ended(self, complete: bool, disconnected: bool) -> None:
        """Note the end of the exchange, however it ended; for an upgraded connection, the end of the tunnel.

        Called exactly once, also if the client left before the verdict. The observer of the body gets nothing after it.

        Args:
            complete: the response, the upstream's or ours, came to its proper end.
            disconnected: it did not, because the client left.
        """


def notify(method: Callable[[*Arguments], Result], *arguments: *Arguments) -> Result | None:
    """Return what a follower's method returns; log what it raises, and return None then."""
    try:
        return method(*arguments)
    except Exception:
        log.exception("a follower failed")
        return None


class Verdict(NamedTuple):
    """The judge's answer to one request."""

    reply: Reply | None  # sent in the upstream's place; None: forward the request
    headers: Sequence[Header]  # added to the response, the upstream's or ours
    sent_on: Sequence[Header]  # added to the request that is forwarded
    request_id: str  # quoted in error bodies; empty without request ids
    follower: Follower | None = None  # learns the outcome
    decision: Any = None  # if it refuses, for the record of the exchange


class Judge(Protocol):
    """Decides whether a request is forwarded. All attributes may change at any time; each is read for every head.

    Attributes:
        looks_at_paths: True if two paths can make a difference.
        looks_at_bodies: True if `body_wanted` is to be called at all.
        reserved_request: lower-case names of request fields that verdicts add; a client's own are dropped.
        reserved_response: lower-case names of response fields that verdicts add; the upstream's own are dropped. Both
            sets are compared by identity: a change needs a new set.
        figures: those of *reserved_response* that say how much of a limit is left. A 429 of the upstream keeps its own.
    """

    looks_at_paths: bool
    looks_at_bodies: bool
    reserved_request: frozenset[bytes]
    reserved_response: frozenset[bytes]
    figures: frozenset[bytes]

    def forwarded_target(self, method: str, target: bytes) -> bytes:
        """Return the form in which *target* is judged and forwarded. Called only if `looks_at_paths`, and for a path
        that servers may read differently.

        Raises:
            MalformedRequest: it is refused, unjudged.
        """

    def body_wanted(self, request: Request) -> int:
        """Return the number of body bytes to read before `judge`; 0 leaves the body unread. Must not raise."""

    async def judge(self, request: Request) -> Verdict:
        """Return the verdict on *request*. Called once per request, before the upstream hears of it.

        The coroutine runs in no task of its own, so it must not use `asyncio.timeout` or `asyncio.current_task`. It is
        never cancelled, because what it has charged stays charged.
        """


class ErrorWriter(Protocol):
    """Writes the answers that the proxy gives by itself."""

    def error(
        self, status: int, fault: tuple[str, str], verdict: Verdict | None, headers: Iterable[Header]
    ) -> tuple[Reply, Verdict]:
        """Return the reply for *status*, and the verdict whose fields go with it.

        Args:
            status: 400 to 599.
            fault: a subject such as `request`, and a predicate such as `has no Host`.
            verdict: the judge's, if it was asked.
            headers: of the request as far as they could be read; names in lower case.
        """


class ExchangeObserver(Protocol):
    """Notes every exchange at its end, for metrics and logs."""

    def exchanged(self, exchange: ExchangeRecord) -> None:
        """Note *exchange*. Must be quick and must not raise."""


# --- What the parts of the proxy ask of each other

# Why a client is not read.
AHEAD = "ahead"  # it has sent enough for a request whose turn has not come
UPSTREAM_FULL = "upstream"  # the upstream takes in less than comes


class Client(Protocol):
    """A client's connection, as its exchange and the set of all clients use it. It alone owns the read buffer.

    Attributes:
        peer: the client's address; None on a unix socket.
        half_closed: True once the client has closed its side.
        paused: the reasons why reading is paused: `AHEAD`, `UPSTREAM_FULL`.
        write: sends bytes to the client.
    """

    peer: str | None
    half_closed: bool
    paused: set[str]
    write: Callable[[bytes], None]

    def take(self) -> bytes:
        """Return the bytes that were read and not used, and forget them."""

    def put_back(self, data: bytes) -> None:
        """Keep *data*, which belongs to the next request. Nothing unread may be left in the buffer."""

    def forwarded(self, fields: Fields) -> bytes:
        """Return the field lines that the upstream gets for the request's *fields*."""

    def pause(self, why: str) -> None:
        """Stop reading until `resume` is called for the same reason."""

    def resume(self, why: str) -> None:
        """Read on, unless another reason to pause is left."""

    def finished(self, *, keep: bool, unread: bool) -> None:
        """End the exchange: go on to the next request if *keep*, else close; *unread* as for `close`."""

    def close(self, *, unread: bool) -> None:
        """Close so that what was written last arrives; *unread*: the client may still be sending."""

    def break_off(self, *, reset: bool) -> None:
        """Close at once; with a *reset* if the client would take anything else for the response's proper end."""

    def abort(self) -> None:
        """Close at once, and end the exchange before this returns."""

    def retire(self) -> None:
        """Close now if nothing is under way, else after the response that is."""

    def tick(self, now_s: float, passed_s: float) -> None:
        """Check the deadlines; see `ratelimiter.proxy.timeouts.Watched`."""


class ClientSet(Protocol):
    """The client connections of a proxy, as metrics see them."""

    @property
    def turned_away(self) -> int:
        """Connections that were closed at once, as there were too many."""

    def __len__(self) -> int:
        """Return the number of open connections."""


class ResponseReceiver(Protocol):
    """Gets a response from the upstream as it comes."""

    def informed(self, head: ResponseHead) -> None:
        """Take an informational response; the final one is still to come."""

    def responded(self, head: ResponseHead, content: bytes, *, complete: bool) -> None:
        """Take the head of the final response, and the first of its content."""

    def switched(self, head: ResponseHead, data: bytes) -> None:
        """Take the upstream's consent to the upgrade; everything after it is *content*, unread."""

    def content(self, data: bytes) -> None:
        """Take more content; after an upgrade, whatever came."""

    def ended(self, trailers: list[bytes]) -> None:
        """Take the end of the response, or of the tunnel."""

    def unanswered(self) -> None:
        """Take note that a connection which was kept from an earlier request ended without a byte of a response."""

    def upstream_failed(self, status: int, issue: str) -> None:
        """Take note that no response, or no more of it, will come; *status* is for a client that has got nothing."""

    def upstream_full(self) -> None:
        """Send no more for now."""

    def upstream_ready(self) -> None:
        """Go on sending."""
