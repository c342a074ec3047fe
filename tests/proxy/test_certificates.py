"""Goal: certificates are replaced without a restart, and each side can ask the other for one. Method: authorities and
certificates made with openssl, and real TLS clients and servers.
"""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from ratelimiter.errors import ConfigError
from ratelimiter.proxy.certificates import Credentials, listener_context, not_after_s, upstream_context, watch
from ratelimiter.proxy.pool import Target
from tests.proxy.inputs import get
from tests.proxy.wire import OK, Client, Upstream, sidecar, until

if TYPE_CHECKING:
    import ssl

CONFIG = "[san]\nsubjectAltName=DNS:localhost,IP:127.0.0.1\n[ca]\nbasicConstraints=critical,CA:TRUE\n"


class Authority:
    """A private authority, and the files that it makes."""

    def __init__(self, folder: Path) -> None:
        folder.mkdir(exist_ok=True)
        self.folder = folder
        (folder / "extensions").write_text(CONFIG)
        self.file = str(folder / "ca.pem")
        self._openssl("req", "-x509", *self._new("ca"), "-out", self.file, "-subj", "/CN=authority", "-days", "9")

    def _openssl(self, *words: str) -> None:
        words = ("openssl", *words)
        subprocess.run(words, check=True, capture_output=True, cwd=self.folder)

    def _new(self, name: str) -> list[str]:
        return ["-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes", "-keyout", f"{name}.key"]

    def issue(self, name: str, days: int = 5) -> tuple[str, str]:
        """Paths of a new certificate for `localhost`, called *name*, and of its key."""
        self._openssl("req", *self._new(name), "-out", f"{name}.csr", "-subj", f"/CN={name}")
        signed = ["-CA", "ca.pem", "-CAkey", "ca.key", "-CAcreateserial", "-days", str(days), "-extfile", "extensions"]
        self._openssl("x509", "-req", "-in", f"{name}.csr", *signed, "-extensions", "san", "-out", f"{name}.pem")
        return str(self.folder / f"{name}.pem"), str(self.folder / f"{name}.key")


@pytest.fixture(scope="module")
def authority(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    return Authority(tmp_path_factory.mktemp("authority"))


def trusting(authority: Authority, pair: tuple[str, str] | None = None) -> ssl.SSLContext:
    return upstream_context(authority.file, *(pair or ()))


async def shown(port: int, authority: Authority) -> str:
    """The name in the certificate that a new connection gets."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port, ssl=trusting(authority))
    subject = writer.get_extra_info("peercert")["subject"]
    client = Client(reader, writer)
    assert 200 == (await client.exchange(get())).status
    writer.close()
    return str(subject[0][0][1])


def copied(pair: tuple[str, str], folder: Path, *, cert: bool = True, key: bool = True) -> tuple[str, str]:
    """Put a pair where the sidecar has its own, as a file that replaces the old one."""
    for source, name, wanted in zip(pair, ("cert.pem", "cert.key"), (cert, key), strict=True):
        if wanted:
            (folder / "new").write_bytes(Path(source).read_bytes())
            os.replace(folder / "new", folder / name)
    return str(folder / "cert.pem"), str(folder / "cert.key")


async def test_a_replaced_certificate_is_served(
    authority: Authority, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """To new connections, once both files are there; a pair that does not fit keeps the old one, with one line."""
    pair = copied(authority.issue("first"), tmp_path)
    made = Credentials("listener", pair, lambda: listener_context(*pair), pair[0])
    watching = asyncio.create_task(watch([made], poll_s=0.05))
    async with Upstream().serving() as upstream, sidecar(upstream, tls=made.context) as proxy:
        assert "first" == await shown(proxy.port, authority)
        second, first_expires_s = authority.issue("second", days=7), made.expires_s
        copied(second, tmp_path, key=False)
        await until(lambda: "stays in use" in caplog.text, "the pair does not fit")
        assert "first" == await shown(proxy.port, authority)
        copied(second, tmp_path, cert=False)
        await until(lambda: made.expires_s > first_expires_s, "it is loaded")
        assert "second" == await shown(proxy.port, authority)
    watching.cancel()
    assert 1 == caplog.text.count("stays in use")


async def test_a_client_needs_a_certificate_if_one_is_asked_for(authority: Authority, tmp_path: Path) -> None:
    """Of the authority that is named: without one, or with a stranger's, it is not served."""
    pair = copied(authority.issue("server"), tmp_path)
    made = Credentials("listener", pair, lambda: listener_context(*pair, authority.file), pair[0])
    stranger = Authority(tmp_path / "stranger")
    async with Upstream().serving() as upstream, sidecar(upstream, tls=made.context) as proxy:
        for client_pair, served in (
            (authority.issue("client"), True),
            (None, False),
            (stranger.issue("client"), False),
        ):
            answered = False
            try:
                async with proxy.client(ssl=trusting(authority, client_pair), server_hostname="localhost") as client:
                    answered = 200 == (await client.exchange(get())).status
            except (OSError, asyncio.IncompleteReadError):
                pass
            assert served == answered
    assert 1 == len(upstream.seen)


async def test_the_upstream_may_ask_for_a_certificate_too(authority: Authority) -> None:
    """A private authority vouches for it; without the certificate that it wants, or without the authority, a 502."""
    tls = listener_context(*authority.issue("service"), authority.file)

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(OK)
        writer.close()

    server = await asyncio.start_server(answer, "127.0.0.1", 0, ssl=tls)
    port = server.sockets[0].getsockname()[1]
    pair = authority.issue("proxy")
    for context, status in (
        (upstream_context(authority.file, *pair), 200),
        (upstream_context(authority.file), 502),
        (upstream_context(None, *pair), 502),
    ):
        async with sidecar(Target("localhost", port, tls=context)) as proxy, proxy.client() as client:
            assert status == (await client.exchange(get())).status
    server.close()


def test_the_end_of_a_certificate_is_read(authority: Authority) -> None:
    """As openssl reads it, whatever the key."""
    cert, _ = authority.issue("dated", days=3)
    words = ["openssl", "x509", "-in", cert, "-noout", "-enddate"]
    told = subprocess.run(words, check=True, capture_output=True)
    end = datetime.strptime(told.stdout.decode().strip(), "notAfter=%b %d %H:%M:%S %Y GMT").replace(tzinfo=UTC)
    assert end.timestamp() == not_after_s(Path(cert).read_bytes())
    with pytest.raises(ValueError, match="no certificate"):
        not_after_s(b"")


def listener_with(authority: Authority, client_ca: str) -> ssl.SSLContext:
    cert, key = authority.issue("x")
    return listener_context(cert, key, client_ca)


@pytest.mark.parametrize(
    ("make", "problem"),
    [
        (lambda a: listener_context("/none", None), "--tls-cert: '/none' cannot be used"),
        (lambda a: listener_with(a, "/none"), "--tls-client-ca: '/none' cannot be used"),
        (lambda a: upstream_context("/none"), "--upstream-ca: '/none' cannot be used"),
        (lambda a: upstream_context(a.file, "/none"), "--upstream-cert: '/none' cannot be used"),
    ],
)
def test_files_that_cannot_be_used(make: object, problem: str, authority: Authority) -> None:
    """With the flag and the file."""
    with pytest.raises(ConfigError, match=problem):
        make(authority)  # type: ignore[operator]


@pytest.mark.wall_clock
async def test_sighup_loads_certificates(authority: Authority, tmp_path: Path) -> None:
    """Of the command, which has flags for both sides; the admin listener tells when it expires."""
    pair = copied(authority.issue("first"), tmp_path)
    words = ["--listen", "127.0.0.1:0", "--admin", "127.0.0.1:0", "--tls-cert", pair[0], "--tls-key", pair[1]]
    async with Upstream().serving() as upstream:
        command = [sys.executable, "-m", "ratelimiter", "proxy", "--limit", "1000/minute", *words]
        process = await asyncio.create_subprocess_exec(
            *command, "--upstream", f"http://127.0.0.1:{upstream.port}", stdout=asyncio.subprocess.PIPE
        )
        assert process.stdout is not None
        line = (await process.stdout.readline()).decode()
        port = int(line.split(" ")[0].rpartition(":")[2])
        admin = int(line.strip().rpartition(":")[2])
        assert "first" == await shown(port, authority)
        copied(authority.issue("second"), tmp_path)
        process.send_signal(signal.SIGHUP)
        for _ in range(100):
            if "second" == (name := await shown(port, authority)):
                break
            await asyncio.sleep(0.05)
        assert "second" == name
        reader, writer = await asyncio.open_connection("127.0.0.1", admin)
        writer.write(b"GET /metrics HTTP/1.1\r\nHost: 127.0.0.1\r\nConnection: close\r\n\r\n")
        metrics = (await reader.read()).decode()
        writer.close()
        assert 'ratelimiter_proxy_certificate_expires_timestamp_seconds{side="listener"} 1.' in metrics
        process.send_signal(signal.SIGINT)
        process.send_signal(signal.SIGINT)
        await process.wait()
