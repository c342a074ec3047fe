"""The floor: a proxy of two httptools protocols on uvloop that checks nothing, limits nothing and knows no errors.

python -m tests.benchmarks.bare_proxy PORT UPSTREAM_PORT
"""

from __future__ import annotations

import asyncio
import sys
from typing import Any

import httptools
import uvloop


class Server(asyncio.Protocol):
    """A connection to the upstream."""

    idle: list[Server] = []  # noqa: RUF012

    def __init__(self) -> None:
        self.client: Client | None = None
        self.parser = httptools.HttpResponseParser(self)

    def connection_made(self, transport: Any) -> None:
        self.transport = transport

    def on_message_begin(self) -> None:
        self.headers: list[tuple[bytes, bytes]] = []
        self.body = b""

    def on_header(self, name: bytes, value: bytes) -> None:
        self.headers.append((name, value))

    def on_body(self, body: bytes) -> None:
        self.body += body

    def on_message_complete(self) -> None:
        lines = b"".join([b"%s: %s\r\n" % header for header in self.headers])
        client, self.client = self.client, None
        Server.idle.append(self)
        if client is None or client.transport.is_closing():
            return
        client.transport.write(b"HTTP/1.1 %d OK\r\n%s\r\n%s" % (self.parser.get_status_code(), lines, self.body))

    def data_received(self, data: bytes) -> None:
        self.parser.feed_data(data)


class Client(asyncio.Protocol):
    """A client's connection."""

    upstream_port = 0

    def __init__(self) -> None:
        self.parser = httptools.HttpRequestParser(self)

    def connection_made(self, transport: Any) -> None:
        self.transport = transport

    def on_message_begin(self) -> None:
        self.headers: list[tuple[bytes, bytes]] = []

    def on_url(self, url: bytes) -> None:
        self.url = url

    def on_header(self, name: bytes, value: bytes) -> None:
        self.headers.append((name, value))

    def on_message_complete(self) -> None:
        lines = b"".join([b"%s: %s\r\n" % header for header in self.headers])
        head = b"%s %s HTTP/1.1\r\n%s\r\n" % (self.parser.get_method(), self.url, lines)
        server = Server.idle.pop() if Server.idle else None
        if server is not None and not server.transport.is_closing():
            self.send(server, head)
        else:
            self.connecting = asyncio.get_running_loop().create_task(self.connect(head))

    async def connect(self, head: bytes) -> None:
        _, server = await asyncio.get_running_loop().create_connection(Server, "127.0.0.1", Client.upstream_port)
        self.send(server, head)

    def send(self, server: Server, head: bytes) -> None:
        server.client = self
        server.transport.write(head)

    def data_received(self, data: bytes) -> None:
        self.parser.feed_data(data)


async def main() -> None:
    """Serve until killed."""
    Client.upstream_port = int(sys.argv[2])
    server = await asyncio.get_running_loop().create_server(Client, "127.0.0.1", int(sys.argv[1]))
    await server.serve_forever()


if __name__ == "__main__":
    uvloop.run(main())
