"""A server that plays language models: it gives the answers of a test, in pieces and at a pace, to an end or not."""

from __future__ import annotations

import asyncio
import json
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

Header = tuple[bytes, bytes]


@dataclass
class Play:
    """One answer.

    Args:
        pieces: of the body, each sent by itself.
        headers: of the answer.
        status: of the answer.
        cut: break off behind the last piece.
        paced: wait for `ModelServer.go` before each piece but the first.
        pause_s: wait so long before each piece but the first.
    """

    pieces: Sequence[bytes]
    headers: Sequence[Header] = ((b"content-type", b"application/json"),)
    status: int = 200
    cut: bool = False
    paced: bool = False
    pause_s: float = 0.0


@dataclass
class ModelServer:
    """An ASGI application.

    Args:
        play: makes the answer to a request from its path and body.

    Attributes:
        asked: path and body of every POST.
        sent: pieces that were sent.
        ended: answers of several pieces that were played to their end.
        go: released once for each piece that may follow.
    """

    play: Callable[[str, Any], Play]
    asked: list[tuple[str, Any]] = field(default_factory=list)
    sent: int = 0
    ended: int = 0
    go: asyncio.Semaphore = field(default_factory=lambda: asyncio.Semaphore(0))

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        """Serve one request."""
        if scope["type"] != "http":
            while (message := await receive())["type"] != "lifespan.shutdown":
                await send({"type": f"{message['type']}.complete"})
            await send({"type": "lifespan.shutdown.complete"})
            return
        body = b""
        while True:
            message = await receive()
            body += message.get("body", b"")
            if not message.get("more_body"):
                break
        if scope["method"] != "POST":
            play = Play([b"{}"])
        else:
            asked = json.loads(body) if body.startswith(b"{") else None
            self.asked.append((scope["path"], asked))
            play = self.play(scope["path"], asked)
        await send({"type": "http.response.start", "status": play.status, "headers": list(play.headers)})
        gone = asyncio.create_task(_disconnected(receive))
        try:
            await self._play(play, gone, send)
        finally:
            gone.cancel()

    async def _play(self, play: Play, gone: asyncio.Task[None], send: Any) -> None:
        for index, piece in enumerate(play.pieces):
            if index and play.paced and not await _unless(gone, self.go.acquire()):
                return
            if index and play.pause_s and not await _unless(gone, asyncio.sleep(play.pause_s)):
                return
            await send({"type": "http.response.body", "body": piece, "more_body": True})
            self.sent += 1
        if play.cut:
            msg = "the upstream breaks"
            raise RuntimeError(msg)
        self.ended += len(play.pieces) > 1
        await send({"type": "http.response.body", "body": b""})


async def _disconnected(receive: Any) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass


async def _unless(gone: asyncio.Task[None], waiting: Any) -> bool:
    """Wait; return False if the client has left before, as frameworks then stop."""
    task = asyncio.ensure_future(waiting)
    await asyncio.wait({gone, task}, return_when=asyncio.FIRST_COMPLETED)
    if gone.done():
        task.cancel()
        return False
    return True


def playing(play: Play) -> ModelServer:
    """Return a server that always plays the same."""
    return ModelServer(lambda _path, _body: play)
