"""The operator listener: the operator's commands over HTTP, for holders of a token."""

from __future__ import annotations

import asyncio
import json
from typing import TYPE_CHECKING, Any, NamedTuple

from starlette.applications import Starlette
from starlette.responses import JSONResponse
from starlette.routing import Route

from ratelimiter import __version__
from ratelimiter.admin.expiry import read_expiry
from ratelimiter.errors import ConfigError, StoreError

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Mapping

    from starlette.requests import Request
    from starlette.responses import Response

    from ratelimiter.admin.operator import Operator
    from ratelimiter.admin.operator_tokens import Tokens

    ASGIApp = Callable[[Any, Any, Any], Awaitable[None]]

BODY_MAX = 16_384
TOLD_MAX = 1000


class _Field(NamedTuple):
    """One field of a body."""

    kind: type
    about: str
    required: bool = False


class _Command(NamedTuple):
    """One command, called with POST."""

    about: str
    fields: Mapping[str, _Field]
    run: Callable[[Operator, dict[str, Any]], Awaitable[Any]]
    changes: bool = True  # False: the role `read` may call it, too


_PRINCIPAL = _Field(str, "header:NAME=VALUE, client=ADDRESS, bearer=NAME, org=NAME or digest=HEX", required=True)
_RULE = _Field(str, "the name of a rule; all without it")
_END = {
    "for": _Field(str, "how long, like 30s, 10m or 24h"),
    "until": _Field(str, "until when, like 2027-01-01T00:00:00Z; until further notice without either"),
}


def _wanted(body: Mapping[str, Any]) -> Any:
    return read_expiry(body.get("for", ""), body.get("until", ""))


def _set_override(operator: Operator, body: dict[str, Any]) -> Awaitable[Any]:
    given = {name: body[name] for name in ("rule", "limit", "plan") if name in body}
    return operator.set_override(body["principal"], **given, expiry=_wanted(body))


def _without(body: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in body.items() if name != "principal"}


COMMANDS: dict[str, _Command] = {
    "/v1/peek": _Command(
        "Show the counters and overrides of a principal. Changes nothing.",
        {"principal": _PRINCIPAL, "plan": _Field(str, "show the limits of this plan")},
        lambda operator, body: operator.peek(body["principal"], **_without(body)),
        changes=False,
    ),
    "/v1/reset": _Command(
        "Delete the counters of a principal.",
        {"principal": _PRINCIPAL, "rule": _RULE, "balances": _Field(bool, "fill balances again, too")},
        lambda operator, body: operator.reset(body["principal"], **_without(body)),
    ),
    "/v1/block": _Command(
        "Refuse every request of a principal.",
        {"principal": _PRINCIPAL, **_END},
        lambda operator, body: operator.block(body["principal"], _wanted(body)),
    ),
    "/v1/unblock": _Command(
        "Remove the block of a principal.",
        {"principal": _PRINCIPAL},
        lambda operator, body: operator.unblock(body["principal"]),
    ),
    "/v1/overrides": _Command(
        "Give a principal, or every principal of a pattern with *, another limit or plan.",
        {
            "principal": _PRINCIPAL,
            "rule": _RULE,
            "limit": _Field(str, "like 600/minute, or unlimited; or else a plan"),
            "plan": _Field(str, "a plan of the policy; or else a limit"),
            **_END,
        },
        _set_override,
    ),
    "/v1/overrides/remove": _Command(
        "Remove the override of a principal or pattern, and a rule.",
        {"principal": _PRINCIPAL, "rule": _RULE},
        lambda operator, body: operator.remove_override(body["principal"], **_without(body)),
    ),
    "/v1/shadow": _Command(
        "Have no rule refuse any request, or have them refuse again; all requests are counted as before.",
        {"on": _Field(bool, "true puts all rules in shadow mode", required=True), **_END},
        lambda operator, body: operator.shadow(on=body["on"], expiry=_wanted(body)),
    ),
    "/v1/topup": _Command(
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
    """A request that cannot be carried out as it is."""

    def __init__(self, status: int, *problems: str) -> None:
        super().__init__(*problems)
        self.status = status
        self.problems = problems


def operator_app(operator: Operator, tokens: Tokens) -> ASGIApp:
    """Return the operator listener as an ASGI application.

    Every request needs one of *tokens* (RFC 6750), whose name stands in the audit lines. Bodies are JSON in both
    directions. Bad input is a 400 with every problem; a store without an answer is a 503.

    Args:
        operator: carries out the commands.
        tokens: of the operators.
    """

    def page(
        answer: Callable[[Operator, Request], Awaitable[Any]], *, changes: bool = False
    ) -> Callable[[Request], Awaitable[Response]]:
        async def respond(request: Request) -> Response:
            await asyncio.to_thread(tokens.refresh)
            name, refusal = _admitted(request, tokens, changes=changes)
            if refusal is not None:
                return refusal
            try:
                _check_query(request)
                return JSONResponse(await answer(operator.as_who(f"token:{name}"), request))
            except _RefusedError as fault:
                return JSONResponse({"problems": list(fault.problems)}, fault.status)
            except ConfigError as fault:
                return JSONResponse({"problems": list(fault.problems)}, 400)
            except StoreError as fault:
                told = f"store: no answer ({fault.kind}); the operation may or may not have been done"
                return JSONResponse({"problems": [told]}, 503, {"retry-after": "1"})

        return respond

    def of_command(command: _Command) -> Callable[[Operator, Request], Awaitable[Any]]:
        async def answer(who: Operator, request: Request) -> Any:
            return await command.run(who, _checked(await _body(request), command.fields))

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

    routes = [
        Route(path, page(of_command(command), changes=command.changes), methods=["POST"])
        for path, command in COMMANDS.items()
    ]
    routes += [
        Route(path, page(answer), methods=["GET"])
        for path, answer in (("/v1/orders", orders), ("/v1/audit", told), ("/openapi.json", document))
    ]
    return Starlette(routes=routes)


def _admitted(request: Request, tokens: Tokens, *, changes: bool) -> tuple[str, Response | None]:
    """Return the name of the operator whose token *request* has, and the refusal if it may not be carried out."""
    credentials = request.headers.getlist("authorization")
    if len(credentials) > 1:
        return "", JSONResponse({"problems": ["Authorization: is given more than once; send one"]}, 400)
    scheme, _, given = "".join(credentials).partition(" ")
    name = tokens.name(given.strip()) if scheme.lower() == "bearer" else ""
    if not name:
        wrong = ', error="invalid_token"' if given else ""
        challenge = {"www-authenticate": f'Bearer realm="operator"{wrong}'}
        return "", JSONResponse({"problems": ["a token of an operator is needed"]}, 401, challenge)
    if changes and not tokens.may_change(name):
        told = f"{name} has the role read, which changes nothing; ask an operator whose role is operate"
        return name, JSONResponse({"problems": [told]}, 403)
    return name, None


def _check_query(request: Request) -> None:
    """Refuse a request with a query that the listener does not read."""
    allowed = {"n"} if request.url.path == "/v1/audit" else set()
    names = [name for name, _ in request.query_params.multi_items()]
    unknown = [name for name in names if name not in allowed]
    problems = [f"{name[:64]!a}: is no parameter of {request.url.path}; leave it out" for name in unknown]
    problems += [f"{name}: is given more than once; write it once" for name in allowed if names.count(name) > 1]
    if problems:
        raise _RefusedError(400, *problems)


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
    """Return *body* if it has all required fields and no other than *fields*."""
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
    """Return the OpenAPI 3.1 document of the listener."""
    problems = {"type": "object", "required": ["problems"], "properties": {"problems": _LIST_OF_TEXTS}}
    refusals = {
        str(status): {"description": about, "content": {"application/json": {"schema": problems}}}
        for status, about in (
            (400, "Something in the request means nothing to the policy."),
            (401, "No token of an operator."),
            (403, "The role of the operator is read, and the command changes something."),
            (413, "The body is too long."),
            (503, "The store gave no answer; the operation may or may not have been done."),
        )
    }
    answered = {"200": {"description": "Done.", "content": {"application/json": {"schema": {"type": "object"}}}}}
    paths: dict[str, Any] = {}
    for path, command in COMMANDS.items():
        schema = {
            "type": "object",
            "additionalProperties": False,
            "required": [name for name, field in command.fields.items() if field.required],
            "properties": {
                name: {"type": _JSON_TYPES[field.kind][0], "description": field.about}
                for name, field in command.fields.items()
            },
        }
        body = {"required": True, "content": {"application/json": {"schema": schema}}}
        paths[path] = {"post": {"summary": command.about, "requestBody": body, "responses": answered | refusals}}
    number = {"name": "n", "in": "query", "schema": {"type": "integer", "minimum": 1, "maximum": TOLD_MAX}}
    for path, about in (
        ("/v1/orders", "List the overrides, the blocks and the kill switch."),
        ("/v1/audit", "List the commands of operators, the latest first."),
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
