"""The README is short, and a newcomer who types what stands there gets what it says."""

from __future__ import annotations

import re
import shlex
import subprocess
import sys
import urllib.error
import urllib.request
from pathlib import Path

import pytest

from tests.asgi.test_middleware import App, limited
from tests.asgi_client import get
from tests.stores.redis_server import free_port, wait_until

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text()
LINES_MAX = 180


def blocks(kind: str) -> list[str]:
    """Return the blocks of code that say they are *kind*."""
    return re.findall(rf"^```{kind}\n(.*?)^```$", README, re.MULTILINE | re.DOTALL)


def test_it_is_short() -> None:
    """A reader sees what it is, why, how to start and where the rest is; the rest is in docs/."""
    assert len(README.splitlines()) <= LINES_MAX


async def test_http() -> None:
    """The refusal that is shown is the one that is sent, byte for byte."""
    (shown,) = blocks("http")
    middleware = limited(App(), limit="60/minute")
    for _ in range(60):
        await get(middleware)
    answer = await get(middleware)
    head = "".join(f"{name.decode()}: {value.decode()}\n" for name, value in answer.start["headers"])

    assert shown == f"HTTP/1.1 429 Too Many Requests\n{head}\n{answer.body.decode()}\n"


def test_two_commands_do_everything() -> None:
    """One installs and runs the example, one installs what the tests need and runs them; what they call is there."""
    install, tests = blocks("sh")[:2]

    assert "python3 -m venv .venv && .venv/bin/pip install . && .venv/bin/ratelimiter demo" == install.strip()
    assert "tests/run" == tests.strip()
    assert "ratelimiter" in (ROOT / "pyproject.toml").read_text().partition("[project.scripts]")[2]
    for script in (
        "tests/run",
        *(f"scripts/{name}" for name in ("test", "install", "check", "coverage", "docs", "release")),
    ):
        assert (ROOT / script).stat().st_mode & 0o111, script
        assert 0 == subprocess.run(["sh", "-n", ROOT / script], check=False).returncode, script  # noqa: S607


def test_the_application_of_the_quickstart_runs(tmp_path: Path) -> None:
    """`app.py` as it stands, started by the command that stands there, admits 60 requests and refuses the 61st."""
    (application,) = blocks("python")
    commands = [line for block in blocks("sh") for line in block.splitlines()]
    (start,) = [shlex.split(line) for line in commands if line.startswith("uvicorn ")]
    assert "pip install fastapi" in commands  # the only package of the application that this one does not bring
    (tmp_path / "app.py").write_text(application)
    port = free_port()
    command = [sys.executable, "-m", *start, "--port", str(port), "--log-level", "warning"]
    server = subprocess.Popen(command, cwd=tmp_path)

    def status() -> int:
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{port}/openapi.json", timeout=5) as answer:
                return int(answer.status)
        except urllib.error.HTTPError as refused:
            return refused.code
        except OSError:
            return 0

    try:
        wait_until(lambda: status() == 200, "the application answers")  # which is charged, too
        statuses = [status() for _ in range(60)]
    finally:
        server.terminate()
        server.wait(timeout=10)

    assert [200] * 59 + [429] == statuses


@pytest.mark.parametrize("door", ["RateLimitMiddleware", "limits(", "ratelimiter proxy", "ratelimiter serve"])
def test_each_door_has_its_line(door: str) -> None:
    """The table of doors says how each is used."""
    table = README.partition("## Which door is yours")[2].partition("\n## ")[0]

    assert door in table
