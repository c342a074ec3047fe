"""Goal: a page of another origin reads our refusals, and its preflights cost nothing; no other page does. Method:
requests as browsers send them, through sidecar and middleware, and a page in Chromium.
"""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import httpx
import pytest

from ratelimiter.asgi.middleware import RateLimitMiddleware
from ratelimiter.errors import ConfigError
from ratelimiter.proxy.pool import Target
from tests.proxy.browser import browser
from tests.proxy.wire import Upstream, answering, sidecar

if TYPE_CHECKING:
    from pathlib import Path

APP = "https://app.example.com"
CORS: dict[str, Any] = {"origins": [APP, "https://*.example.org"], "credentials": True}
PREFLIGHT = {"Origin": APP, "Access-Control-Request-Method": "POST", "Access-Control-Request-Headers": "x-api-key"}


def policy(folder: Path, limit: str = "1/hour", **cors: Any) -> str:
    file = folder / "policy.yaml"
    file.write_text(json.dumps({"cors": {**CORS, **cors}, "rules": [{"limit": limit}]}))
    return str(file)


async def hello(scope: Any, receive: Any, send: Any) -> None:
    await send({"type": "http.response.start", "status": 200, "headers": [(b"x-service", b"1")]})
    await send({"type": "http.response.body", "body": b"ok"})


async def answers(way: str, file: str, *requests: tuple[str, dict[str, str]]) -> list[httpx.Response]:
    """The answers of the sidecar or the middleware with the policy in *file*."""
    if way == "middleware":
        transport = httpx.ASGITransport(RateLimitMiddleware(hello, config=file))
        async with httpx.AsyncClient(transport=transport, base_url="http://test") as http:
            return [await http.request(method, "/", headers=headers) for method, headers in requests]
    raw = b"HTTP/1.1 200 OK\r\nX-Service: 1\r\nContent-Length: 2\r\n\r\nok"
    upstream = Upstream(answering(raw, then_close=False))
    async with upstream.serving(), sidecar(upstream, limit=None, config=file) as proxy, httpx.AsyncClient() as http:
        url = f"http://127.0.0.1:{proxy.port}/"
        return [await http.request(method, url, headers=headers) for method, headers in requests]


WAYS = ("sidecar", "middleware")


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("origin", [APP, "https://a.b.example.org"])
async def test_a_refusal_is_read_by_pages_of_allowed_origins(way: str, origin: str, tmp_path: Path) -> None:
    """With its figures; the answers of the service are left alone."""
    first, refused = await answers(way, policy(tmp_path), *[("GET", {"Origin": origin})] * 2)
    assert (200, None) == (first.status_code, first.headers.get("access-control-allow-origin"))
    assert (429, origin, "true") == (
        refused.status_code,
        refused.headers["access-control-allow-origin"],
        refused.headers["access-control-allow-credentials"],
    )
    exposed = refused.headers["access-control-expose-headers"].split(", ")
    assert {"retry-after", "x-ratelimit-limit", "x-ratelimit-remaining", "x-ratelimit-reset"} <= set(exposed)
    assert "Origin" in refused.headers["vary"]


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize(
    "origin",
    ["https://evil.example", f"{APP}.evil.example", "https://example.org", "http://app.example.com", "null"],
)
async def test_no_other_page_reads_anything(way: str, origin: str, tmp_path: Path) -> None:
    """And its preflights are charged like any request."""
    preflight = {**PREFLIGHT, "Origin": origin}
    first, refused = await answers(way, policy(tmp_path), ("OPTIONS", preflight), ("GET", {"Origin": origin}))
    assert ("1", 429) == (first.headers["x-service"], refused.status_code)
    assert "access-control-allow-origin" not in refused.headers
    assert "Origin" == refused.headers["vary"]


@pytest.mark.parametrize("way", WAYS)
async def test_preflights_cost_nothing(way: str, tmp_path: Path) -> None:
    """They are answered here, however many there are."""
    *preflights, asked, refused = await answers(
        way, policy(tmp_path), *[("OPTIONS", PREFLIGHT)] * 5, ("GET", {"Origin": APP}), ("GET", {"Origin": APP})
    )
    assert [204] * 5 + [200, 429] == [answer.status_code for answer in [*preflights, asked, refused]]
    assert (APP, "x-api-key", "600") == tuple(
        preflights[0].headers[f"access-control-{name}"] for name in ("allow-origin", "allow-headers", "max-age")
    )
    assert "POST" in preflights[0].headers["access-control-allow-methods"]


@pytest.mark.parametrize("way", WAYS)
async def test_the_service_may_answer_preflights(way: str, tmp_path: Path) -> None:
    """`preflights: pass`: they reach it, uncharged."""
    *passed, asked = await answers(
        way, policy(tmp_path, preflights="pass"), *[("OPTIONS", PREFLIGHT)] * 3, ("GET", {"Origin": APP})
    )
    assert [(200, "1")] * 4 == [(answer.status_code, answer.headers["x-service"]) for answer in [*passed, asked]]


async def test_errors_of_the_proxy_are_read_too(tmp_path: Path) -> None:
    """A 502, and a 400."""
    file = policy(tmp_path, "9/hour")
    async with sidecar(Target("127.0.0.1", 1), limit=None, config=file) as proxy, httpx.AsyncClient() as http:
        answer = await http.get(f"http://127.0.0.1:{proxy.port}/", headers={"Origin": APP})
    assert (502, APP) == (answer.status_code, answer.headers["access-control-allow-origin"])


@pytest.mark.parametrize(
    ("cors", "problem"),
    [
        ({"origins": ["*"], "credentials": True}, "'\\*' excludes credentials"),
        ({"origins": ["app.example.com"]}, "'app.example.com' is not an origin"),
        ({"origins": ["https://app.example.com/"]}, "is not an origin"),
        ({"origins": ["https://*"]}, "is not an origin"),
    ],
)
async def test_bad_origins_are_told(cors: dict[str, Any], problem: str, tmp_path: Path) -> None:
    """When the policy is read."""
    with pytest.raises(ConfigError, match=problem):
        RateLimitMiddleware(hello, config=policy(tmp_path, **cors))


READ = """
(async () => {
  const seen = [];
  for (let at = 0; at < 3; at++) {
    try {
      const answer = await fetch('URL', {method: 'POST', headers: {'X-API-Key': 'k'}, credentials: 'CREDENTIALS'});
      const names = ['x-ratelimit-limit', 'x-ratelimit-remaining'];
      seen.push([answer.status, ...names.map(name => answer.headers.get(name)), answer.headers.has('retry-after')]);
    } catch { seen.push('network error'); }
  }
  return seen;
})()
"""


@pytest.mark.wall_clock
@pytest.mark.parametrize("credentials", ["include", "omit"])
async def test_a_page_of_another_origin_reads_a_429(credentials: str, tmp_path: Path) -> None:
    """In Chromium: status, figures and Retry-After, with and without credentials; preflights are not charged."""

    async def page_of(seen: Any, reader: Any, writer: Any) -> bool:
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Type: text/html\r\nContent-Length: 6\r\n\r\n<p>hi!")
        return True

    origin_of_page = Upstream(page_of)
    async with origin_of_page.serving():
        origin = f"http://127.0.0.1:{origin_of_page.port}"
        theirs = f"Access-Control-Allow-Origin: {origin}\r\nAccess-Control-Allow-Credentials: true\r\n"
        theirs += "Access-Control-Expose-Headers: X-RateLimit-Limit, X-RateLimit-Remaining\r\n"
        upstream = Upstream(
            answering(f"HTTP/1.1 200 OK\r\n{theirs}Content-Length: 2\r\n\r\nok".encode(), then_close=False)
        )
        file = policy(tmp_path, "2/hour", origins=[origin])
        async with upstream.serving(), sidecar(upstream, limit=None, config=file) as proxy, browser() as page:
            await page.open(f"{origin}/")
            url = f"http://127.0.0.1:{proxy.port}/v1"
            seen = await page.run(READ.replace("URL", url).replace("CREDENTIALS", credentials))
    assert [[200, "2", "1", False], [200, "2", "0", False], [429, "2", "0", True]] == seen
