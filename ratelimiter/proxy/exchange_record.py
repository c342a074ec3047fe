"""One request through a proxy and its answer, as those who count or write it down are told of it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Sequence


class ExchangeRecord(NamedTuple):
    """The facts of one request and its answer, for metrics and logs."""

    method: str  # as sent, so no metric label; empty when the head could not be read
    target: bytes  # canonical path and query; empty likewise
    status: int  # what the client was told; 0 when it was told nothing
    source: str  # the source of that answer: one of the constants below
    received: int  # bytes of the request's body that came
    sent: int  # bytes of the response's body that left
    duration_ms: float  # from the end of the request's head to the end of the response
    upstream_ms: float  # of it, from the request's leaving to the head of the upstream's answer; 0 if it was not asked
    request_id: str
    peer: str | None = None  # address of the client's end of the connection; None on a unix socket
    headers: Sequence[tuple[bytes, bytes]] = ()  # of the request, as received; a log names a caller by them
    decision: Any = None  # of the judge, if it refused; the proxy does not look into it


# Sources of an answer. A closed set: it becomes a metric label.
UPSTREAM = "upstream"
JUDGE = "judge"
PROXY = "proxy"
SOURCES = (UPSTREAM, JUDGE, PROXY)
