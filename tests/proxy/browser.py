"""A headless Chromium, spoken to in its DevTools protocol."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import shutil
import signal
import tempfile
from contextlib import asynccontextmanager
from itertools import count
from pathlib import Path
from typing import TYPE_CHECKING, Any

import websockets

from tests.proxy.wire import until

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

FLAGS = (
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--disable-dev-shm-usage",
    "--no-first-run",
    "--remote-debugging-port=0",
)


class Page:
    """One page."""

    def __init__(self, socket: websockets.ClientConnection) -> None:
        self._socket = socket
        self._numbers = count(1)

    async def call(self, method: str, **params: Any) -> dict[str, Any]:
        """Have the browser do something, and wait for its answer."""
        number = next(self._numbers)
        await self._socket.send(json.dumps({"id": number, "method": method, "params": params}))
        async with asyncio.timeout(30):
            while (answer := json.loads(await self._socket.recv())).get("id") != number:
                pass
        assert "error" not in answer, answer
        result: dict[str, Any] = answer["result"]
        return result

    async def open(self, url: str) -> None:
        """Load *url* and all that belongs to it."""
        await self.call("Page.enable")
        await self.call("Page.navigate", url=url)
        async with asyncio.timeout(30):
            while json.loads(await self._socket.recv()).get("method") != "Page.loadEventFired":
                pass

    async def run(self, script: str) -> Any:
        """The value of *script*, an expression; a promise is waited for."""
        answer = await self.call("Runtime.evaluate", expression=script, awaitPromise=True, returnByValue=True)
        assert "exceptionDetails" not in answer, answer
        return answer["result"].get("value")


def _listens(folder: str) -> list[str]:
    """The port and the path at which the browser listens, once it does."""
    told = Path(folder, "DevToolsActivePort")
    return told.read_text().split("\n") if told.exists() else []


@asynccontextmanager
async def browser() -> AsyncIterator[Page]:
    """A new browser with one page."""
    assert shutil.which("chromium"), "chromium is missing, and there is no other browser here: apt-get install chromium"
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder:
        process = await asyncio.create_subprocess_exec(
            "chromium", *FLAGS, f"--user-data-dir={folder}", "about:blank",
            stdout=asyncio.subprocess.DEVNULL, stderr=asyncio.subprocess.DEVNULL, start_new_session=True,
        )  # fmt: skip
        try:
            await until(lambda: len(_listens(folder)) == 2, "the browser listens")
            port, place = _listens(folder)
            address = f"ws://127.0.0.1:{port}"
            async with websockets.connect(address + place, max_size=None) as socket:
                targets = (await Page(socket).call("Target.getTargets"))["targetInfos"]
                page = next(target["targetId"] for target in targets if target["type"] == "page")
                async with websockets.connect(f"{address}/devtools/page/{page}", max_size=None) as own:
                    yield Page(own)
                await Page(socket).call("Browser.close")
            async with asyncio.timeout(10):
                await process.wait()
        finally:
            with contextlib.suppress(ProcessLookupError):  # its helpers are in its group, and go with it
                os.killpg(process.pid, signal.SIGKILL)
            await process.wait()
