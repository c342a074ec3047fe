"""The admin listener."""

from __future__ import annotations

import asyncio
import json
import socket
import threading
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any

import httpx
import pytest
from prometheus_client import CollectorRegistry

from ratelimiter.admin.app import State, admin_app
from ratelimiter.admin.listener import bind, hosts_for, serve_admin
from ratelimiter.config.redact import fingerprint
from ratelimiter.core.policy import Policy
from ratelimiter.engine.fan_out import FanOut
from ratelimiter.engine.limiter import Limiter
from ratelimiter.errors import ConfigError, StoreUnavailable
from ratelimiter.metrics.heavy_hitters import Top
from ratelimiter.metrics.limiter_metrics import Metrics
from ratelimiter.stores.base import Store
from ratelimiter.stores.circuit_breaker import FAILURES_MAX
from ratelimiter.stores.fallback import FallbackStore
from ratelimiter.stores.memory import MemoryStore
from tests.requesting import per_minute, request

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Sequence

    from ratelimiter.core.receipt import Receipt
    from ratelimiter.core.rule import Hit

POLICY = Policy((per_minute(2),), store="redis://user:hunter2@redis:6379/0", secret=b"horse battery staple")


class Around:
    """A process with an admin listener."""

    def __init__(self, **settings: Any) -> None:
        self.metrics, self.top = Metrics(CollectorRegistry()), Top()
        self.limiter = Limiter(POLICY, MemoryStore(), observer=FanOut(self.metrics, self.top))
        self.policy: Policy | None = POLICY
        self.state = State()
        self.app = admin_app(
            **{
                "exposition": self.metrics.exposition,
                "policy": lambda: self.policy,
                "state": lambda: self.state,
                "top": self.top.report,
                **settings,
            }
        )

    async def get(self, path: str, *, method: str = "GET", **headers: str) -> httpx.Response:
        transport = httpx.ASGITransport(self.app)
        async with httpx.AsyncClient(transport=transport, base_url="http://admin:9090") as client:
            return await client.request(method, path, headers=headers)


class TestHealth:
    async def test_health_is_that_of_the_process_alone(self) -> None:
        """Alive is who answers: while the store is out, while draining, and before there is a policy."""
        around = Around(ready_requires_store=True)
        around.state, around.policy = State(("draining",), "degraded"), None

        assert (200, {"status": "ok"}) == (
            (await around.get("/healthz")).status_code,
            (await around.get("/healthz")).json(),
        )

    async def test_health_never_touches_the_store(self) -> None:
        """With a store that hangs under every charge, all pages answer at once."""

        class Hanging(Store):
            async def charge(self, hits: Sequence[Hit]) -> Receipt:
                await asyncio.Event().wait()
                raise AssertionError

            async def close(self) -> None: ...

        around = Around()
        around.limiter.store = Hanging()
        asking = asyncio.create_task(around.limiter.judge(request()))
        await asyncio.sleep(0)
        async with asyncio.timeout(5):
            answers = [(await around.get(path)).status_code for path in ("/healthz", "/readyz", "/metrics", "/policy")]
        asking.cancel()

        assert [200] * 4 == answers


class TestReadiness:
    @pytest.mark.parametrize(
        ("state", "settings", "status", "unready"),
        [
            (State(), {}, 200, []),
            (State(("no listener",)), {}, 503, ["no listener"]),
            (State(("draining",)), {}, 503, ["draining"]),
            (State((), "degraded"), {}, 200, []),
            (State((), "degraded"), {"ready_requires_store": True}, 503, ["no store"]),
            (State(), {"ready_requires_store": True}, 200, []),
        ],
    )
    async def test_ready_is_who_can_serve(
        self, state: State, settings: dict[str, bool], status: int, unready: list[str]
    ) -> None:
        """A store that is out is told, and takes nobody out of service unless that is asked for."""
        around = Around(**settings)
        around.state = state
        answer = await around.get("/readyz")

        assert status == answer.status_code
        assert {"ready": not unready, "unready": unready, "store": state.store} == answer.json()

    async def test_without_a_policy_nobody_is_ready(self) -> None:
        """Before the policy is loaded no traffic may come."""
        around = Around()
        around.policy = None

        assert 503 == (await around.get("/readyz")).status_code
        assert 503 == (await around.get("/policy")).status_code

    async def test_degraded_is_what_the_guard_says(self) -> None:
        """The state of a guarded store is readable without asking the store."""

        class Out(Store):
            async def charge(self, hits: Sequence[Hit]) -> Receipt:
                raise StoreUnavailable("gone")

            async def close(self) -> None: ...

        guard = FallbackStore(Out())
        around = Around(state=lambda: State((), "degraded" if guard.degraded else "ok"))
        around.limiter.store = guard
        before = (await around.get("/readyz")).json()["store"]
        for _ in range(FAILURES_MAX):
            await around.limiter.judge(request())

        assert ("ok", "degraded") == (before, (await around.get("/readyz")).json()["store"])


class TestPages:
    @pytest.mark.parametrize(
        ("accept", "content_type"),
        [
            ("*/*", "text/plain; version=0.0.4; charset=utf-8"),
            ("application/openmetrics-text;version=1.0.0,*/*;q=0.1", "application/openmetrics-text; version=1.0.0"),
        ],
    )
    async def test_metrics_come_as_the_scraper_wants_them(self, accept: str, content_type: str) -> None:
        """The format is negotiated, and named as the client library names it."""
        around = Around()
        await around.limiter.judge(request())
        answer = await around.get("/metrics", accept=accept)

        assert answer.headers["content-type"].startswith(content_type)
        assert 'ratelimiter_requests_total{outcome="admitted",source="store"} 1.0' in answer.text

    async def test_policy_is_shown_without_secrets(self) -> None:
        """What is in force, with the hash that the metrics show, and without passwords."""
        answer = await Around().get("/policy")

        assert fingerprint(POLICY) == answer.json()["hash"]
        assert "redis://redis:6379/0" == answer.json()["policy"]["store"]
        assert not [word for word in ("hunter2", "horse") if word in answer.text]

    async def test_top_tells_who_is_refused(self) -> None:
        """The most refused principals by digest, as many as are asked for."""
        around = Around()
        for _ in range(5):
            await around.limiter.judge(request())
        answer = (await around.get("/top")).json()

        assert [3] == [each["refusals"] for each in answer["now"]["refused"]]
        assert [] == (await around.get("/top?n=0")).json()["now"]["refused"]
        assert "203.0.113.7" not in json.dumps(answer)

    @pytest.mark.parametrize("number", ["-1", "1001", "x", "", "99999999999999999999", "٣"])
    async def test_top_refuses_what_is_no_number(self, number: str) -> None:
        """A number that is none is a mistake of the caller's, not of ours."""
        assert 400 == (await Around().get(f"/top?n={number}")).status_code

    async def test_top_can_be_left_out(self) -> None:
        """Where principals are not counted there is nothing to tell."""
        assert 404 == (await Around(top=None).get("/top")).status_code

    @pytest.mark.parametrize("path", ["/metrics", "/healthz", "/readyz", "/policy", "/top"])
    async def test_it_only_reads(self, path: str) -> None:
        """GET and HEAD, and no other method."""
        around = Around()
        methods = ("GET", "HEAD", "POST", "PUT", "DELETE", "PATCH", "OPTIONS")
        answers = {method: (await around.get(path, method=method)).status_code for method in methods}

        assert {method: 200 if method in ("GET", "HEAD") else 405 for method in methods} == answers

    async def test_nothing_else_is_there(self) -> None:
        """No other path, and none that leads to one."""
        around = Around()

        assert {404} == {(await around.get(path)).status_code for path in ("/", "/docs", "/metrics/x", "/%2e/metrics")}


class TestNames:
    @pytest.mark.parametrize(
        ("host", "status"),
        [
            ("127.0.0.1:9090", 200),
            ("localhost", 200),
            ("LOCALHOST:1", 200),
            ("[::1]:9090", 200),
            ("evil.example:9090", 421),
            ("localhost.evil.example", 421),
            ("127.0.0.1.evil.example:9090", 421),
            ("user@127.0.0.1", 421),
            ("[::1", 421),
            ("", 421),
        ],
    )
    async def test_on_loopback_only_our_own_names_are_answered(self, host: str, status: int) -> None:
        """A page that makes a browser resolve its name to this machine learns nothing."""
        around = Around(hosts=hosts_for("127.0.0.1"))

        assert status == (await around.get("/policy", host=host)).status_code

    @pytest.mark.parametrize(
        ("address", "any_name"),
        [
            ("127.0.0.1", False),
            ("127.8.9.1", False),
            ("::1", False),
            ("localhost", False),
            ("0.0.0.0", True),  # noqa: S104 - nothing is bound
            ("10.1.2.3", True),
        ],
    )
    def test_elsewhere_any_name_will_do(self, address: str, any_name: bool) -> None:
        """Probes and scrapers name a pod by its address, which nobody knows beforehand."""
        assert any_name == (hosts_for(address) == ())


@asynccontextmanager
async def served(app: Any, listen: str = "127.0.0.1:0") -> AsyncIterator[httpx.AsyncClient]:
    async with serve_admin(app, bind(listen)) as url, httpx.AsyncClient(base_url=url) as client:
        yield client


class TestListener:
    async def test_it_is_served_beside_whatever_runs_on_the_loop(self) -> None:
        """Real requests to a real port, on the event loop of the data; gone when the context ends."""
        around = Around(hosts=hosts_for("127.0.0.1"))
        async with served(around.app) as client:
            await around.limiter.judge(request())
            answers = [await client.get(path) for path in ("/healthz", "/readyz", "/metrics", "/policy", "/top")]
            head = await client.head("/metrics")
            rebound = await client.get("/policy", headers={"host": "evil.example"})
            url = str(client.base_url)

        assert [200] * 5 == [answer.status_code for answer in answers]
        assert (200, b"", 421) == (head.status_code, head.content, rebound.status_code)
        async with httpx.AsyncClient() as late:
            with pytest.raises(httpx.ConnectError):
                await late.get(f"{url}/healthz")

    async def test_signals_are_left_alone(self) -> None:
        """It is a part of a process, which decides itself when to end."""
        import signal

        before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
        async with served(Around().app):
            during = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}

        assert before == during

    @pytest.mark.parametrize("listen", ["", "9090", ":9090", "127.0.0.1:", "127.0.0.1:x", "127.0.0.1:65536", "[::1]"])
    def test_what_is_no_address_is_refused(self, listen: str) -> None:
        """With what was written and what would do."""
        with pytest.raises(ConfigError, match=r"--admin: .* is not HOST:PORT; write one like 127.0.0.1:9090"):
            bind(listen).close()

    def test_a_port_in_use_is_told(self) -> None:
        """In one line, not with a traceback."""
        with socket.create_server(("127.0.0.1", 0)) as taken, pytest.raises(ConfigError, match="cannot be listened at"):
            bind(f"127.0.0.1:{taken.getsockname()[1]}")


async def test_a_scrape_leaves_the_event_loop_free() -> None:
    """While an exposition is made, other requests are answered; the next scrape waits for it, not the loop."""
    started, may_end = threading.Event(), threading.Event()
    made = 0

    def exposition(_: str) -> tuple[bytes, str]:
        nonlocal made
        made += 1
        started.set()
        assert may_end.wait(10)
        return b"x 1\n", "text/plain"

    around = Around(exposition=exposition)
    scrapes = [asyncio.create_task(around.get("/metrics")) for _ in range(2)]
    await asyncio.to_thread(started.wait, 10)

    assert 200 == (await around.get("/healthz")).status_code
    assert 1 == made
    may_end.set()
    assert [200, 200] == [(await scrape).status_code for scrape in scrapes]
