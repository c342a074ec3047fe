"""The refusals of limited endpoints in an application's OpenAPI document, as they are sent."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

from ratelimiter.core.decision import decide
from ratelimiter.core.headers import EXPOSED
from ratelimiter.core.receipt import FAIL_CLOSED, NEVER, Receipt, Tally
from ratelimiter.core.rule import Hit, OnStoreError

if TYPE_CHECKING:
    from collections.abc import Iterator

    from ratelimiter.asgi.assembly import Assembly
    from ratelimiter.core.decision import Decision
    from ratelimiter.core.rule import Rule

MARK = "x-rate-limited"
DESCRIPTIONS = {429: "The rate limit is exceeded.", 402: "The credits are exhausted.", 503: "The rate limiter is out."}


def document(app: Any, assembly: Assembly) -> None:
    """Let the OpenAPI document of *app*, a FastAPI application, tell what limited operations answer when they refuse.

    As FastAPI's own way to extend it goes, its `openapi` is wrapped.
    """
    original = app.openapi
    if getattr(original, MARK, False):
        return

    def openapi() -> dict[str, Any]:
        schema: dict[str, Any] = original()
        if not schema.get(MARK):
            for route, rules in limited_routes(app.routes, ""):
                path = schema["paths"].get(route.path_format, {})
                for method in route.methods or ():
                    if method.lower() in path:
                        _describe(path[method.lower()], rules, assembly)
            schema[MARK] = True
        return schema

    setattr(openapi, MARK, True)
    app.openapi = openapi


def limited_routes(routes: Any, mount: str) -> Iterator[tuple[Any, list[Rule]]]:
    """Yield every route of a FastAPI application that has limits, with their rules."""
    for route in routes:
        dependant = getattr(route, "dependant", None)
        if dependant is None:
            continue
        scope = {"type": "http", "path": route.path, "route": route, "root_path": mount, "app_root_path": ""}
        rules = [rule for guard in guards_of(dependant) for rule in guard.rules_of(scope)]
        if rules:
            yield route, rules


def guards_of(dependant: Any) -> Iterator[Any]:
    """Yield the limits among the dependencies of an endpoint, in the order in which FastAPI asks them."""
    if dependant is not None:
        if hasattr(dependant.call, "rules_of"):
            yield dependant.call
        for each in dependant.dependencies:
            yield from guards_of(each)


def _describe(operation: dict[str, Any], rules: list[Rule], assembly: Assembly) -> None:
    for decision in _refusals(rules):
        presenter = assembly.presenter
        reply = presenter.refusal(decision)
        names = [name.decode() for family in presenter.policy.headers for name in EXPOSED[family]]
        if any(name == b"retry-after" for name, _ in reply.headers):
            names.insert(0, "Retry-After")
        described: dict[str, Any] = {
            "description": DESCRIPTIONS.get(reply.status, "The request is refused."),
            "headers": {name: {"schema": {"type": "string"}} for name in names},
        }
        media = next((value.decode() for name, value in reply.headers if name == b"content-type"), "text/plain")
        kind = media.partition(";")[0]
        if kind.endswith("json"):
            example: Any = json.loads(reply.body)
            described["content"] = {kind: {"schema": schema_of(example), "example": example}}
        else:
            described["content"] = {kind: {"schema": {"type": "string"}, "example": reply.body.decode()}}
        operation.setdefault("responses", {}).setdefault(str(reply.status), described)


def _refusals(rules: list[Rule]) -> Iterator[Decision]:
    """Yield a refusal of each status that *rules* can lead to, as it is when a limit was spent a moment ago."""
    for rule in rules:
        quota = rule.quotas[0]
        wait_ms = NEVER if quota.credits else quota.window_ms or 1000
        tally = Tally(quota.limit, max(0, wait_ms), wait_ms)
        hit = Hit(b"", quota, max(1, rule.cost), rule)
        yield decide([hit], Receipt(0, False, [tally]))
        if rule.on_store_error is OnStoreError.DENY:
            yield decide([hit], Receipt(0, False, [tally], FAIL_CLOSED))


def schema_of(value: Any) -> dict[str, Any]:  # noqa: PLR0911  # a type of JSON each
    """Return a JSON Schema of bodies like *value*: the same members, of the same types."""
    match value:
        case dict():
            members = {name: schema_of(each) for name, each in value.items()}
            return {"type": "object", "properties": members, "required": list(members)}
        case list():
            return {"type": "array", "items": schema_of(value[0])} if value else {"type": "array"}
        case bool():
            return {"type": "boolean"}
        case int():
            return {"type": "integer"}
        case float():
            return {"type": "number"}
        case None:
            return {"type": "null"}
        case _:
            return {"type": "string"}
