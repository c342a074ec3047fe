"""An example of the older Trace Finance API: transfers that take their time."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Annotated

from fastapi import FastAPI, HTTPException, Query, WebSocket
from fastapi.responses import StreamingResponse
from pydantic import BaseModel

from ratelimiter.asgi.error_handlers import install_error_handlers

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

PATIENCE_S = 0.05


class Transfer(BaseModel):
    amount: int


def api() -> FastAPI:
    """The application, without its limiter. What takes *seconds* is in flight for as long."""
    app = FastAPI()
    install_error_handlers(app, dialect="tracefinance-v1")

    @app.get("/v1/transfers")
    async def transfers(seconds: Annotated[float, Query(ge=0, le=60)] = 0.0) -> dict[str, list[str]]:
        await asyncio.sleep(seconds)
        return {"transfers": []}

    @app.post("/v1/transfers", status_code=201)
    async def transfer(transfer: Transfer) -> dict[str, int]:
        return {"amount": transfer.amount}

    @app.get("/v1/statement")
    async def statement(lines: int = 3, seconds: float = 0.1) -> StreamingResponse:
        async def written() -> AsyncIterator[str]:
            for number in range(lines):
                yield f"data: {number}\n\n"
                await asyncio.sleep(seconds)

        return StreamingResponse(written(), media_type="text/event-stream")

    @app.websocket("/v1/ticker")
    async def ticker(websocket: WebSocket) -> None:
        await websocket.accept()
        async for text in websocket.iter_text():
            await websocket.send_text(text)

    @app.get("/v1/reports")
    async def report() -> None:
        try:
            await asyncio.wait_for(asyncio.sleep(60), PATIENCE_S)
        except TimeoutError:
            raise HTTPException(408) from None

    @app.get("/v1/broken")
    async def broken() -> None:
        msg = "postgres://admin:hunter2@db"
        raise RuntimeError(msg)

    return app
