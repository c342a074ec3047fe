"""`envoy.service.auth.v3.Authorization`: a request as Envoy saw it, judged as the sidecar would judge it."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ratelimiter.core.request import Request
from ratelimiter.proxy.interfaces import notify
from ratelimiter.service.grpc.calls import CallError, Status
from ratelimiter.service.grpc.protobuf import ProtobufError, delimited, embedded, fields, text, whole

if TYPE_CHECKING:
    from collections.abc import Iterable

    from ratelimiter.proxy.interfaces import Verdict
    from ratelimiter.service.decider import Decider
    from ratelimiter.service.grpc.calls import Call

    Header = tuple[bytes, bytes]

PATH = "/envoy.service.auth.v3.Authorization/Check"
SERVICE = "envoy.service.auth.v3.Authorization"

OVERWRITE = whole(3, 2)  # append_action of a HeaderValueOption: replace what is there, or add
ALLOWED = delimited(1, b"")  # google.rpc.Status of code 0
PERMISSION_DENIED, UNAUTHENTICATED = 7, 16  # google.rpc.Code


class Authorization:
    """Answers calls.

    Args:
        engine: decides.
    """

    def __init__(self, engine: Decider) -> None:
        self._engine = engine

    async def check(self, call: Call) -> bytes:
        """Return a CheckResponse.

        Raises:
            CallError: the request is no CheckRequest.
        """
        try:
            request = read_request(call.message)
        except ProtobufError as fault:
            raise CallError(Status.INVALID_ARGUMENT, f"the request is no CheckRequest: {fault}") from None
        verdict = await self._engine.judge(request)
        if verdict.follower is not None:  # Envoy never tells how the request went on
            notify(verdict.follower.ended, True, False)
        if verdict.reply is None:
            return self._admitted(verdict)
        return _refused(verdict)

    def _admitted(self, verdict: Verdict) -> bytes:
        gate = self._engine.gate
        told = {name for name, _ in verdict.sent_on}
        answer = [delimited(2, _option(header, replacing=True)) for header in verdict.sent_on]
        answer += [delimited(5, name) for name in sorted(gate.reserved_request - told)]
        answer += [
            delimited(6, _option(header, replacing=header[0] in gate.reserved_response)) for header in verdict.headers
        ]
        return ALLOWED + delimited(3, b"".join(answer))


def _refused(verdict: Verdict) -> bytes:
    reply = verdict.reply
    assert reply is not None  # noqa: S101  # of a refusal
    code = UNAUTHENTICATED if reply.status == 401 else PERMISSION_DENIED
    headers = [header for header in (*reply.headers, *verdict.headers) if header[0] != b"content-length"]
    denied = delimited(1, whole(1, reply.status))
    denied += b"".join(delimited(2, _option(header, replacing=True)) for header in headers)
    return delimited(1, whole(1, code)) + delimited(2, denied + delimited(3, reply.body))


def _option(header: Header, *, replacing: bool) -> bytes:
    name, value = header
    return delimited(1, delimited(1, name) + delimited(2, value)) + (OVERWRITE if replacing else b"")


def read_request(message: bytes) -> Request:
    """Return the request that a CheckRequest is about.

    Raises:
        ProtobufError: it is none.
    """
    peer: str | None = None
    http = b""
    for field, value in _within(message, 1):  # attributes
        if field == 1:  # source, of which the address
            for _, address in ((f, v) for f, v in fields(embedded(value)) if f == 1):
                peer = _address(embedded(address)) or peer
        elif field == 4:  # request
            http = b"".join(embedded(item) for name, item in fields(embedded(value)) if name == 2)
    return _http(http, peer)


def _within(message: bytes, wanted: int) -> Iterable[tuple[int, int | bytes]]:
    for field, value in fields(message):
        if field == wanted:
            yield from fields(embedded(value))


def _address(message: bytes) -> str | None:
    """Return the address of a socket; None of a pipe."""
    return next((text(value) for field, value in _within(message, 1) if field == 2), None)


def _http(message: bytes, peer: str | None) -> Request:
    method, path, host = "GET", b"/", b""
    body: bytes | None = None
    headers: list[Header] = []
    raw: list[Header] = []
    for field, value in fields(message):
        if field == 2:
            method = text(value)
        elif field == 3:
            headers.append(_pair(embedded(value)))
        elif field == 4:
            path = embedded(value)
        elif field == 5:
            host = embedded(value)
        elif field in (11, 12) and value:
            body = embedded(value)
        elif field == 13:  # as Envoy has them, if it is told to encode_raw_headers
            raw += [_pair(embedded(item)) for name, item in fields(embedded(value)) if name == 1]
    listed = [header for header in raw or headers if header[0][:1] != b":"]
    if host and not any(name == b"host" for name, _ in listed):
        listed.insert(0, (b"host", host))
    if body is None and not any(name in (b"content-length", b"transfer-encoding") for name, _ in listed):
        body = b""
    return Request(method, path, tuple(listed), peer, body=body)


def _pair(message: bytes) -> Header:
    """Return an entry of the map of headers, or a HeaderValue, whose raw value is in another field."""
    key = value = b""
    for field, item in fields(message):
        if field == 1:
            key = embedded(item)
        elif field in (2, 3) and item:
            value = embedded(item)
    return key.lower(), value
