"""An example of the Trace Finance API: payments."""

from __future__ import annotations

import asyncio
import uuid
from typing import Annotated, Literal

from fastapi import FastAPI, Header, HTTPException
from pydantic import BaseModel, Field

from ratelimiter import DialectError
from ratelimiter.asgi.error_handlers import install_error_handlers

PATIENCE_S = 0.05


class Amount(BaseModel):
    value: int = Field(gt=0)
    currency: Literal["USD", "BRL"] = "USD"


class Payment(BaseModel):
    amount: Amount


def api() -> FastAPI:
    """The application, without its limiter."""
    app = FastAPI()
    install_error_handlers(app, dialect="tracefinance")
    paid: dict[str, Payment] = {}
    known: dict[str, str] = {}

    @app.post("/v1/payments", status_code=201)
    async def pay(payment: Payment, idempotency_id: Annotated[str, Header()]) -> dict[str, str]:
        if idempotency_id in known and paid[known[idempotency_id]] != payment:
            raise DialectError("IDEMPOTENT_ID_CONFLICT")
        number = known.setdefault(idempotency_id, str(uuid.uuid4()))
        paid[number] = payment
        return {"id": number}

    @app.get("/v1/payments/{number}")
    async def show(number: uuid.UUID) -> dict[str, str]:
        if str(number) not in paid:
            raise DialectError("RESOURCE_NOT_FOUND")
        return {"id": str(number)}

    @app.post("/v1/payments/{number}/cancel")
    async def cancel(number: uuid.UUID) -> None:
        raise DialectError("INVALID_STATUS_CHANGE")

    @app.get("/v1/reports")
    async def report() -> None:
        try:
            await asyncio.wait_for(asyncio.sleep(60), PATIENCE_S)
        except TimeoutError:
            raise HTTPException(408) from None

    @app.get("/v1/balance")
    async def balance() -> dict[str, int]:
        return {"balance": 7}

    @app.get("/v1/broken")
    async def broken() -> None:
        msg = "postgres://admin:hunter2@db"
        raise RuntimeError(msg)

    return app
