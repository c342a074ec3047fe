"""The fixture `rate_limits`, in the test suite of an application whose limiter is made when it is imported."""

from __future__ import annotations

import subprocess
import sys
from importlib.metadata import EntryPoint
from pathlib import Path
from typing import Any

import pytest

from ratelimiter import RateLimitMiddleware
from ratelimiter.pytest_plugin import rate_limits as plugged
from ratelimiter.stores.memory import MemoryStore
from ratelimiter.testing import fresh_limits
from tests.asgi_client import get

ROOT = Path(__file__).parent.parent

APPLICATION = """
from starlette.applications import Starlette
from starlette.responses import PlainTextResponse
from starlette.routing import Route
from ratelimiter import RateLimitMiddleware

async def hello(request):
    return PlainTextResponse("hello")

# A store that is not there: no test below may ask it.
app = Starlette(routes=[Route("/", hello)])
app.add_middleware(RateLimitMiddleware, limit="2/minute", store="redis://127.0.0.1:1", on_store_error="deny")
"""
SUITE = """
import pytest
from starlette.testclient import TestClient
from application import app

client = TestClient(app)

@pytest.mark.parametrize("again", [1, 2, 3])
def test_each_test_begins_with_nothing_counted(rate_limits, again):
    assert [200, 200, 429] == [client.get("/").status_code for _ in range(3)]

def test_time_passes_when_told_to(rate_limits):
    assert [200, 200, 429] == [client.get("/").status_code for _ in range(3)]
    rate_limits.advance(59.999)
    assert 429 == client.get("/").status_code
    rate_limits.advance(0.001)
    assert 200 == client.get("/").status_code

def test_it_can_begin_anew_within_a_test(rate_limits):
    assert [200, 200, 429] == [client.get("/").status_code for _ in range(3)]
    rate_limits.reset()
    assert 200 == client.get("/").status_code

def test_without_it_the_store_is_the_applications():
    assert 503 == client.get("/").status_code
"""


@pytest.mark.slow
def test_the_suite_of_an_application(tmp_path: Path) -> None:
    """As a user writes it: one fixture, no sleep, no store, and nothing of it stays."""
    (tmp_path / "application.py").write_text(APPLICATION)
    (tmp_path / "test_application.py").write_text(SUITE)
    (tmp_path / "conftest.py").write_text("from ratelimiter.pytest_plugin import rate_limits as rate_limits\n")
    command = [
        sys.executable,
        "-m",
        "pytest",
        "-q",
        "-p",
        "no:cacheprovider",
        "--rootdir",
        str(tmp_path),
        str(tmp_path),
    ]
    done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=tmp_path)

    assert "6 passed" in done.stdout, done.stdout


def test_the_plugin_is_installed_with_the_package() -> None:
    """Under the name by which pytest finds it."""
    text = (ROOT / "pyproject.toml").read_text()
    _, _, stated = text.partition("[project.entry-points.pytest11]\n")
    name, _, value = stated.splitlines()[0].partition(" = ")

    loaded = EntryPoint(name, value.strip('"'), "pytest11").load()
    assert plugged is loaded.rate_limits


async def app(scope: Any, receive: Any, send: Any) -> None:
    await send({"type": "http.response.start", "status": 200, "headers": []})
    await send({"type": "http.response.body", "body": b""})


async def test_limiters_before_and_meanwhile() -> None:
    """Those whose policies name one store share one, and afterwards each has its own again."""
    first, own = RateLimitMiddleware(app, limit="1/minute"), MemoryStore()
    second = RateLimitMiddleware(app, limit="1/minute", store=own)
    await get(first)
    with fresh_limits() as limits:
        meanwhile = RateLimitMiddleware(app, limit="1/minute")
        statuses = [(await get(each)).status for each in (first, second, meanwhile)]
        limits.reset()
        again = (await get(meanwhile)).status

    assert [200, 429, 429] == statuses
    assert 200 == again
    assert own is second.limiter.store
    assert 429 == (await get(first)).status
