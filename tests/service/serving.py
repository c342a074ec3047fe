"""`ratelimiter serve` and the proxies that ask it, each the real program on free ports of this machine."""

from __future__ import annotations

import http.client
import http.server
import os
import shutil
import socket
import subprocess
import sys
import threading
import time
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import envoy

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

DEADLINE_S = 30.0  # for a program to listen
ENVOY = str(Path(envoy.__file__).parent / "_bin" / "envoy")


def free_port() -> int:
    """A port that nobody listens on."""
    with socket.create_server(("127.0.0.1", 0)) as sock:
        return int(sock.getsockname()[1])


def wait_for(port: int, process: subprocess.Popen[Any] | None = None) -> None:
    """Wait until somebody listens on *port*."""
    end_s = time.monotonic() + DEADLINE_S
    while True:
        try:
            socket.create_connection(("127.0.0.1", port), 1).close()
        except OSError:
            assert process is None or process.poll() is None, "the program has ended"
            assert time.monotonic() < end_s, f"nobody listens on {port}"
            time.sleep(0.02)
        else:
            return


@contextmanager
def running(
    *arguments: str, port: int, env: Mapping[str, str] | None = None, log: Path
) -> Iterator[subprocess.Popen[bytes]]:
    """Run a program until it listens on *port*, and end it afterwards."""
    with log.open("wb") as out:
        process = subprocess.Popen(arguments, stdout=out, stderr=out, env={**os.environ, **(env or {})})
        try:
            wait_for(port, process)
            yield process
        except BaseException:
            out.flush()
            print(log.read_text(errors="replace")[-4000:])
            raise
        finally:
            process.terminate()
            try:
                process.wait(20)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()


@dataclass(frozen=True)
class Served:
    """A running service."""

    grpc: int
    http: int
    admin: int
    process: subprocess.Popen[bytes]
    policy: Path

    def metrics(self) -> str:
        """What a scrape gets."""
        return ask(self.admin, "GET", "/metrics")[2].decode()


@contextmanager
def served(tmp_path: Path, policy: str, *flags: str) -> Iterator[Served]:
    """Run the service with *policy*, a policy file's text."""
    file = tmp_path / "policy.yaml"
    file.write_text(policy if "\nproxy:" in policy else f"{policy}proxy: {{lame_duck: 0s, grace: 5s}}\n")
    grpc, http_port, admin = free_port(), free_port(), free_port()
    listen = ["--grpc", f"127.0.0.1:{grpc}", "--http", f"127.0.0.1:{http_port}", "--admin", f"127.0.0.1:{admin}"]
    command = [sys.executable, "-m", "ratelimiter", "serve", *listen, "--config", str(file), *flags]
    with running(*command, port=admin, log=tmp_path / "serve.log") as process:
        while ask(admin, "GET", "/readyz")[0] != 200:  # it listens before it serves
            time.sleep(0.02)
        yield Served(grpc, http_port, admin, process, file)


def ask(
    port: int, method: str, path: str, headers: Mapping[str, str] | None = None, body: bytes | None = None
) -> tuple[int, list[tuple[str, str]], bytes]:
    """Status, headers in lower case and body of one answer."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=20)
    try:
        connection.request(method, path, body, dict(headers or {}))
        answer = connection.getresponse()
        return answer.status, [(name.lower(), value) for name, value in answer.getheaders()], answer.read()
    finally:
        connection.close()


class _Application(http.server.BaseHTTPRequestHandler):
    """Answers 200 and tells which headers it got."""

    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        length = int(self.headers.get("content-length") or 0)
        self.rfile.read(length)
        body = "".join(f"{name.lower()}: {value}\n" for name, value in self.headers.items()).encode()
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.send_header("X-Application", "here")
        self.end_headers()
        self.wfile.write(body)

    do_POST = do_PUT = do_DELETE = do_GET  # noqa: N815  # the library's names

    def log_message(self, *_: object) -> None:
        pass


@contextmanager
def application() -> Iterator[int]:
    """The port of an application."""
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), _Application)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield server.server_address[1]
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


@contextmanager
def redis(tmp_path: Path) -> Iterator[tuple[int, subprocess.Popen[bytes]]]:
    """The port of a Redis server and its process."""
    port = free_port()
    program = shutil.which("redis-server")
    assert program is not None
    command = [program, "--port", str(port), "--save", "", "--appendonly", "no", "--dir", str(tmp_path)]
    with running(*command, port=port, log=tmp_path / "redis.log") as process:
        yield port, process


@contextmanager
def envoy_with(tmp_path: Path, config: str, port: int) -> Iterator[subprocess.Popen[bytes]]:
    """Run Envoy with *config*, a YAML text, until it listens on *port*."""
    file = tmp_path / f"envoy-{port}.yaml"
    file.write_text(config)
    command = [ENVOY, "-c", str(file), "--concurrency", "1", "--disable-hot-restart", "-l", "warning"]
    with running(*command, port=port, log=tmp_path / f"envoy-{port}.log") as process:
        yield process


def envoy_config(*, port: int, app: int, limiter: int, filters: str, rate_limits: str = "[]") -> str:
    """A configuration of Envoy with *filters* in front of a route to *app*, and a gRPC cluster `ratelimiter`."""
    return f"""\
static_resources:
  listeners:
  - address: {{socket_address: {{address: 127.0.0.1, port_value: {port}}}}}
    filter_chains:
    - filters:
      - name: envoy.filters.network.http_connection_manager
        typed_config:
          "@type": type.googleapis.com/envoy.extensions.filters.network.http_connection_manager.v3.HttpConnectionManager
          stat_prefix: in
          use_remote_address: true
          route_config:
            virtual_hosts:
            - name: all
              domains: ["*"]
              rate_limits: {rate_limits}
              routes: [{{match: {{prefix: /}}, route: {{cluster: app}}}}]
          http_filters:
          {filters}
          - name: envoy.filters.http.router
            typed_config: {{"@type": type.googleapis.com/envoy.extensions.filters.http.router.v3.Router}}
  clusters:
  - name: app
    type: STATIC
    load_assignment: {{cluster_name: app, endpoints: [{{lb_endpoints: [{_endpoint(app)}]}}]}}
  - name: ratelimiter
    type: STATIC
    typed_extension_protocol_options:
      envoy.extensions.upstreams.http.v3.HttpProtocolOptions:
        "@type": type.googleapis.com/envoy.extensions.upstreams.http.v3.HttpProtocolOptions
        explicit_http_config: {{http2_protocol_options: {{}}}}
    load_assignment: {{cluster_name: ratelimiter, endpoints: [{{lb_endpoints: [{_endpoint(limiter)}]}}]}}
"""


def _endpoint(port: int) -> str:
    return f"{{endpoint: {{address: {{socket_address: {{address: 127.0.0.1, port_value: {port}}}}}}}}}"


RATE_LIMIT_FILTER = """\
- name: envoy.filters.http.ratelimit
            typed_config:
              "@type": type.googleapis.com/envoy.extensions.filters.http.ratelimit.v3.RateLimit
              domain: edge
              timeout: 2s
              rate_limit_service:
                transport_api_version: V3
                grpc_service: {envoy_grpc: {cluster_name: ratelimiter}, timeout: 2s}"""
EXT_AUTHZ_FILTER = """\
- name: envoy.filters.http.ext_authz
            typed_config:
              "@type": type.googleapis.com/envoy.extensions.filters.http.ext_authz.v3.ExtAuthz
              transport_api_version: V3
              grpc_service: {envoy_grpc: {cluster_name: ratelimiter}, timeout: 2s}"""
