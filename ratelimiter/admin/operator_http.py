"""The operator listener: the operator's verbs over HTTP, for those who have a token."""

from __future__ import annotations

import asyncio
import json
from typing import TYPE_CHECKING, Any, NamedTuple

from starlette.applications import Starlette
from starlette.responses import JSONResponse
from starlette.routing import Route

from ratelimiter import __version__
from ratelimiter.admin.operator import Operator, read_wanted
from ratelimiter.errors import ConfigError, StoreError

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Mapping

    from starlette.requests import Request
    from starlette.responses import Response

    from ratelimiter.admin.operator_tokens import Tokens

    ASGIApp = Callable[[Any, Any, Any], Awaitable[None]]

BODY_MAX = 16_384
TOLD_MAX = 1000


class _Field(NamedTuple):
    """One field of a body."""

    kind: type
    about: str
    required: bool = False


class _Verb(NamedTuple):
    """One thing that can be asked for with POST."""

    about: str
    fields: Mapping[str, _Field]
    run: Callable[[Operator, dict[str, Any]], Awaitable[Any]]


_PRINCIPAL = _Field(str, "header:NAME=VALUE, client=ADDRESS, bearer=NAME, org=NAME or digest=HEX", required=True)
_RULE = _Field(str, "the name of a rule; all without it")
_END = {
    "for": _Field(str, "how long, like 30s, 10m or 24h"),
    "until": _Field(str, "until when, like 2027-01-01T00:00:00Z; until further notice without either"),
}


def _wanted(body: Mapping[str, Any]) -> Any:
    return read_wanted(body.get("for", ""), body.get("until", ""))


def _set_override(operator: Operator, body: dict[str, Any]) -> Awaitable[Any]:
    given = {name: body[name] for name in ("rule", "limit", "plan") if name in body}
    return operator.set_override(body["principal"], **given, wanted=_wanted(body))


def _without(body: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in body.items() if name != "principal"}


VERBS: dict[str, _Verb] = {
    "/v1/peek": _Verb(
        "What is counted of a principal, and what is ordered for it. Changes nothing.",
        {"principal": _PRINCIPAL, "plan": _Field(str, "show the limits of this plan")},
        lambda operator, body: operator.peek(body["principal"], **_without(body)),
    ),
    "/v1/reset": _Verb(
        "Forget what is counted of a principal.",
        {"principal": _PRINCIPAL, "rule": _RULE, "balances": _Field(bool, "fill balances again, too")},
        lambda operator, body: operator.reset(body["principal"], **_without(body)),
    ),
    "/v1/block": _Verb(
        "Refuse a principal whatever it asks for.",
        {"principal": _PRINCIPAL, **_END},
        lambda operator, body: operator.block(body["principal"], _wanted(body)),
    ),
    "/v1/unblock": _Verb(
        "Let a blocked principal in again.",
        {"principal": _PRINCIPAL},
        lambda operator, body: operator.unblock(body["principal"]),
    ),
    "/v1/overrides": _Verb(
        "Give a principal, or all that a pattern with * fits, another limit or another plan.",
        {
            "principal": _PRINCIPAL,
            "rule": _RULE,
            "limit": _Field(str, "like 600/minute, or unlimited; or else a plan"),
            "plan": _Field(str, "a plan of the policy; or else a limit"),
            **_END,
        },
        _set_override,
    ),
    "/v1/overrides/remove": _Verb(
        "Take back what was set for a principal, or a pattern, and a rule.",
        {"principal": _PRINCIPAL, "rule": _RULE},
        lambda operator, body: operator.remove_override(body["principal"], **_without(body)),
    ),
    "/v1/shadow": _Verb(
        "Have no rule refuse anybody, or have them refuse again; all requests are counted as before.",
        {"on": _Field(bool, "whether all rules are in shadow", required=True), **_END},
        lambda operator, body: operator.shadow(on=body["on"], wanted=_wanted(body)),
    ),
    "/v1/topup": _Verb(
        "Credit a balance of a principal.",
        {
            "principal": _PRINCIPAL,
            "units": _Field(int, "1 to 1000000000", required=True),
            "rule": _Field(str, "which balance, if there are several"),
        },
        lambda operator, body: operator.topup(body["principal"], **_without(body)),
    ),
}


class _RefusedError(Exception):
    """The request cannot be carried out as it is."""

    def __init__(self, status: int, *problems: str) -> None:
        super().__init__(*problems)
        self.status = status
        self.problems = problems


def operator_app(operator: Operator, tokens: Tokens) -> ASGIApp:
    """The operator listener as an ASGI application.

    Every request needs one of *tokens* (RFC 6750); whose it is stands in the audit lines. Bodies are JSON, in and out.
    A mistake is a 400 that says every problem, a store that gives no answer a 503.

    Args:
        operator: carries out what is asked for.
        tokens: who may ask.
    """

    def page(answer: Callable[[Operator, Request], Awaitable[Any]]) -> Callable[[Request], Awaitable[Response]]:
        async def respond(request: Request) -> Response:
            await asyncio.to_thread(tokens.refresh)
            credentials = request.headers.getlist("authorization")
            if len(credentials) > 1:
                return JSONResponse({"problems": ["Authorization: is given more than once; send one"]}, 400)
            scheme, _, given = "".join(credentials).partition(" ")
            name = tokens.name(given.strip()) if scheme.lower() == "bearer" else ""
            if not name:
                wrong = ', error="invalid_token"' if given else ""
                challenge = {"www-authenticate": f'Bearer realm="operator"{wrong}'}
                return JSONResponse({"problems": ["a token of an operator is needed"]}, 401, challenge)
            try:
                return JSONResponse(await answer(operator.as_who(f"token:{name}"), request))
            except _RefusedError as fault:
                return JSONResponse({"problems": list(fault.problems)}, fault.status)
            except ConfigError as fault:
                return JSONResponse({"problems": list(fault.problems)}, 400)
            except StoreError as fault:
                told = f"store: no answer ({fault.kind}); the operation may or may not have been done"
                return JSONResponse({"problems": [told]}, 503, {"retry-after": "1"})

        return respond

    def of_verb(verb: _Verb) -> Callable[[Operator, Request], Awaitable[Any]]:
        async def answer(who: Operator, request: Request) -> Any:
            return await verb.run(who, _checked(await _body(request), verb.fields))

        return answer

    async def orders(who: Operator, _: Request) -> Any:
        return await who.orders()

    async def told(who: Operator, request: Request) -> Any:
        number = request.query_params.get("n", "20")
        if not (number.isascii() and number.isdigit() and 1 <= int(number[:9]) <= TOLD_MAX):
            raise _RefusedError(400, f"n: is not a number from 1 to {TOLD_MAX}; write 20")
        return {"lines": await who.told(int(number))}

    async def document(_: Operator, __: Request) -> Any:
        return openapi()

    routes = [Route(path, page(of_verb(verb)), methods=["POST"]) for path, verb in VERBS.items()]
    routes += [
        Route(path, page(answer), methods=["GET"])
        for path, answer in (("/v1/orders", orders), ("/v1/audit", told), ("/openapi.json", document))
    ]
    return Starlette(routes=routes)


async def _body(request: Request) -> Any:
    body = b""
    async for chunk in request.stream():
        body += chunk
        if len(body) > BODY_MAX:
            raise _RefusedError(413, f"the body is longer than {BODY_MAX} bytes; write less")
    try:
        return json.loads(body)
    except (ValueError, RecursionError):
        raise _RefusedError(400, "the body is not JSON; write a JSON object") from None


def _checked(body: Any, fields: Mapping[str, _Field]) -> dict[str, Any]:
    """*body*, which has what it must and nothing else."""
    if not isinstance(body, dict):
        raise _RefusedError(400, f"the body is not a JSON object; write one with {' and '.join(fields)}")
    problems = [f"{name[:64]!a}: is unknown; write {' or '.join(fields)}" for name in body if name not in fields]
    for name, field in fields.items():
        if name not in body:
            problems += [f"{name}: is missing; write {field.about}"] if field.required else []
        elif type(body[name]) is not field.kind:
            problems.append(f"{name}: is not {_JSON_TYPES[field.kind][1]}; write {field.about}")
        elif field.kind is str and not body[name].isprintable():  # nor anything that no encoding has
            problems.append(f"{name}: has characters that cannot be shown; write {field.about}")
    if problems:
        raise _RefusedError(400, *problems)
    return body


_JSON_TYPES: dict[type, tuple[str, str]] = {
    str: ("string", "a text"),
    bool: ("boolean", "true or false"),
    int: ("integer", "a whole number"),
}


def openapi() -> dict[str, Any]:
    """What the listener understands, as an OpenAPI 3.1 document."""
    problems = {"type": "object", "required": ["problems"], "properties": {"problems": _LIST_OF_TEXTS}}
    refusals = {
        str(status): {"description": about, "content": {"application/json": {"schema": problems}}}
        for status, about in (
            (400, "Something in the request means nothing to the policy."),
            (401, "No token of an operator."),
            (413, "The body is too long."),
            (503, "The store gave no answer; the operation may or may not have been done."),
        )
    }
    answered = {"200": {"description": "Done.", "content": {"application/json": {"schema": {"type": "object"}}}}}
    paths: dict[str, Any] = {}
    for path, verb in VERBS.items():
        schema = {
            "type": "object",
            "additionalProperties": False,
            "required": [name for name, field in verb.fields.items() if field.required],
            "properties": {
                name: {"type": _JSON_TYPES[field.kind][0], "description": field.about}
                for name, field in verb.fields.items()
            },
        }
        body = {"required": True, "content": {"application/json": {"schema": schema}}}
        paths[path] = {"post": {"summary": verb.about, "requestBody": body, "responses": answered | refusals}}
    number = {"name": "n", "in": "query", "schema": {"type": "integer", "minimum": 1, "maximum": TOLD_MAX}}
    for path, about in (
        ("/v1/orders", "All that is ordered: overrides, blocks, and whether all rules are in shadow."),
        ("/v1/audit", "What operators have done, the latest first."),
        ("/openapi.json", "This document."),
    ):
        parameters = [number] if path == "/v1/audit" else []
        paths[path] = {"get": {"summary": about, "parameters": parameters, "responses": answered | refusals}}
    return {
        "openapi": "3.1.0",
        "info": {"title": "ratelimiter, for operators", "version": __version__},
        "security": [{"token": []}],
        "paths": paths,
        "components": {"securitySchemes": {"token": {"type": "http", "scheme": "bearer"}}},
    }


_LIST_OF_TEXTS = {"type": "array", "items": {"type": "string"}, "minItems": 1}
