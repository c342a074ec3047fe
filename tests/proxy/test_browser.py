"""Goal: a page behind the proxy works in a browser, up to the limit and beyond. Method: Chromium and a FastAPI app."""

from __future__ import annotations

import asyncio
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING

import pytest
import uvicorn
from fastapi import FastAPI, Response, WebSocket
from fastapi.responses import HTMLResponse

from ratelimiter.proxy.pool import Target
from tests.proxy.browser import browser
from tests.proxy.wire import sidecar, until
from tests.stores.redis_server import free_port

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

pytestmark = pytest.mark.wall_clock  # it waits for real servers or timers

PAGE = """<!doctype html><title>loading</title><link rel="icon" href="data:,"><link rel="stylesheet" href="/style.css">
<p id="told"></p><script src="/script.js"></script>"""
SCRIPT = "document.title = 'loaded'; document.getElementById('told').textContent = 'by the script';"
FETCH = """fetch('/items').then(async (r) => [r.status, r.headers.get('X-RateLimit-Limit'),
  r.headers.get('X-RateLimit-Remaining'), r.headers.get('Retry-After') > 0, await r.json()])"""
SOCKET = """new Promise((resolve) => {
  const socket = new WebSocket(`ws://${location.host}/echo`), heard = [];
  socket.onopen = () => { socket.send('hello'); socket.send('x'.repeat(1000000)); };
  socket.onmessage = (event) => { heard.push(event.data.length); if (heard.length === 2) socket.close(1000); };
  socket.onclose = (event) => resolve([heard, event.code]);
})"""


@asynccontextmanager
async def application() -> AsyncIterator[Target]:
    """A FastAPI application under uvicorn, on this event loop."""
    app = FastAPI()

    @app.get("/")
    async def page() -> HTMLResponse:
        return HTMLResponse(PAGE)

    @app.get("/style.css")
    async def style() -> Response:
        return Response("p { color: rgb(1, 2, 3) }", media_type="text/css")

    @app.get("/script.js")
    async def script() -> Response:
        return Response(SCRIPT, media_type="text/javascript")

    @app.get("/items")
    async def items() -> list[int]:
        return [1, 2, 3]

    @app.websocket("/echo")
    async def echo(socket: WebSocket) -> None:
        await socket.accept()
        async for message in socket.iter_text():
            await socket.send_text(message)

    port = free_port()
    server = uvicorn.Server(uvicorn.Config(app, port=port, log_level="critical", ws="websockets-sansio"))
    serving = asyncio.create_task(server.serve())
    await until(lambda: server.started, "uvicorn serves")
    try:
        yield Target("127.0.0.1", port)
    finally:
        server.should_exit = True
        await serving


async def test_a_page_works_up_to_the_limit() -> None:
    """It loads with what belongs to it, a script reads the limit's header fields and a WebSocket talks; beyond the
    limit the script sees the 429 with its body, and the WebSocket is not opened.
    """
    async with application() as target, sidecar(target, limit="6/hour") as proxy, browser() as page:
        await page.open(f"http://127.0.0.1:{proxy.port}/")
        assert "loaded" == await page.run("document.title")
        assert "by the script" == await page.run("document.getElementById('told').textContent")
        assert "rgb(1, 2, 3)" == await page.run("getComputedStyle(document.getElementById('told')).color")
        assert [200, "6", "2", False, [1, 2, 3]] == await page.run(FETCH)
        assert [[5, 1_000_000], 1000] == await page.run(SOCKET)
        assert [200, "6", "0", False, [1, 2, 3]] == await page.run(FETCH)

        status, limit, remaining, retry, body = await page.run(FETCH)
        assert (429, "6", "0", True, 429) == (status, limit, remaining, retry, body["status"])
        assert [[], 1006] == await page.run(SOCKET)

        await until(lambda: len(proxy.exchanges) == 8, "all is over, the WebSocket too")
        assert [101, 200, 200, 200, 200, 200, 429, 429] == sorted(exchange.status for exchange in proxy.exchanges)
