from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
import urllib.request
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from pathlib import Path

pytestmark = [pytest.mark.server, pytest.mark.wall_clock]
POLICY = "proxy: {lame_duck: 50s, grace: 60s}\nrules: [{name: per-minute, limit: 60/minute}]\n"


def started(folder: Path) -> tuple[subprocess.Popen[str], list[str], str]:
    """Return a sidecar, the lines that it printed, and the URL of its admin listener."""
    (folder / "policy.yaml").write_text(POLICY)
    flags = ["--config", str(folder / "policy.yaml"), "--upstream", "http://127.0.0.1:9"]
    flags += ["--listen", "127.0.0.1:0", "--admin", "127.0.0.1:0"]
    process = subprocess.Popen(
        [sys.executable, "-m", "ratelimiter", "proxy", *flags],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None
    lines = [process.stdout.readline() for _ in range(3)]
    return process, lines, lines[0].split("admin ")[1].strip()


def shown(admin: str) -> dict[str, object]:
    with urllib.request.urlopen(f"{admin}/policy", timeout=10) as answer:  # noqa: S310 - our own listener
        return dict(json.loads(answer.read()))


def test_an_interrupt_ends_an_idle_sidecar_without_a_lame_duck(tmp_path: Path) -> None:
    """Ctrl-C at a terminal does not wait for a load balancer: the 50 s of the policy do not pass."""
    process, lines, admin = started(tmp_path)
    shown(admin)
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=30)

    assert 0 == process.returncode
    assert "SIGINT: draining: requests in flight have 60 s" in errors
    assert "  ratelimiter " in lines[1]
    assert "  per-minute: 60 per minute by client\n" == lines[2]


def test_a_termination_says_that_it_drains_and_a_reload_what_changed(tmp_path: Path) -> None:
    """SIGTERM names both times; the history of policies is at the admin listener and in the log."""
    process, _, admin = started(tmp_path)
    before = shown(admin)["hash"]
    (tmp_path / "policy.yaml").write_text(POLICY.replace("60/minute", "6/minute"))
    process.send_signal(signal.SIGHUP)
    deadline = time.monotonic() + 30
    while shown(admin)["hash"] == before and time.monotonic() < deadline:
        time.sleep(0.05)
    history = shown(admin)["history"]
    process.send_signal(signal.SIGTERM)
    process.send_signal(signal.SIGTERM)
    time.sleep(0.2)
    process.send_signal(signal.SIGTERM)
    _, errors = process.communicate(timeout=30)

    assert isinstance(history, list)
    assert [["per-minute 60 -> 6 per minute"], []] == [entry["changes"] for entry in history]
    assert f"in force, was {before}: per-minute 60 -> 6 per minute" in errors
    assert "SIGTERM: draining: requests are accepted for 50 s more, then requests in flight have 60 s" in errors
