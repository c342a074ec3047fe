"""Goal: servers and clients that nobody here wrote get along through the proxy. Method: each as its users start it."""

from __future__ import annotations

import asyncio
import hashlib
import shutil
import subprocess
import sys
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any

import httpx
import pytest
import uvicorn
import websockets
from starlette.applications import Starlette
from starlette.responses import JSONResponse, StreamingResponse
from starlette.routing import Route, WebSocketRoute

from ratelimiter.proxy.upstream import Target
from tests.proxy.wire import Sidecar, sidecar, until
from tests.stores.redis_server import free_port

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path

    from starlette.requests import Request
    from starlette.websockets import WebSocket

LARGE = 30 * 2**20


@asynccontextmanager
async def started(*words: str, port: int) -> AsyncIterator[Target]:
    """A server of its own process."""
    process = await asyncio.create_subprocess_exec(
        *words, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, stdin=subprocess.DEVNULL
    )
    try:
        for _ in range(1000):
            try:
                _, writer = await asyncio.open_connection("127.0.0.1", port)
            except OSError:
                await asyncio.sleep(0.01)
            else:
                writer.close()
                break
        yield Target("127.0.0.1", port)
    finally:
        process.terminate()
        await process.wait()


def client(proxy: Sidecar) -> httpx.AsyncClient:
    return httpx.AsyncClient(base_url=f"http://127.0.0.1:{proxy.port}", timeout=10)


async def test_the_server_of_the_standard_library(tmp_path: Path) -> None:
    """HTTP/1.0, a connection for each request, bodies that end with it: to clients it looks like any other."""
    (tmp_path / "large").write_bytes(b"x" * LARGE)
    port = free_port()
    words = [sys.executable, "-m", "http.server", str(port), "--bind", "127.0.0.1", "--directory", str(tmp_path)]
    async with started(*words, port=port) as target, sidecar(target, limit="3/hour") as proxy, client(proxy) as http:
        assert LARGE == len((await http.get("/large")).content)
        assert (200, b"") == ((answer := await http.head("/large")).status_code, answer.content)
        assert 404 == (await http.get("/none")).status_code
        assert 429 == (await http.get("/large")).status_code


@pytest.mark.skipif(shutil.which("curl") is None, reason="needs curl")
async def test_curl(tmp_path: Path) -> None:
    """Downloads, uploads with and without being asked to, and sees the 429."""
    async with application() as target, sidecar(target, limit="3/hour") as proxy:
        url = f"http://127.0.0.1:{proxy.port}/sum"
        file = tmp_path / "large"
        file.write_bytes(b"y" * LARGE)
        for flags in (
            ["-T", str(file)],
            ["-T", "-"],
            ["-H", "Expect:", "--data-binary", f"@{file}"],
            ["-T", str(file)],
        ):
            process = await asyncio.create_subprocess_exec(
                "curl", "-s", "-S", "-w", "%{http_code}", "-X", "POST", *flags, url,
                stdin=asyncio.subprocess.PIPE, stdout=asyncio.subprocess.PIPE,
            )  # fmt: skip
            out, _ = await process.communicate(file.read_bytes() if flags[1] == "-" else b"")
            expected = b'{"size":%d}200' % LARGE if len(proxy.exchanges) < 4 else b"429"
            assert out.endswith(expected)


async def _sum(request: Request) -> JSONResponse:
    size = 0
    async for chunk in request.stream():
        size += len(chunk)
    return JSONResponse({"size": size})


async def _stream(request: Request) -> StreamingResponse:
    async def pieces() -> AsyncIterator[bytes]:
        for _ in range(LARGE // 2**16):
            yield b"z" * 2**16

    return StreamingResponse(pieces())


async def _seen(request: Request) -> JSONResponse:
    return JSONResponse({"client": request.client and request.client.host, "url": str(request.url)})


async def _echo(websocket: WebSocket) -> None:
    await websocket.accept()
    async for message in websocket.iter_text():
        await websocket.send_text(message)


@asynccontextmanager
async def application() -> AsyncIterator[Target]:
    """A Starlette application under uvicorn, on this event loop."""
    app: Any = Starlette(
        routes=[
            Route("/sum", _sum, methods=["POST", "PUT"]),
            Route("/stream", _stream),
            Route("/seen", _seen),
            WebSocketRoute("/echo", _echo),
        ]
    )
    port = free_port()
    server = uvicorn.Server(uvicorn.Config(app, port=port, log_level="critical", ws="websockets-sansio"))
    serving = asyncio.create_task(server.serve())
    await until(lambda: server.started, "uvicorn serves")
    try:
        yield Target("127.0.0.1", port)
    finally:
        server.should_exit = True
        await serving


async def test_uvicorn_and_httpx() -> None:
    """Streams both ways, keeps connections, and learns who asked."""
    async with application() as target, sidecar(target) as proxy, client(proxy) as http:
        digest = hashlib.sha256()
        async with http.stream("GET", "/stream") as answer:
            async for piece in answer.aiter_bytes():
                digest.update(piece)
        assert hashlib.sha256(b"z" * LARGE).digest() == digest.digest()
        assert {"size": LARGE} == (await http.post("/sum", content=b"a" * LARGE)).json()

        async def pieces() -> AsyncIterator[bytes]:
            for _ in range(100):
                yield b"b" * 10_000

        assert {"size": 1_000_000} == (await http.post("/sum", content=pieces())).json()
        seen = (await http.get("/seen?a=b", headers={"Host": "api.example"})).json()
        assert {"client": "127.0.0.1", "url": "http://api.example/seen?a=b"} == seen
        assert 1 == len(proxy.service)
        answers = await asyncio.gather(*[http.get("/seen") for _ in range(50)])
        assert {200} == {answer.status_code for answer in answers}


async def test_websockets() -> None:
    """A handshake is one request; whoever is over the limit sees the 429."""
    async with application() as target, sidecar(target, limit="1/hour") as proxy:
        url = f"ws://127.0.0.1:{proxy.port}/echo"
        async with websockets.connect(url, max_size=2**24) as websocket:
            for message in ("hello", "x" * 2_000_000):
                await websocket.send(message)
                assert message == await websocket.recv()
        with pytest.raises(websockets.InvalidStatus) as caught:
            await websockets.connect(url)

        assert 429 == caught.value.response.status_code


NGINX = """
daemon off; master_process off; pid {folder}/pid; error_log stderr; events {{ }}
http {{
  access_log off; client_body_temp_path {folder}; proxy_temp_path {folder}; fastcgi_temp_path {folder};
  uwsgi_temp_path {folder}; scgi_temp_path {folder};
  server {{ listen 127.0.0.1:{port}; root {folder}; autoindex on; }}
}}
"""


@pytest.mark.skipif(shutil.which("nginx") is None, reason="needs nginx")
async def test_nginx(tmp_path: Path) -> None:
    """A directory, ranges, and conditional requests."""
    port = free_port()
    (tmp_path / "index.html").write_text("hello")
    (tmp_path / "nginx.conf").write_text(NGINX.format(folder=tmp_path, port=port))
    words = ["nginx", "-c", str(tmp_path / "nginx.conf"), "-p", str(tmp_path)]
    async with started(*words, port=port) as target, sidecar(target) as proxy, client(proxy) as http:
        first = await http.get("/")
        assert (200, "hello") == (first.status_code, first.text)
        assert 304 == (await http.get("/", headers={"If-None-Match": first.headers["etag"]})).status_code
        part = await http.get("/index.html", headers={"Range": "bytes=1-2"})
        assert (206, "el") == (part.status_code, part.text)
        assert 405 == (await http.post("/", content=b"x" * 100_000)).status_code
        assert 200 == (await http.get("/")).status_code


NODE = """
const http = require('http'), crypto = require('crypto');
const server = http.createServer((request, response) => {
  let size = 0;
  request.on('data', (data) => size += data.length);
  request.on('end', () => { response.write('size '); response.end(String(size)); });
});
server.on('upgrade', (request, socket) => {
  const key = request.headers['sec-websocket-key'] + '258EAFA5-E914-47DA-95CA-C5AB0DC85B11';
  const accept = crypto.createHash('sha1').update(key).digest('base64');
  socket.write('HTTP/1.1 101 Switching Protocols\\r\\nUpgrade: websocket\\r\\nConnection: Upgrade\\r\\n' +
               'Sec-WebSocket-Accept: ' + accept + '\\r\\n\\r\\n\\x81\\x02hi', 'latin1');
});
server.listen(PORT, '127.0.0.1');
"""


@pytest.mark.skipif(shutil.which("node") is None, reason="needs node")
async def test_node() -> None:
    """Chunked answers, and a WebSocket that speaks first."""
    port = free_port()
    async with started("node", "-e", NODE.replace("PORT", str(port)), port=port) as target, sidecar(target) as proxy:
        async with client(proxy) as http:
            for size in (0, 3, 1_000_000):
                assert f"size {size}" == (await http.post("/", content=b"x" * size)).text
        async with websockets.connect(f"ws://127.0.0.1:{proxy.port}/", close_timeout=0.1) as websocket:
            assert "hi" == await websocket.recv()
