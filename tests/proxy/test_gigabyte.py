"""Goal: how much goes through is no matter of memory. Method: a gigabyte each way, past somebody who dawdles."""

from __future__ import annotations

import re
import sys
from pathlib import Path

from tests.proxy.servers import nginx, node, output, started
from tests.stores.redis_server import free_port

GIGABYTE = 2**30
GROWN_MAX = 32 * 2**20  # bytes; what lies in buffers is 64 KiB and a packet for each direction


def peak(pid: int) -> int:
    """The most bytes of memory that a process has had."""
    told = Path(f"/proc/{pid}/status").read_text()
    found = re.search(r"VmHWM:\s+(\d+) kB", told)
    assert found
    return int(found[1]) * 1024


async def _through(upstream_port: int, *curl: str) -> tuple[str, int]:
    """What curl prints of a transfer through a sidecar of its own process, and by how much that grows."""
    port = free_port()
    words = (sys.executable, "-m", "ratelimiter", "proxy", "--upstream", f"http://127.0.0.1:{upstream_port}")
    async with started(*words, "--listen", f"127.0.0.1:{port}", "--limit", "2/hour", port=port) as process:
        url = f"http://127.0.0.1:{port}/gigabyte"
        await output("curl", "-s", "-I", url)
        before = peak(process.pid)
        told = await output("curl", "-s", "-S", "-w", " %{http_code} %{size_download}", *curl, url)
        return told, peak(process.pid) - before


async def test_down(tmp_path: Path) -> None:
    """Faster than the client takes it in at first: it is the upstream that waits."""
    with (tmp_path / "gigabyte").open("wb") as file:
        file.truncate(GIGABYTE)
    async with nginx(tmp_path) as server:
        told, grown = await _through(server.port, "-o", "/dev/null", "--limit-rate", "500M")

    assert f"200 {GIGABYTE}" == told.strip()
    assert grown < GROWN_MAX


async def test_up(tmp_path: Path) -> None:
    """Faster than the upstream takes it in: it is the client that waits."""
    file = tmp_path / "gigabyte"
    with file.open("wb") as sparse:
        sparse.truncate(GIGABYTE)
    async with node() as server:
        told, grown = await _through(server.port, "-T", str(file), "-X", "POST", "-H", "X-Pause-Ms: 1000")

    assert told.startswith(f"size {GIGABYTE} 200 ")
    assert grown < GROWN_MAX
