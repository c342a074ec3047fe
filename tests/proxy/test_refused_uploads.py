"""Goal: a client that is still sending reads its refusal. Method: clients that nobody here wrote, each upload refused.

`python -m tests.proxy.test_refused_uploads` prints the whole matrix: 50 kB to 50 MB, with and without TLS.
"""

from __future__ import annotations

import asyncio
import contextlib
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from ratelimiter.proxy.listener import tls_context
from ratelimiter.proxy.settings import ProxySettings
from tests.proxy.inputs import get
from tests.proxy.servers import needed, output
from tests.proxy.wire import Upstream, sidecar, until

if TYPE_CHECKING:
    import ssl

UPLOADERS = Path(__file__).parent / "uploaders"
SIZES = (50_000, 200_000, 5_000_000)
ALL_SIZES = (50_000, 500_000, 5_000_000, 50_000_000)
SETTINGS = ProxySettings(lame_duck_ms=0)


def words_of(client: str) -> tuple[str, ...]:
    """The command that uploads with *client*."""
    return {
        "python": (sys.executable, str(UPLOADERS / "python_clients.py")),
        "node": (needed("node", "nodejs"), "--no-warnings", str(UPLOADERS / "node_clients.mjs")),
        "curl": ("sh", str(UPLOADERS / "curl_client.sh")),
        "go": (needed("go", "golang"), "run", str(UPLOADERS / "go_client.go")),
        "java": (needed("java", "default-jdk-headless"), str(UPLOADERS / "JavaClients.java")),
    }[client]


async def uploaded(client: str, sizes: tuple[int, ...], tls: ssl.SSLContext | None = None) -> list[list[str]]:
    """The lines that *client* prints, in words: its name, mode and size, and the status."""
    async with Upstream().serving() as upstream, sidecar(upstream, limit="1/hour", tls=tls, bounds=SETTINGS) as proxy:
        scheme = "http" if tls is None else "https"
        url = f"{scheme}://127.0.0.1:{proxy.port}/"
        await output("curl", "-sk", url)  # uses the limit up
        words = ("env", "NODE_TLS_REJECT_UNAUTHORIZED=0", *words_of(client))
        told = await output(*words, url, *map(str, sizes))
        await until(lambda: not len(proxy.service), "all are gone")
    return [line.split() for line in told.splitlines()]


@pytest.fixture(scope="module")
def tls(tmp_path_factory: pytest.TempPathFactory) -> ssl.SSLContext:
    return new_context(tmp_path_factory.mktemp("tls"))


def new_context(folder: Path) -> ssl.SSLContext:
    """A listener's TLS with a certificate of its own."""
    cert, key = str(folder / "cert.pem"), str(folder / "key.pem")
    made = ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes"]
    subject = ["-days", "2", "-subj", "/CN=localhost", "-addext", "subjectAltName=DNS:localhost,IP:127.0.0.1"]
    subprocess.run([*made, *subject, "-keyout", key, "-out", cert], check=True, capture_output=True)
    return tls_context(cert, key)


@pytest.mark.wall_clock
@pytest.mark.parametrize("encrypted", [False, True])
@pytest.mark.parametrize("client", ["python", "node", "curl"])
async def test_a_client_that_is_still_sending_reads_the_refusal(
    client: str, encrypted: bool, tls: ssl.SSLContext
) -> None:
    """Whatever client it is, however much it sends."""
    lines = await uploaded(client, SIZES, tls if encrypted else None)

    assert len(lines) >= 9
    assert [] == [line for line in lines if line[-1] != "429"]


async def test_what_is_thrown_away_is_bounded_in_bytes() -> None:
    """A client that sends more than `linger_max` behind its refusal is cut off."""
    settings = ProxySettings(lame_duck_ms=0, linger_max=3_000_000)
    async with Upstream().serving() as upstream, sidecar(upstream, limit="1/hour", bounds=settings) as proxy:
        async with proxy.client() as client:
            await client.exchange(get())
        async with proxy.client() as client:
            client.send(b"POST / HTTP/1.1\r\nHost: a.example\r\nContent-Length: 100000000\r\n\r\n")
            assert 429 == (await client.response()).status
            sent = 0
            with contextlib.suppress(ConnectionError, RuntimeError):
                while sent < 50_000_000:
                    client.send(bytes(100_000))
                    await client.writer.drain()
                    sent += 100_000
    assert 3_000_000 <= sent < 50_000_000  # kernels hold some of it


@pytest.mark.parametrize("settings", [ProxySettings(lame_duck_ms=0, linger_ms=300), ProxySettings(lame_duck_ms=0)])
async def test_a_client_that_sends_nothing_more_is_let_go(settings: ProxySettings) -> None:
    """After `linger`, or a moment of silence: it has its answer."""
    async with Upstream().serving() as upstream, sidecar(upstream, limit="1/hour", bounds=settings) as proxy:
        async with proxy.client() as client:
            await client.exchange(get())
        async with proxy.client() as client:
            client.send(b"POST / HTTP/1.1\r\nHost: a.example\r\nContent-Length: 100000000\r\n\r\nabc")
            assert 429 == (await client.response()).status
            await until(lambda: not len(proxy.service), "it is let go")


@pytest.mark.wall_clock
async def test_a_client_that_drips_is_let_go_after_linger() -> None:
    """A byte now and then prolongs nothing."""
    settings = ProxySettings(lame_duck_ms=0, linger_ms=500)
    async with Upstream().serving() as upstream, sidecar(upstream, limit="1/hour", bounds=settings) as proxy:
        async with proxy.client() as client:
            await client.exchange(get())
        async with proxy.client() as client:
            client.send(b"POST / HTTP/1.1\r\nHost: a.example\r\nContent-Length: 100000000\r\n\r\nabc")
            assert 429 == (await client.response()).status
            for _ in range(200):
                if not len(proxy.service):
                    break
                with contextlib.suppress(RuntimeError):  # uvloop's, of a transport that is closed
                    client.send(b"x")
                await asyncio.sleep(0.05)
            assert 0 == len(proxy.service)


async def main() -> None:
    """Print the matrix."""
    with tempfile.TemporaryDirectory() as folder:
        for tls in (None, new_context(Path(folder))):
            for client in ("python", "node", "go", "java", "curl"):
                for line in await uploaded(client, ALL_SIZES, tls):
                    print("http" if tls is None else "https", *line, flush=True)


if __name__ == "__main__":
    import uvloop

    uvloop.run(main())
