"""An API to watch, for uvicorn: it counts what reaches it, and what its limiter does can be scraped.

WATCHED_SEEN names a file that grows by one byte for each request that has reached the API: the last of the process id.
WATCHED_POLICY is a policy file; without one nothing is limited. WATCHED_ADMIN is where the admin listener listens;
without one `/metrics` is answered beside the API, past the limiter, by any of several workers.
"""

from __future__ import annotations

import asyncio
import json
import os
from contextlib import AsyncExitStack
from typing import Any

from ratelimiter import RateLimitMiddleware
from ratelimiter.admin.app import State, admin_app
from ratelimiter.admin.listener import bind, serve_admin
from ratelimiter.config import loader as configuration
from ratelimiter.config.reload import Reloader
from ratelimiter.engine.fan_out import FanOut
from ratelimiter.metrics.heavy_hitters import Top
from ratelimiter.metrics.limiter_metrics import Metrics
from ratelimiter.metrics.prometheus import CollectorRegistry, process_registry

SLOW_S = 0.02
MODEL = "/v1/chat/completions"


class Api:
    """Answers everything with 200; what ends in `/slow` a little later."""

    def __init__(self, seen: str) -> None:
        self._seen = os.open(seen, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
        self._mark = bytes([os.getpid() % 256])
        self._turn = 0

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        assert scope["type"] == "http"  # of the lifespan protocol it has no part
        os.write(self._seen, self._mark)
        if scope["path"].endswith("/slow"):
            await asyncio.sleep(SLOW_S)
        if scope["path"] == MODEL:
            await self._complete(receive, send)
            return
        status = 500 if scope["path"].endswith("/broken") else 200
        await _answer(send, b"{}", b"application/json", status)

    async def _complete(self, receive: Any, send: Any) -> None:
        """Answer like a language model: a part of the bound is used, a fifth of the answers say nothing of it."""
        asked = json.loads((await receive())["body"])
        self._turn += 1
        usage = {"prompt_tokens": len(str(asked["messages"])) // 3, "completion_tokens": asked["max_tokens"] // 2}
        told: dict[str, Any] = {"choices": [], "usage": None if self._turn % 5 == 0 else usage}
        await _answer(send, json.dumps(told).encode(), b"application/json")


class Watched:
    """The API behind its limiter, with everything that watches it."""

    def __init__(self, policy_file: str, api: Api, admin: str) -> None:
        policy = configuration.load(policy_file)
        shared = "PROMETHEUS_MULTIPROC_DIR" in os.environ
        self._metrics = Metrics(CollectorRegistry() if shared else process_registry(), policy)
        self._top = Top()
        self._limited = RateLimitMiddleware(api, config=policy, observer=FanOut(self._metrics, self._top))
        self._reloader = Reloader(policy_file, policy, self._limited.limiter.swap, observer=self._metrics, poll_s=0.25)
        self._admin = admin

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] == "lifespan":
            await self._live(receive, send)
        elif scope["path"] == "/metrics" and not self._admin:
            body, kind = self._metrics.exposition("")
            await _answer(send, body, kind.encode())
        else:
            await self._limited(scope, receive, send)

    async def _live(self, receive: Any, send: Any) -> None:
        async with AsyncExitStack() as stack:
            await receive()
            watching = asyncio.create_task(self._reloader.run())
            stack.callback(watching.cancel)
            if self._admin:
                limiter = self._limited.limiter
                app = admin_app(
                    exposition=self._metrics.exposition,
                    policy=lambda: limiter.policy,
                    state=State,
                    top=self._top.report,
                )
                await stack.enter_async_context(serve_admin(app, bind(self._admin)))
            await send({"type": "lifespan.startup.complete"})
            await receive()
        await send({"type": "lifespan.shutdown.complete"})


async def _answer(send: Any, body: bytes, kind: bytes, status: int = 200) -> None:
    await send({"type": "http.response.start", "status": status, "headers": [(b"content-type", kind)]})
    await send({"type": "http.response.body", "body": body})


def app() -> Any:
    """The application, as the environment says."""
    api = Api(os.environ["WATCHED_SEEN"])
    policy = os.environ.get("WATCHED_POLICY")
    return Watched(policy, api, os.environ.get("WATCHED_ADMIN", "")) if policy else api
