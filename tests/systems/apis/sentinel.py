"""An example of KoraStratum Sentinel: profiles of customers, and events about them."""

from __future__ import annotations

import uuid

from fastapi import FastAPI, Request
from pydantic import BaseModel

from ratelimiter import DialectError
from ratelimiter.asgi.error_handlers import install_error_handlers

REASONS = frozenset({"new_customer", "periodic_review"})


class Profile(BaseModel):
    customer_id: str
    reason: str = "new_customer"


class Event(BaseModel):
    customer_id: str


def api() -> FastAPI:
    """The application, without its limiter."""
    app = FastAPI()
    install_error_handlers(app, dialect="sentinel")
    enrolled: dict[tuple[str, str], Profile] = {}

    @app.post("/profiles", status_code=201)
    async def enroll(profile: Profile, request: Request) -> dict[str, str]:
        if profile.reason not in REASONS:
            raise DialectError("INVALID_ENROLLMENT_REASON")
        number = str(uuid.uuid4())
        enrolled[request.headers["x-tenant-id"], number] = profile
        return {"id": number}

    @app.get("/profiles/{number}")
    async def show(number: str, request: Request) -> dict[str, str]:
        if (request.headers["x-tenant-id"], number) not in enrolled:
            raise DialectError("PROFILE_NOT_FOUND")
        return {"id": number}

    @app.post("/profiles/{number}/close")
    async def close(number: str) -> None:
        raise DialectError("INVALID_STATUS_TRANSITION")

    @app.get("/profiles")
    async def profiles(request: Request) -> dict[str, int]:
        return {"profiles": sum(tenant == request.headers["x-tenant-id"] for tenant, _ in enrolled)}

    @app.post("/events/ingest", status_code=202)
    async def ingest(event: Event) -> dict[str, str]:
        return {"customer_id": event.customer_id}

    @app.get("/broken")
    async def broken() -> None:
        msg = "postgres://admin:hunter2@db"
        raise RuntimeError(msg)

    return app
