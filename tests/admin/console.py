"""A console with a real limiter, store, operator and listener behind it, for tests and for pictures."""

from __future__ import annotations

from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from ratelimiter.admin.app import State, admin_app
from ratelimiter.admin.console.app import Console
from ratelimiter.admin.console.recorder import ConsoleRecorder
from ratelimiter.admin.listener import bind, hosts_for, serve_admin
from ratelimiter.admin.operator import Operator
from ratelimiter.admin.operator_http import operator_app
from ratelimiter.admin.operator_tokens import Tokens
from ratelimiter.config.loader import load
from ratelimiter.core.request import Request
from ratelimiter.engine.fan_out import FanOut
from ratelimiter.engine.limiter import Limiter
from ratelimiter.engine.override_watcher import OverrideWatcher
from ratelimiter.metrics.heavy_hitters import Top
from ratelimiter.stores.factory import store_for

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path

TOKEN = "0123456789abcdef0123"  # noqa: S105
POLICY = """\
principal: header:X-API-Key
show_principals: true
rules:
  - {name: per-minute, limit: 5/minute}
  - {name: exports, match: {path: /v1/exports/**}, limit: 2/minute}
  - {name: trial, limit: 3/minute, mode: shadow}
"""


@dataclass
class Consoled:
    """A served console and what is behind it."""

    url: str
    limiter: Limiter
    recorder: ConsoleRecorder

    async def ask(self, key: str, times: int = 1, path: str = "/", request_id: str = "") -> list[bool]:
        """Judge requests of *key* as an edge does."""
        allowed = []
        for _ in range(times):
            headers = ((b"x-api-key", key.encode()),)
            judgement = await self.limiter.judge(Request("GET", path.encode(), headers, "192.0.2.1"))
            if not judgement.decision.allowed:
                self.recorder.refused(judgement.decision, request_id, "GET")
            allowed.append(judgement.decision.allowed)
        return allowed


@asynccontextmanager
async def consoled(folder: Path, policy: str = POLICY, *, operated: bool = True) -> AsyncIterator[Consoled]:
    """Serve a console."""
    file = folder / "policy.yaml"
    file.write_text(policy)
    (folder / "tokens").write_text(f"alice:{TOKEN}\n")
    recorder, top = ConsoleRecorder(), Top()
    observers, loaded = FanOut(top, recorder), load(file)
    limiter = Limiter(loaded, store_for(loaded, observers), observer=observers)
    store: Any = limiter.store.unwrap()
    watcher = OverrideWatcher(limiter)
    tokens = Tokens(folder / "tokens")
    operator: Any = operator_app(Operator(lambda: limiter.policy, store, "nobody", done=watcher.poll), tokens)
    listener = bind("127.0.0.1:0")
    app = admin_app(
        exposition=lambda _: (b"", "text/plain"),
        policy=lambda: limiter.policy,
        state=lambda: State(store="degraded" if recorder.degraded_since_ms else "ok"),
        top=top.report,
        hosts=hosts_for("127.0.0.1"),
        console=Console(recorder, file, operator if operated else None, tokens),
    )
    watcher.start()
    try:
        async with serve_admin(app, listener) as url:
            yield Consoled(url, limiter, recorder)
    finally:
        await watcher.stop()
        await limiter.close()
