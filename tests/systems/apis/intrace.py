"""An example of the Intrace intelligence engine: lookups of identifiers, shallow and deep."""

from __future__ import annotations

import asyncio
import re
from typing import Literal

from fastapi import FastAPI, Request
from pydantic import BaseModel, Field

from ratelimiter import DialectError
from ratelimiter.asgi.error_handlers import install_error_handlers

FORMATS = {"email": re.compile(r"[^@\s]+@[^@\s]+"), "phone": re.compile(r"\+[0-9]{6,15}")}
IDENTIFIERS_MAX = 20
SLOW_S = 0.05


class Identifier(BaseModel):
    type: str
    value: str = Field(min_length=1)


class Lookup(BaseModel):
    identifiers: list[Identifier]
    depth: Literal["standard", "deep"] = "standard"


def api() -> FastAPI:
    """The application, without its limiter."""
    app = FastAPI()
    install_error_handlers(app, dialect="intrace")
    made: dict[str, Lookup] = {}

    @app.post("/v1/lookup")
    async def look_up(lookup: Lookup, request: Request) -> dict[str, str]:
        _examine(lookup)
        if lookup.depth == "deep":
            await asyncio.sleep(SLOW_S)
        number = f"lkp_{len(made)}"
        made[number] = lookup
        return {"id": number, "depth": lookup.depth, "for": request.headers.get("x-auth-principal", "")}

    @app.get("/v1/lookup/{number}")
    async def show(number: str, request: Request) -> dict[str, str]:
        if number not in made:
            raise DialectError("not_found")
        return {"id": number, "depth": made[number].depth, "for": request.headers.get("x-auth-principal", "")}

    @app.get("/v1/status")
    async def status(request: Request) -> dict[str, str]:
        told = {name: value for name, value in request.headers.items() if name.startswith("x-auth-")}
        return {"status": "ok", **told}

    @app.get("/v1/lookup/{number}/receipt")
    async def receipt(number: str) -> None:
        raise DialectError("signing_failed")

    @app.get("/v1/history")
    async def history() -> None:
        raise DialectError("database_error")

    @app.get("/v1/audit")
    async def audit() -> dict[str, int]:
        return {"lookups": len(made)}

    @app.get("/v1/broken")
    async def broken() -> None:
        msg = "postgres://admin:hunter2@db"
        raise RuntimeError(msg)

    return app


def _examine(lookup: Lookup) -> None:
    """The documented 422s."""
    if not lookup.identifiers:
        raise DialectError("no_identifiers")
    if len(lookup.identifiers) > IDENTIFIERS_MAX:
        raise DialectError("too_many_identifiers")
    for index, identifier in enumerate(lookup.identifiers):
        if identifier.type not in FORMATS:
            issue = f"Must be one of: {', '.join(FORMATS)}"
            details = [{"field": f"identifiers[{index}].type", "issue": issue}]
            raise DialectError("invalid_identifier_type", details=details)
        if not FORMATS[identifier.type].fullmatch(identifier.value):
            details = [{"field": f"identifiers[{index}].value", "issue": f"Must be like a {identifier.type}"}]
            raise DialectError("identifier_format_invalid", details=details)
