"""A service that counts for itself what is under way in it, and answers as it is asked to."""

from __future__ import annotations

import asyncio
from typing import Any
from urllib.parse import parse_qsl

ALL = "*"  # in the place of a path


class Service:
    """An ASGI application. The path says what it does, the query with what.

    Attributes:
        now: requests and websockets that are under way, by path.
        most: how many were at the same time, ever, by path.
        done: how many have ended, by path.
        spent: what was said to be the cost of all calls.
    """

    def __init__(self) -> None:
        self.now: dict[str, int] = {}
        self.most: dict[str, int] = {}
        self.done: dict[str, int] = {}
        self.spent = 0

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        """Serve one request."""
        if scope["type"] == "lifespan":
            while (message := await receive())["type"] != "lifespan.shutdown":
                await send({"type": f"{message['type']}.complete"})
            await send({"type": "lifespan.shutdown.complete"})
            return
        path = scope["path"].removeprefix("/")
        for place in (path, ALL):
            self.now[place] = self.now.get(place, 0) + 1
            self.most[place] = max(self.most.get(place, 0), self.now[place])
        try:
            asked = dict(parse_qsl(scope["query_string"].decode()))
            await getattr(self, f"do_{path}")(asked, receive, send)
        finally:
            for place in (path, ALL):
                self.now[place] -= 1
                self.done[place] = self.done.get(place, 0) + 1

    async def do_stream(self, asked: dict[str, str], receive: Any, send: Any) -> None:
        """*parts* parts, *ms* apart."""
        await _begin(send)
        for _ in range(int(asked.get("parts", "3"))):
            await asyncio.sleep(int(asked.get("ms", "10")) / 1000)
            await send({"type": "http.response.body", "body": b"part", "more_body": True})
        await send({"type": "http.response.body", "body": b""})

    async def do_silent(self, asked: dict[str, str], receive: Any, send: Any) -> None:
        """Nothing until the client goes."""
        while (await receive())["type"] != "http.disconnect":
            pass

    async def do_endless(self, asked: dict[str, str], receive: Any, send: Any) -> None:
        """A stream of events until the client goes."""
        await _begin(send, content_type=b"text/event-stream")
        gone = asyncio.ensure_future(receive())
        while not (gone.done() and gone.result()["type"] == "http.disconnect"):
            if gone.done():
                gone = asyncio.ensure_future(receive())
            await send({"type": "http.response.body", "body": b"data: x\n\n", "more_body": True})
            await asyncio.sleep(0.01)

    async def do_login(self, asked: dict[str, str], receive: Any, send: Any) -> None:
        """200 with the right password, after a moment, else 401."""
        await asyncio.sleep(0.002)
        await _answer(send, 200 if asked.get("password") == "right" else 401)

    async def do_work(self, asked: dict[str, str], receive: Any, send: Any) -> None:
        """What costs as much as is asked."""
        await asyncio.sleep(int(asked.get("ms", "1")) / 1000)
        cost = asked.get("cost")
        if cost is not None and cost.isdigit():
            self.spent += int(cost)
        await _answer(send, 200, [] if cost is None else [(b"x-ratelimit-cost", cost.encode())])

    async def do_raises(self, asked: dict[str, str], receive: Any, send: Any) -> None:
        """A mistake before any answer."""
        msg = "a mistake of the service's"
        raise RuntimeError(msg)

    async def do_breaks(self, asked: dict[str, str], receive: Any, send: Any) -> None:
        """A mistake in the middle of an answer."""
        await _begin(send)
        await send({"type": "http.response.body", "body": b"part", "more_body": True})
        await self.do_raises(asked, receive, send)

    async def do_early(self, asked: dict[str, str], receive: Any, send: Any) -> None:
        """An answer that does not wait for the request's body."""
        await _answer(send, 200)

    async def do_socket(self, asked: dict[str, str], receive: Any, send: Any) -> None:
        """A websocket that says everything back."""
        await receive()
        await send({"type": "websocket.accept"})
        while (message := await receive())["type"] == "websocket.receive":
            await send({"type": "websocket.send", "text": message.get("text", "")})


async def _begin(send: Any, content_type: bytes = b"text/plain") -> None:
    await send({"type": "http.response.start", "status": 200, "headers": [(b"content-type", content_type)]})


async def _answer(send: Any, status: int, headers: list[tuple[bytes, bytes]] | None = None) -> None:
    lines = [(b"content-length", b"2"), *(headers or [])]
    await send({"type": "http.response.start", "status": status, "headers": lines})
    await send({"type": "http.response.body", "body": b"ok"})
