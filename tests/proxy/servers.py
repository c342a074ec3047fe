"""Servers that nobody here wrote, each a process of its own."""

from __future__ import annotations

import asyncio
import os
import shutil
import sys
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, NamedTuple

from ratelimiter.proxy.pool import Target
from tests.stores.redis_server import free_port

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from contextlib import AbstractAsyncContextManager
    from pathlib import Path

NODE_MODULES = "/usr/share/nodejs"  # where Debian keeps them

NGINX = """
daemon off; master_process off; pid {folder}/pid; error_log stderr; events {{ }}
http {{
  access_log off; client_body_temp_path {folder}; proxy_temp_path {folder}; fastcgi_temp_path {folder};
  uwsgi_temp_path {folder}; scgi_temp_path {folder};
  server {{ listen 127.0.0.1:{port}; root {folder}; autoindex on; }}
}}
"""
# Counts what it is sent, after a while in which it takes in nothing; its WebSocket greets and echoes.
NODE = """
const server = require('http').createServer((request, response) => {
  let size = 0;
  request.on('data', (data) => size += data.length).on('end', () => {
    response.write('size '); response.end(String(size));
  }).pause();
  setTimeout(() => request.resume(), Number(request.headers['x-pause-ms'] || 0));
});
new (require('ws').Server)({server}).on('connection', (socket) => {
  socket.on('message', (data, binary) => socket.send(data, {binary}));
  socket.send('hi');
});
server.listen(PORT, '127.0.0.1');
"""


def needed(name: str, package: str = "") -> str:
    """*name*, a program that must be there: what is tested with it is tested with nothing else."""
    assert shutil.which(name), f"{name} is missing: apt-get install {package or name}"
    return name


class Process(NamedTuple):
    """A server that runs."""

    port: int
    pid: int

    @property
    def target(self) -> Target:
        """Where the proxy finds it."""
        return Target("127.0.0.1", self.port)


@asynccontextmanager
async def started(*words: str, port: int) -> AsyncIterator[Process]:
    """A server that listens on *port*."""
    process = await asyncio.create_subprocess_exec(
        *words, stdout=asyncio.subprocess.DEVNULL, stderr=asyncio.subprocess.DEVNULL, stdin=asyncio.subprocess.DEVNULL,
        env={**os.environ, "NODE_PATH": NODE_MODULES},
    )  # fmt: skip
    try:
        for _ in range(1000):
            assert process.returncode is None, f"{words[0]} has ended"
            try:
                _, writer = await asyncio.open_connection("127.0.0.1", port)
            except OSError:
                await asyncio.sleep(0.01)
            else:
                writer.close()
                break
        yield Process(port, process.pid)
    finally:
        if process.returncode is None:
            process.terminate()
        await process.wait()


def standard_library(folder: Path) -> AbstractAsyncContextManager[Process]:
    """`python3 -m http.server` over *folder*."""
    port = free_port()
    words = (sys.executable, "-m", "http.server", str(port), "--bind", "127.0.0.1", "--directory", str(folder))
    return started(*words, port=port)


def nginx(folder: Path) -> AbstractAsyncContextManager[Process]:
    """Debian's nginx over *folder*, where it also keeps its own."""
    port = free_port()
    (folder / "nginx.conf").write_text(NGINX.format(folder=folder, port=port))
    return started(needed("nginx", "nginx-light"), "-c", str(folder / "nginx.conf"), "-p", str(folder), port=port)


def node() -> AbstractAsyncContextManager[Process]:
    """A server of Node's with a WebSocket of `ws`."""
    assert os.path.isdir(f"{NODE_MODULES}/ws"), "Node's ws is missing: apt-get install node-ws"
    port = free_port()
    return started(needed("node", "nodejs"), "-e", NODE.replace("PORT", str(port)), port=port)


async def output(*words: str, given: bytes = b"") -> str:
    """What a client prints."""
    process = await asyncio.create_subprocess_exec(
        needed(words[0]), *words[1:], stdin=asyncio.subprocess.PIPE, stdout=asyncio.subprocess.PIPE
    )
    out, _ = await process.communicate(given)
    return out.decode()
