"""Goal: `ratelimiter proxy` is one process that can be watched and changed. Method: the real command, real signals."""

from __future__ import annotations

import http.client
import json
import os
import re
import signal
import subprocess
import sys
from contextlib import contextmanager
from dataclasses import fields
from threading import Thread
from typing import TYPE_CHECKING, Any

import pytest

from ratelimiter.config import layers
from ratelimiter.errors import ConfigError
from ratelimiter.parsing.units import parse_duration_ms
from ratelimiter.proxy.settings import CHOICES, ProxySettings
from ratelimiter.sidecar.app import run
from tests.stores.redis_server import wait_until

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

pytestmark = pytest.mark.wall_clock  # it waits for real servers or timers

POLICY = """\
dialect: intrace
principal: [header:X-API-Key, client]
proxy: {lame_duck: 30s, target_max: 64, forwarded: [x-forwarded, forwarded]}
rules:
  - name: all
    limit: %d/hour
"""


@contextmanager
def upstream() -> Iterator[str]:
    """A service of the standard library's."""
    from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_GET(self) -> None:
            body = json.dumps(dict(self.headers.items())).encode()
            self.send_response(200)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, format: str, *args: Any) -> None:  # noqa: A002  # its name there
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        server.daemon_threads = True
        Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()


class Process:
    """A sidecar of its own process."""

    def __init__(self, *flags: str) -> None:
        words = [sys.executable, "-m", "ratelimiter", "proxy", "--listen", "127.0.0.1:0", "--admin", "127.0.0.1:0"]
        self.process = subprocess.Popen([*words, *flags], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        assert self.process.stdout is not None
        places = re.findall(r"http://(127\.0\.0\.1:\d+)", self.process.stdout.readline())
        self.data, self.admin = places[0], places[-1]
        wait_until(lambda: self.get("/readyz", admin=True)[0] == 200, "it is ready")

    def get(self, path: str, headers: dict[str, str] | None = None, *, admin: bool = False) -> tuple[int, bytes]:
        connection = http.client.HTTPConnection(self.admin if admin else self.data, timeout=10)
        try:
            connection.request("GET", path, headers=headers or {})
            response = connection.getresponse()
            return response.status, response.read()
        except OSError:
            return 0, b""
        finally:
            connection.close()

    def stop(self) -> str:
        """End it at once; what it has logged."""
        self.process.send_signal(signal.SIGTERM)
        self.process.send_signal(signal.SIGINT)
        _, logged = self.process.communicate(timeout=10)
        assert 0 == self.process.returncode
        return logged


@pytest.mark.parametrize("workers", ["1", "2"])
def test_it_can_be_watched(workers: str) -> None:
    """Health, readiness, the policy and metrics of all workers, on a port of their own."""
    with upstream() as url:
        sidecar = Process("--upstream", url, "--limit", "3/hour", "--workers", workers)
        statuses = [sidecar.get("/x")[0] for _ in range(12)]
        assert 200 == sidecar.get("/healthz", admin=True)[0]
        assert b'"limit": 3' in sidecar.get("/policy", admin=True)[1].replace(b'":3', b'": 3')

        def told() -> bool:
            text = sidecar.get("/metrics", admin=True)[1].decode()
            found = re.findall(r'proxy_responses_total\{source="(?:judge|upstream)",status="[24]xx"\} (\d+)', text)
            return sum(map(int, found)) >= len(statuses)

        wait_until(told, "every response is counted")
        sidecar.stop()

    assert 3 <= statuses.count(200) <= 3 * int(workers)  # each worker has an embedded store of its own


def test_a_policy_changes_between_two_requests(tmp_path: Path) -> None:
    """SIGHUP loads what the file says now; what is counted stays; a bad file changes nothing."""
    file = tmp_path / "policy.yaml"
    file.write_text(POLICY % 2)
    with upstream() as url:
        sidecar = Process("--upstream", url, "--config", str(file))
        assert [200, 200, 429] == [sidecar.get("/")[0] for _ in range(3)]
        file.write_text(POLICY % 3)
        sidecar.process.send_signal(signal.SIGHUP)
        wait_until(lambda: b'"limit":3' in sidecar.get("/policy", admin=True)[1].replace(b" ", b""), "it is loaded")
        assert [200, 429] == [sidecar.get("/")[0] for _ in range(2)]
        file.write_text("rules: nonsense")
        sidecar.process.send_signal(signal.SIGHUP)
        wait_until(
            lambda: b'policy_reloads_total{result="failed"} 1.0' in sidecar.get("/metrics", admin=True)[1],
            "it is refused",
        )
        assert 429 == sidecar.get("/")[0]
        logged = sidecar.stop()

    assert "policy.yaml" in logged


def test_what_it_answers_is_written_down(tmp_path: Path) -> None:
    """One JSON line for each request, on to a new file after SIGHUP, and all of them at the end."""
    file, old = tmp_path / "access.json", tmp_path / "access.json.1"
    with upstream() as url:
        sidecar = Process("--upstream", url, "--limit", "2/hour", "--access-log", str(file))
        assert [200, 200, 429] == [sidecar.get("/x")[0] for _ in range(3)]
        wait_until(lambda: 3 == file.read_text().count("\n"), "it is written")
        file.rename(old)
        sidecar.process.send_signal(signal.SIGHUP)
        wait_until(file.exists, "it is opened anew")
        sidecar.get("/y")
        sidecar.stop()

    lines = [json.loads(line) for path in (old, file) for line in path.read_text().splitlines()]
    assert [("/x", 200), ("/x", 200), ("/x", 429), ("/y", 429)] == [(line["path"], line["status"]) for line in lines]
    assert ["upstream", "upstream", "judge", "judge"] == [line["source"] for line in lines]


def test_workers_that_cannot_count_are_told_of() -> None:
    """Where nothing can be written several workers are refused in words, not in a traceback."""
    words = [sys.executable, "-m", "ratelimiter", "proxy", "--listen", "127.0.0.1:0", "--admin", "127.0.0.1:0"]
    words += ["--upstream", "http://127.0.0.1:9", "--limit", "1/minute", "--workers", "2"]
    environment = {**os.environ, "PROMETHEUS_MULTIPROC_DIR": "/nowhere/at/all"}
    done = subprocess.run(words, env=environment, capture_output=True, text=True, timeout=20, check=False)

    assert 2 == done.returncode
    assert (
        "--workers: /nowhere/at/all cannot be written (No such file or directory); "
        "mount a writable /tmp, or name a directory in PROMETHEUS_MULTIPROC_DIR\n"
    ) == done.stderr


def test_draining_shows_in_readiness(tmp_path: Path) -> None:
    """After SIGTERM `/readyz` says 503 and requests are still answered, for as long as the file says."""
    file = tmp_path / "policy.yaml"
    file.write_text(POLICY % 5)
    with upstream() as url:
        sidecar = Process("--upstream", url, "--config", str(file))
        sidecar.process.send_signal(signal.SIGTERM)
        wait_until(lambda: sidecar.get("/readyz", admin=True)[0] == 503, "it is not ready")
        assert 200 == sidecar.get("/")[0]
        sidecar.process.send_signal(signal.SIGTERM)
        sidecar.process.communicate(timeout=10)
        assert 0 == sidecar.process.returncode


def test_the_file_bounds_the_proxy(tmp_path: Path) -> None:
    """Its section `proxy` is in force."""
    file = tmp_path / "policy.yaml"
    file.write_text(POLICY % 5)
    with upstream() as url:
        sidecar = Process("--upstream", url, "--config", str(file))
        status, body = sidecar.get("/", {"X-API-Key": "k"})
        assert 200 == status
        assert "for=127.0.0.1" in json.loads(body)["forwarded"]
        assert 414 == sidecar.get("/" + "x" * 65)[0]
        sidecar.stop()


def test_the_schema_tells_the_defaults() -> None:
    """Every bound is in the schema, by its name and with its default."""
    properties = layers.policy_schema()["properties"]["proxy"]["properties"]
    no_bounds = {"forwarded", "access_log", "access_log_caller", "access_log_refusals", "upstream_timeouts", "via"}
    told = {name: entry["default"] for name, entry in properties.items() if name not in no_bounds}
    made = {field.name.removesuffix("_ms"): getattr(ProxySettings(), field.name) for field in fields(ProxySettings)}

    assert () == made.pop("upstream_timeouts")
    assert made.keys() == told.keys()
    for name, default in told.items():
        expected = parse_duration_ms(default) if isinstance(default, str) and name not in CHOICES else default
        assert expected == made[name], name


@pytest.mark.parametrize(
    ("arguments", "problem"),
    [
        ({"upstream": "127.0.0.1:8000"}, "--upstream: .* is not an http URL"),
        ({"upstream": "http://127.0.0.1/base"}, "--upstream: .* has more than a host and a port"),
        ({"upstream": "ftp://127.0.0.1"}, "--upstream: .* is not an http URL"),
        ({"upstream": "http://127.0.0.1", "listen": "8080"}, "--listen: '8080' is not HOST:PORT"),
        ({"upstream": "http://127.0.0.1", "listen": "127.0.0.1:0", "admin": "x"}, "--admin: 'x' is not HOST:PORT"),
    ],
)
def test_what_cannot_be_used(arguments: dict[str, str], problem: str) -> None:
    """Is told before anything is served."""
    with pytest.raises(ConfigError, match=problem):
        run(**arguments, limit="60/minute")  # type: ignore[arg-type]


def test_a_password_in_the_upstream_is_not_repeated() -> None:
    """Neither in the problem nor elsewhere."""
    with pytest.raises(ConfigError) as caught:
        run(upstream="http://user:secret@127.0.0.1", limit="60/minute")

    assert "secret" not in str(caught.value)
