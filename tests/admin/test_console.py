"""The console without a browser: what it shows, what it lets through, and what it never says."""

from __future__ import annotations

import asyncio
import re
from typing import TYPE_CHECKING, Any

import httpx
import pytest

from ratelimiter.admin.console.recorder import ConsoleRecorder, changes_between
from ratelimiter.config.loader import build, load
from tests.admin.console import POLICY, TOKEN, consoled
from tests.stores.redis_server import RedisServer

if TYPE_CHECKING:
    from pathlib import Path

HOSTILE = "<img src=x onerror=alert(1)>\"'&"


async def test_the_page_shows_what_happened(tmp_path: Path) -> None:
    """Rules with their lines, refusals with rule, figures and request id, the store, and the policy's hash."""
    async with consoled(tmp_path) as console, httpx.AsyncClient() as client:
        await console.ask("alice", 8, request_id="req_42")
        text = (await client.get(console.url)).text

    assert "policy.yaml:4" in text
    assert ">5 per minute<" in text
    assert "<strong>3</strong>" in text  # refused by per-minute
    assert "<code>req_42</code>" in text
    assert "alice" in text
    assert "Answers." in text
    assert "over limit" in text


async def test_names_are_shown_only_if_the_policy_permits(tmp_path: Path) -> None:
    """Without `show_principals` a principal is its digest, everywhere on the page."""
    policy = POLICY.replace("show_principals: true", "show_principals: false")
    async with consoled(tmp_path, policy) as console, httpx.AsyncClient() as client:
        await console.ask("very-secret-key", 8)
        text = (await client.get(console.url)).text

    assert "very-secret-key" not in text
    assert re.search("<code>[0-9a-f]{32}</code>", text)


async def test_hostile_text_is_text(tmp_path: Path) -> None:
    """A principal and a request id of markup make no element."""
    async with consoled(tmp_path) as console, httpx.AsyncClient() as client:
        await console.ask(HOSTILE, 8, request_id=HOSTILE)
        text = (await client.get(console.url)).text

    assert "<img" not in text
    assert "&lt;img src=x onerror=alert(1)&gt;" in text


@pytest.mark.parametrize("path", ["/", "/console/live", "/console/console.css", "/console/console.js"])
async def test_a_browser_may_do_nothing_else_with_it(tmp_path: Path, path: str) -> None:
    """Every answer has the strict policy, stands in no frame and is not kept."""
    async with consoled(tmp_path) as console, httpx.AsyncClient() as client:
        answer = await client.get(console.url + path)

    assert 200 == answer.status_code
    policy = answer.headers["content-security-policy"]
    assert "default-src 'none'" in policy
    assert "unsafe" not in policy
    assert "frame-ancestors 'none'" in policy
    assert ("nosniff", "no-store") == (answer.headers["x-content-type-options"], answer.headers["cache-control"])


async def test_the_page_has_no_inline_script_and_no_foreign_resource(tmp_path: Path) -> None:
    """One script and one style sheet, both of this listener; no style attributes and no handlers."""
    async with consoled(tmp_path) as console, httpx.AsyncClient() as client:
        await console.ask("alice", 8)
        text = (await client.get(console.url)).text

    assert ['<script src="console/console.js" defer>'] == re.findall(r"<script[^>]*>", text)
    assert [] == re.findall(r"\s(?:style|on[a-z]+)=", text)
    assert [] == [url for url in re.findall(r'(?:src|href)="([^"]+)"', text) if "//" in url]


ORDERS = [("/operator/v1/block", {"principal": "client=192.0.2.1"}), ("/console/explain", {"method": "GET"})]


@pytest.mark.parametrize(("path", "body"), ORDERS)
async def test_an_order_needs_a_token(tmp_path: Path, path: str, body: dict[str, str]) -> None:
    """Without one, and with a wrong one, nothing is done."""
    async with consoled(tmp_path) as console, httpx.AsyncClient() as client:
        none = await client.post(console.url + path, json=body)
        wrong = await client.post(console.url + path, json=body, headers={"authorization": "Bearer " + "x" * 20})

    assert [401, 401] == [none.status_code, wrong.status_code]
    assert not console.limiter.policy.overrides


@pytest.mark.parametrize(("path", "body"), ORDERS)
@pytest.mark.parametrize(
    "headers", [{"origin": "https://evil.example"}, {"sec-fetch-site": "cross-site"}, {"sec-fetch-site": "same-site"}]
)
async def test_another_page_cannot_give_orders(
    tmp_path: Path, path: str, body: dict[str, str], headers: dict[str, str]
) -> None:
    """Even with the token: a request that a browser sends for another page is refused."""
    told = {**headers, "authorization": f"Bearer {TOKEN}"}
    async with consoled(tmp_path) as console, httpx.AsyncClient() as client:
        answer = await client.post(console.url + path, json=body, headers=told)

    assert 403 == answer.status_code


async def test_without_an_operator_no_order_is_there(tmp_path: Path) -> None:
    """A process without `--operator` has neither forms nor routes."""
    async with consoled(tmp_path, operated=False) as console, httpx.AsyncClient() as client:
        text = (await client.get(console.url)).text
        answer = await client.post(f"{console.url}/operator/v1/block", json={})

    assert 404 == answer.status_code
    assert "<form" not in text


async def test_the_console_explains_as_the_command_does(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The same lines, for the same request."""
    from ratelimiter.cli.main import main

    asked = {"method": "GET", "url": "/v1/exports/1", "peer": "192.0.2.1", "headers": "X-API-Key: alice"}
    async with consoled(tmp_path) as console, httpx.AsyncClient() as client:
        answer = await client.post(
            f"{console.url}/console/explain", json=asked, headers={"authorization": f"Bearer {TOKEN}"}
        )
    arguments = ["GET", "/v1/exports/1", "--peer", "192.0.2.1", "-H", "X-API-Key: alice"]
    assert 0 == main(["explain", "--config", str(tmp_path / "policy.yaml"), *arguments])

    assert capsys.readouterr().out.splitlines() == answer.json()["lines"]


@pytest.mark.parametrize("body", [b"", b"[]", b"{}", b'{"method":1}', b"x" * 20_000, b'{"a":' * 5000])
async def test_explain_answers_400_to_nonsense(tmp_path: Path, body: bytes) -> None:
    """A body that describes no request is refused."""
    headers = {"authorization": f"Bearer {TOKEN}"}
    async with consoled(tmp_path) as console, httpx.AsyncClient() as client:
        answer = await client.post(f"{console.url}/console/explain", content=body, headers=headers)

    assert 400 == answer.status_code


async def test_an_application_mounts_it(tmp_path: Path) -> None:
    """Behind the middleware a refusal is found by the request id that its answer carries."""
    from ratelimiter import RateLimitMiddleware
    from ratelimiter.admin.app import State, admin_app
    from ratelimiter.admin.console.app import Console

    async def application(scope: Any, receive: Any, send: Any) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": b""})

    recorder = ConsoleRecorder()
    limited = RateLimitMiddleware(application, limit="1/minute", dialect="intrace", observer=recorder)
    console = admin_app(
        exposition=lambda _: (b"", "text/plain"),
        policy=lambda: limited.limiter.policy,
        state=State,
        console=Console(recorder),
    )
    async with (
        httpx.AsyncClient(transport=httpx.ASGITransport(limited), base_url="http://app") as client,
        httpx.AsyncClient(transport=httpx.ASGITransport(console), base_url="http://admin") as operator,
    ):
        statuses = [(await client.get("/")).status_code for _ in range(2)]
        text = (await operator.get("/")).text

    assert [200, 429] == statuses
    ids = [refusal.request_id for refusal in recorder.refusals()]
    assert 1 == len(ids)
    assert ids[0]
    assert f"<code>{ids[0]}</code>" in text


async def test_an_outage_is_on_top(tmp_path: Path) -> None:
    """While Redis is down the page says so, since when, and what is admitted meanwhile; and that it is back."""
    with RedisServer() as server:
        policy = POLICY + f"store: {server.url}\n"
        async with consoled(tmp_path, policy, operated=False) as console, httpx.AsyncClient() as client:
            await console.ask("alice", 2)
            before = (await client.get(console.url)).text
            server.kill()
            async with asyncio.timeout(20):
                while not console.recorder.degraded_since_ms:
                    await console.ask("bob")
            text = (await client.get(console.url)).text
            server.start()
            async with asyncio.timeout(20):
                while console.recorder.degraded_since_ms:  # noqa: ASYNC110  # the probe tells in no other way
                    await asyncio.sleep(0.05)
            after = (await client.get(console.url)).text

    for quiet in (before, after):
        assert "Answers." in quiet
        assert "What an outage would do" in quiet
    assert "decisions are made without it" in text

    assert "What the outage does now" in text
    assert "per-minute: without the store, each process at most 5 per minute" in text
    assert "Failures since the start" in text


async def test_refusals_are_bounded_and_find_their_request_id(tmp_path: Path) -> None:
    """The last refusals are kept, no more; each has the id that it was answered under, whenever it was counted."""
    async with consoled(tmp_path) as console:
        for number in range(600):
            await console.ask("alice", 1, request_id=f"req_{number}")
        console.recorder.catch_up()

    ids = [refusal.request_id for refusal in console.recorder.refusals()]
    assert [f"req_{number}" for number in range(100, 600)] == ids


def test_the_last_ten_minutes_are_kept_in_steps() -> None:
    """Steps without requests are there, and old ones go."""
    now_ms = [1_000_000_000]
    recorder = ConsoleRecorder(clock=lambda: now_ms[0])

    assert 120 == len(recorder.steps())
    assert recorder.steps()[-1][0] <= now_ms[0] < recorder.steps()[-1][0] + 5000


def test_a_reload_says_what_changed(tmp_path: Path) -> None:
    """Added, removed and changed rules and settings, one line each, and no secret."""
    (tmp_path / "a.yaml").write_text(
        "store: redis://:hunter2@localhost/0\nrules: [{name: a, limit: 5/minute}, {limit: 9/hour}]\n"
    )
    (tmp_path / "b.yaml").write_text(
        "store: redis://:hunter3@localhost/1\nrules: [{name: a, limit: 6/minute}, {name: b, limit: 1/day}]\n"
    )

    lines = changes_between(load(tmp_path / "a.yaml"), load(tmp_path / "b.yaml"))

    assert "rule per-hour: removed" in lines
    assert "rule b: added" in lines
    assert any(line.startswith("rule a, quota: ") for line in lines)
    assert any(line.startswith("store: ") for line in lines)
    assert "hunter" not in "".join(lines)


def test_names_go_with_the_permission() -> None:
    """A policy that no longer shows principals takes the names out of the ring."""
    recorder = ConsoleRecorder()
    recorder.loaded(build(limit="1/minute", show_principals=True))
    recorder.loaded(build(limit="1/minute"))

    assert not recorder._names
