"""The HTTP doors: `/check` for proxies that pass on what they get, `/check/nginx`, and `/v1` for everything else."""

from __future__ import annotations

import base64
import json
import zlib
from typing import TYPE_CHECKING

from ratelimiter.core.reply import Reply
from ratelimiter.core.request import MalformedRequest, Request
from ratelimiter.proxy.interfaces import Verdict, notify
from ratelimiter.service.forwarded_request import described
from ratelimiter.service.json_api import API_BYTES_MAX, BadRequest, JsonApi

if TYPE_CHECKING:
    from collections.abc import Iterable

    from ratelimiter.service.decider import Decider

    Header = tuple[bytes, bytes]

CHECK, NGINX, NGINX_REPLY = b"/check", b"/check/nginx", b"/check/nginx/reply"
DECIDE, SETTLE, JSON = b"/v1/decide", b"/v1/settle", b"/json"
STATUS, BODY, REFUSAL = b"x-ratelimit-status", b"x-ratelimit-body", b"x-ratelimit-refusal"
# nginx reads a response's head into one buffer of 4,096 bytes (proxy_buffer_size); the figures need some of it, too.
BODY_BYTES_MAX = 2_400
PRINTABLE = frozenset(range(0x20, 0x7F))

ALLOWED = Reply(200, [(b"content-length", b"0")], b"")
NO_SUCH_DOOR = {"error": "there is no such door; ask /check, /check/nginx, POST /v1/decide or POST /v1/settle"}


class Doors:
    """The judge of a proxy that forwards nothing: each request is a question, and its reply the answer.

    Args:
        engine: decides.
        api: answers the questions in JSON.
    """

    looks_at_paths = False  # a door's own path says nothing
    looks_at_bodies = True
    reserved_request: frozenset[bytes] = frozenset()
    reserved_response: frozenset[bytes] = frozenset()
    figures: frozenset[bytes] = frozenset()

    def __init__(self, engine: Decider, api: JsonApi) -> None:
        self._engine = engine
        self._api = api

    def forwarded_target(self, method: str, target: bytes) -> bytes:  # noqa: ARG002  # as a judge is asked
        """Return *target*: nothing is forwarded; see `ratelimiter.proxy.interfaces.Judge`."""
        return target

    def body_wanted(self, request: Request) -> int:
        """Return how much of a question's body is to be read; see `ratelimiter.proxy.interfaces.Judge`."""
        return API_BYTES_MAX + 1 if request.target.partition(b"?")[0] in (DECIDE, SETTLE, JSON) else 0

    async def judge(self, request: Request) -> Verdict:
        """Return the answer; see `ratelimiter.proxy.interfaces.Judge`."""
        path = request.target.partition(b"?")[0]
        if path in (DECIDE, SETTLE, JSON):
            return await self._json(path, request)
        if path == NGINX_REPLY:
            return _rendered(request.headers)
        try:
            if path == NGINX or path.startswith(NGINX + b"/"):
                return _for_nginx(await self._checked(described(request, NGINX, by_nginx=True)))
            if path == CHECK or path.startswith(CHECK + b"/"):
                return await self._checked(described(request, CHECK))
        except MalformedRequest as fault:
            reply, verdict = self._engine.gate.error(400, (fault.field, fault.issue), None, request.headers)
            verdict = verdict._replace(reply=reply)
            return _for_nginx(verdict) if path.startswith(NGINX) else verdict
        return _of_json(404, NO_SUCH_DOOR)

    async def _checked(self, asked: Request) -> Verdict:
        verdict = await self._engine.judge(asked)
        if verdict.follower is not None:  # this door never sees the response
            notify(verdict.follower.ended, True, False)
            verdict = verdict._replace(follower=None)
        if verdict.reply is None:
            return Verdict(ALLOWED, [*verdict.headers, *_once(verdict)], (), verdict.request_id)
        return verdict

    async def _json(self, path: bytes, request: Request) -> Verdict:
        if request.method != "POST":
            return _of_json(405, {"error": f"{request.method} is no method of this door; write POST"})
        try:
            if request.body is None or len(request.body) > API_BYTES_MAX:
                raise BadRequest(413, f"the body is missing or larger than {API_BYTES_MAX} bytes")
            answer = await {DECIDE: self._api.decide, SETTLE: self._api.settle, JSON: self._api.rate_limit}[path](
                request.body, request.peer
            )
        except BadRequest as fault:
            return _of_json(fault.status, {"error": str(fault)})
        return _of_json(*answer)


def _once(verdict: Verdict) -> list[Header]:
    """Return what the application is to be told, without what the client is told already: a request id is in both."""
    return [header for header in verdict.sent_on if header not in verdict.headers]


def _of_json(status: int, value: object) -> Verdict:
    body = json.dumps(value, separators=(",", ":")).encode()
    headers = [(b"content-type", b"application/json"), (b"content-length", b"%d" % len(body))]
    if status == 405:
        headers.append((b"allow", b"POST"))
    return Verdict(Reply(status, headers, body), (), (), "")


def _for_nginx(verdict: Verdict) -> Verdict:
    """Return *verdict* for auth_request, to which only 200, 401 and 403 mean anything: of a refusal the status and the
    body are in headers. `X-RateLimit-Refusal` holds all of it, for `/check/nginx/reply`, which charges nothing.
    """
    reply = verdict.reply
    if reply is None or reply is ALLOWED:
        return verdict
    kept = [header for header in reply.headers if header[0] not in (b"content-length", b"content-type")]
    told: list[Header] = [(STATUS, b"%d" % reply.status)]
    if len(reply.body) <= BODY_BYTES_MAX and PRINTABLE.issuperset(reply.body):
        told.append((BODY, reply.body))
    told.append((REFUSAL, _packed(Reply(reply.status, [*reply.headers, *verdict.headers], reply.body))))
    status = 401 if reply.status == 401 else 403
    types = [header for header in reply.headers if header[0] == b"content-type"]
    answer = Reply(status, [*kept, *types, *told, (b"content-length", b"0")], b"")
    return verdict._replace(reply=answer)


def _packed(reply: Reply) -> bytes:
    lines = [b"%d" % reply.status, *(b"%s: %s" % header for header in reply.headers if header[0] != b"content-length")]
    return base64.urlsafe_b64encode(zlib.compress(b"\n".join(lines) + b"\n\n" + reply.body, 6))


def _rendered(headers: Iterable[Header]) -> Verdict:
    """Return the refusal that `X-RateLimit-Refusal` holds."""
    packed = next((value for name, value in headers if name.lower() == REFUSAL), b"")
    try:
        unpacked = zlib.decompressobj().decompress(base64.urlsafe_b64decode(packed), API_BYTES_MAX)
        head, _, body = unpacked.partition(b"\n\n")
        status, *lines = head.split(b"\n")
        told = [(name, value) for name, _, value in (line.partition(b": ") for line in lines)]
        return Verdict(Reply(int(status), [*told, (b"content-length", b"%d" % len(body))], body), (), (), "")
    except (ValueError, zlib.error):
        what = "X-RateLimit-Refusal is missing, or is not what /check/nginx has sent"
        return _of_json(400, {"error": f"{what}; set it with auth_request_set and proxy_set_header"})
