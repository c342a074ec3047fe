"""The state of one request on its way through an application: its judgements, and the headers of its response."""

from __future__ import annotations

from operator import itemgetter
from typing import TYPE_CHECKING, Any

from ratelimiter.core.decision import merge
from ratelimiter.core.identity import NOBODY
from ratelimiter.core.requirement import REASONS

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Sequence

    from ratelimiter.core.decision import Decision
    from ratelimiter.core.rule import Hit
    from ratelimiter.engine.limiter import Judgement, Limiter
    from ratelimiter.engine.presenter import Presenter

    Message = Any  # as frameworks type it
    Send = Callable[[Message], Awaitable[None]]
    Header = tuple[bytes, bytes]

SCOPE_KEY = "ratelimiter"  # where the ASGI scope holds the state, so that all limiters of a stack find one
NAME = itemgetter(0)  # of a header
STARTS = frozenset({"http.response.start", "websocket.accept", "websocket.http.response.start"})
CHARGED_AND_REFUSED = frozenset(REASONS)  # a request that lacks what it must bring has been charged


class RequestState:
    """One request and its response, made by the outermost limiter of a stack, which writes the headers for all.

    Args:
        presenter: of the outermost limiter.
        limiter: the outermost one.
        judgement: that it passed.
        request_id: quoted in error bodies, too; empty when the dialect has none.

    Attributes:
        identity: of the caller, as the innermost limiter knows it that looks for one.
        started: True if the response has begun.
    """

    __slots__ = ("_first", "_further", "_limiter", "_presenter", "identity", "request_id", "started")

    def __init__(self, presenter: Presenter, limiter: Limiter, judgement: Judgement, request_id: str) -> None:
        self._presenter = presenter
        self._limiter = limiter
        self._first = judgement
        self._further: Sequence[tuple[Limiter, Judgement]] = ()
        self.identity = judgement[2]
        self.request_id = request_id
        self.started = False

    def add(self, limiter: Limiter, judgement: Judgement) -> None:
        """Add the *judgement* of a *limiter* further in; if it charges nothing, give back what the others charged."""
        decision = judgement.decision
        if not decision.allowed and decision.reason not in CHARGED_AND_REFUSED:
            for other, passed in ((self._limiter, self._first), *self._further):
                other.give_back(passed)
        self._further = (*self._further, (limiter, judgement))
        if judgement.identity is not NOBODY:
            self.identity = judgement.identity

    @property
    def decisions(self) -> Sequence[Decision]:
        """The decisions of all limiters, from the outermost inward."""
        return [self._first.decision, *(judgement.decision for _, judgement in self._further)]

    @property
    def charged(self) -> Sequence[Hit]:
        """The hits that the limiters have charged, so that one further in does not charge them again."""
        return [*self._first.hits, *(hit for _, judgement in self._further for hit in judgement.hits)]

    @property
    def reserved(self) -> frozenset[bytes]:
        """The lower-case names of the response headers that are ours to say."""
        return self._presenter.reserved_response

    @property
    def headers(self) -> list[Header]:
        """The headers that are ours to say, for all that was decided so far."""
        presenter = self._presenter
        headers = presenter.headers(merge(self.decisions) if self._further else self._first[0])
        if presenter.id_header is not None:
            headers.append((presenter.id_header, self.request_id.encode()))
        return headers

    def sender(self, send: Send) -> Send:
        """Return *send*, with our headers on the message that begins the response.

        A closure, not a method, because the scope holds this state and what servers call `send` holds the scope: kept
        here it would close a circle that only the garbage collector opens, at a third of the throughput. And no
        coroutine of its own: that would be one more per message, for an await that nothing needs.
        """
        reserved = self._presenter.reserved_response

        def send_with_headers(message: Message) -> Awaitable[None]:
            if self.started or message["type"] not in STARTS:
                return send(message)
            self.started = True
            headers = [*message.get("headers", ())]
            if not reserved.isdisjoint(map(NAME, headers)):
                headers = [header for header in headers if header[0] not in reserved]
            headers += self.headers
            return send({**message, "headers": headers})  # a copy: the application may send the same one again

        return send_with_headers
