"""Decisions in JSON for anything that sends HTTP: `/v1/decide`, `/v1/settle`, and the `/json` of the Go reference."""

from __future__ import annotations

import hashlib
import hmac
import json
from base64 import urlsafe_b64decode, urlsafe_b64encode
from typing import TYPE_CHECKING, Any

from ratelimiter.core.quota import LIMIT_MAX
from ratelimiter.core.request import Request
from ratelimiter.core.settlement import Settlement
from ratelimiter.parsing.units import spell_limit
from ratelimiter.service.grpc.calls import Call, CallError
from ratelimiter.service.grpc.protobuf import delimited, fields, number, text, whole

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from ratelimiter.core.decision import Decision
    from ratelimiter.core.reply import Reply
    from ratelimiter.core.rule import Hit, Rule
    from ratelimiter.service.decider import Decider
    from ratelimiter.service.rls import RateLimitService

API_BYTES_MAX = 1_048_576  # of a question
SETTLED_MAX = 65_536  # tokens that were settled, so that none is twice
CODES = {0: "UNKNOWN", 1: "OK", 2: "OVER_LIMIT"}
UNITS = ("UNKNOWN", "SECOND", "MINUTE", "HOUR", "DAY", "MONTH", "YEAR", "WEEK")
FIELDS = {"method", "path", "headers", "peer", "body", "cost"}


class BadRequest(ValueError):  # noqa: N818  # the question is at fault, not we
    """A question that cannot be answered.

    Attributes:
        status: of the answer.
    """

    def __init__(self, status: int, issue: str) -> None:
        super().__init__(issue)
        self.status = status


class JsonApi:
    """Answers questions in JSON.

    Args:
        engine: decides.
        calls: answers questions about descriptors.
        secret: by which tokens are known as ours; the same in all workers.
    """

    def __init__(self, engine: Decider, calls: RateLimitService, secret: bytes) -> None:
        self._engine = engine
        self._calls = calls
        self._secret = secret
        self._settled: dict[str, None] = {}

    async def decide(self, body: bytes, peer: str | None) -> tuple[int, dict[str, Any]]:
        """Answer `POST /v1/decide`.

        Raises:
            BadRequest: the question has a fault.
        """
        asked = _object(body)
        if "descriptors" in asked:
            return 200, await self._decide_descriptors(asked)
        unknown = sorted(asked.keys() - FIELDS)
        if unknown:
            raise BadRequest(400, f"{unknown[0]!r} is unknown; write {', '.join(sorted(FIELDS))}, or descriptors")
        request = _request(asked, peer)
        cost = asked.get("cost")
        if cost is not None and not _is_whole(cost, 1, LIMIT_MAX):
            raise BadRequest(400, f"cost: {cost!r} is not a whole number from 1 to {LIMIT_MAX}")
        decided = await self._engine.decide(request, cost)
        answer = self._answer(decided.decision, decided.reply)
        answer["headers"] = {name.decode(): value.decode("latin-1") for name, value in decided.headers}
        answer["upstream_headers"] = {name.decode(): value.decode("latin-1") for name, value in decided.sent_on}
        if decided.decision.allowed and decided.hits:
            answer["token"] = self._token(decided.decision, decided.hits)
        return 200, answer

    def _answer(self, decision: Decision, reply: Reply | None) -> dict[str, Any]:
        answer: dict[str, Any] = {
            "allowed": decision.allowed,
            "reason": decision.reason,
            "source": decision.source,
            "wait_ms": decision.retry_after_ms,
            "rules": [
                {
                    "name": outcome.rule.name,
                    "limit": spell_limit(outcome.rule.quota),
                    "remaining": outcome.remaining,
                    "reset_ms": outcome.reset_ms,
                    "wait_ms": outcome.retry_after_ms,
                    "shadow": outcome.rule.shadow,
                }
                for outcome in decision.outcomes
            ],
        }
        if reply is not None:
            answer["reply"] = {
                "status": reply.status,
                "headers": {name.decode(): value.decode("latin-1") for name, value in reply.headers},
                "body": reply.body.decode("utf-8", "replace"),
            }
        return answer

    async def settle(self, body: bytes, _: str | None) -> tuple[int, dict[str, Any]]:
        """Answer `POST /v1/settle`: the token of a decision, and `cost` that it came to, or `release` it whole.

        Raises:
            BadRequest: the question has a fault.
        """
        asked = _object(body)
        unknown = sorted(asked.keys() - {"token", "cost", "release"})
        if unknown:
            raise BadRequest(400, f"{unknown[0]!r} is unknown; write token, and cost or release")
        cost, release, token = asked.get("cost"), asked.get("release", False), asked.get("token")
        if (cost is None) == (not release) or not isinstance(release, bool):
            raise BadRequest(400, "there is neither cost nor release: true, or both; write one of them")
        if cost is not None and not _is_whole(cost, 0, LIMIT_MAX):
            raise BadRequest(400, f"cost: {cost!r} is not a whole number from 0 to {LIMIT_MAX}")
        charged = self._read_token(token)
        if token in self._settled:
            raise BadRequest(409, "the token was settled already")
        if len(self._settled) >= SETTLED_MAX:
            del self._settled[next(iter(self._settled))]
        self._settled[str(token)] = None
        settlements = self._settlements(charged, cost or 0)
        if settlements:
            await self._engine.settle(settlements, charged["source"])
        return 200, {"settled": len(settlements)}

    def _settlements(self, charged: Mapping[str, Any], due: int) -> list[Settlement]:
        rules: dict[str, Rule] = {rule.name: rule for rule in self._engine.policy.rules}
        settlements = []
        for key, name, index, cost, lease in charged["hits"]:
            rule = rules.get(name)
            if rule is None or index >= len(rule.quotas):
                continue  # the rule is gone, and its keys with it
            quota = rule.quotas[index]
            settlements.append(Settlement(key.encode("latin-1"), quota, cost, due, rule, lease, charged["at"]))
        return settlements

    def _token(self, decision: Decision, hits: Sequence[Hit]) -> str:
        told = {
            "at": decision.now_ms,
            "source": decision.source,
            "hits": [
                (hit.key.decode("latin-1"), hit.rule.name, hit.rule.quotas.index(hit.quota), hit.cost, hit.lease)
                for hit in hits
                if hit.quota in hit.rule.quotas and hit.cost > 0
            ],
        }
        payload = urlsafe_b64encode(json.dumps(told, separators=(",", ":")).encode()).rstrip(b"=")
        return f"{payload.decode()}.{self._signed(payload)}"

    def _signed(self, payload: bytes) -> str:
        return hmac.new(self._secret, payload, hashlib.sha256).hexdigest()[:32]

    def _read_token(self, token: object) -> dict[str, Any]:
        payload, _, signature = str(token).partition(".")
        if not hmac.compare_digest(self._signed(payload.encode()).encode(), signature.encode()):
            raise BadRequest(400, "token: is none that this service has given; send the one of /v1/decide")
        told: dict[str, Any] = json.loads(urlsafe_b64decode(payload + "=" * (-len(payload) % 4)))
        return told

    # --- Descriptors

    async def _decide_descriptors(self, asked: Mapping[str, Any]) -> dict[str, Any]:
        response = await self._rate_limit(asked)
        limited = _read_response(response)
        return {"allowed": limited["overallCode"] == "OK", **limited}

    async def rate_limit(self, body: bytes, _: str | None) -> tuple[int, dict[str, Any]]:
        """Answer `POST /json`, as the Go reference does: 200, or 429 if a limit is exceeded.

        Raises:
            BadRequest: the question has a fault.
        """
        answer = _read_response(await self._rate_limit(_object(body)))
        return (200 if answer["overallCode"] == "OK" else 429), answer

    async def _rate_limit(self, asked: Mapping[str, Any]) -> bytes:
        try:
            message = _written(asked)
        except (TypeError, AttributeError, KeyError, ValueError):
            issue = "is no RateLimitRequest; write {domain, descriptors: [{entries: [{key, value}]}]}"
            raise BadRequest(400, issue) from None
        try:
            return await self._calls.should_rate_limit(Call(message, [], None, None))
        except CallError as fault:
            raise BadRequest(400, fault.message) from None


def _object(body: bytes) -> dict[str, Any]:
    try:
        asked = json.loads(body)
    except (ValueError, RecursionError):
        raise BadRequest(400, "the body is not JSON") from None
    if not isinstance(asked, dict):
        raise BadRequest(400, "the body is not a JSON object")
    return asked


def _is_whole(value: object, least: int, most: int) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and least <= value <= most


def _request(asked: Mapping[str, Any], peer: str | None) -> Request:
    for name, default in (("method", "GET"), ("path", "/"), ("peer", ""), ("body", "")):
        if not isinstance(asked.get(name, default), str):
            raise BadRequest(400, f"{name}: {asked[name]!r} is not a string")
    headers = asked.get("headers", {})
    pairs = headers.items() if isinstance(headers, dict) else headers
    try:
        listed = [(name.lower().encode("latin-1"), value.encode("latin-1")) for name, value in pairs]
        target = asked.get("path", "/").encode("latin-1")
    except (AttributeError, TypeError, ValueError):
        issue = 'headers: is not an object of strings, or a list of pairs of them; write {"X-API-Key": "..."}'
        raise BadRequest(400, issue) from None
    body = asked.get("body")
    return Request(
        asked.get("method", "GET"),
        target,
        tuple(listed),
        asked.get("peer") or peer,
        body=None if body is None else body.encode("utf-8", "surrogatepass"),
    )


def _written(asked: Mapping[str, Any]) -> bytes:
    """Return the RateLimitRequest that proto3 JSON says, with names in either case."""
    message = delimited(1, str(asked.get("domain", "")).encode())
    for descriptor in asked["descriptors"]:
        told = b"".join(
            delimited(1, delimited(1, entry["key"].encode()) + delimited(2, entry.get("value", "").encode()))
            for entry in descriptor["entries"]
        )
        limit = descriptor.get("limit")
        if limit is not None:
            per_unit = limit.get("requestsPerUnit", limit.get("requests_per_unit", 0))
            unit = limit.get("unit", 0)
            unit = UNITS.index(unit) if isinstance(unit, str) else unit
            told += delimited(2, whole(1, per_unit) + whole(2, unit))
        hits = descriptor.get("hitsAddend", descriptor.get("hits_addend"))
        if hits is not None:
            told += delimited(3, whole(1, int(hits)))
        if descriptor.get("isNegativeHits", descriptor.get("is_negative_hits", False)):
            told += whole(4, 1)
        message += delimited(2, told)
    return message + whole(3, int(asked.get("hitsAddend", asked.get("hits_addend", 0))))


def _read_response(message: bytes) -> dict[str, Any]:
    """Return a RateLimitResponse as proto3 JSON: zeros are left out."""
    answer: dict[str, Any] = {"overallCode": "UNKNOWN", "statuses": []}
    for field, value in fields(message):
        if field == 1:
            answer["overallCode"] = CODES[number(value)]
        elif field == 2 and isinstance(value, bytes):
            answer["statuses"].append(_read_status(value))
        elif field == 3 and isinstance(value, bytes):
            pair = {name: text(item) for name, item in fields(value)}
            answer.setdefault("responseHeadersToAdd", []).append({"key": pair[1], "value": pair.get(2, "")})
        elif field == 5 and isinstance(value, bytes):
            answer["rawBody"] = urlsafe_b64encode(value).decode().replace("-", "+").replace("_", "/")
    return answer


def _read_status(message: bytes) -> dict[str, Any]:
    status: dict[str, Any] = {}
    for field, value in fields(message):
        if field == 1:
            status["code"] = CODES[number(value)]
        elif field == 2 and isinstance(value, bytes):
            found = dict(fields(value))
            limit = {"requestsPerUnit": found.get(1, 0), "unit": UNITS[int(found.get(2, 0))]}
            status["currentLimit"] = limit | ({"name": text(found[3])} if 3 in found else {})
        elif field == 3:
            status["limitRemaining"] = value
        elif field == 4 and isinstance(value, bytes):
            status["durationUntilReset"] = f"{int(dict(fields(value)).get(1, 0))}s"
    return status
