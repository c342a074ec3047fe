"""Goal: a request gets the same decision, figures and bytes through every door. Method: one table of requests, sent
through the middleware, the sidecar, /check, and the real nginx (both ways), Traefik, Caddy, HAProxy and Envoy, with the
files of `deploy/`. What a proxy cannot carry stands in `LACKING`.
"""

from __future__ import annotations

import re
import shutil
import sys
import time
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import pytest

from ratelimiter.identity.api_keys import hash_key
from tests.service.serving import (
    ENVOY,
    application,
    ask,
    free_port,
    redis,
    running,
    served,
)

if TYPE_CHECKING:
    import subprocess
    from collections.abc import Callable, Iterator

ROOT = Path(__file__).parent.parent.parent
DEPLOY = ROOT / "deploy"
KEY = "rl_test"

POLICY = """\
name: NAME
store: STORE
decision_timeout: PATIENCE
dialect: problem
trusted_proxies: [127.0.0.0/8]
identity:
  api_keys: {header: X-Known, file: ./keys.yaml}
  tell_upstream: {principal: X-Caller}
require:
  - {match: {path: /private}, credentials: true}
rules:
  - {name: per-key, match: {path: /limited}, limit: 3/minute, principal: [header:X-API-Key, client]}
  - {name: writes, match: {methods: [POST], path: /orders/*}, limit: 1/minute, principal: [header:X-API-Key, client]}
  - {name: paid, match: {path: /paid}, limit: 2 credits, principal: [header:X-API-Key, client]}
  - {name: by-address, match: {path: /address}, limit: 1/minute, principal: client}
  - {name: shut, match: {path: /shut}, limit: 100/minute, on_store_error: deny, principal: everyone}
  - {name: open, match: {path: /open}, limit: 100/minute, on_store_error: allow, principal: everyone}
  - {name: private, match: {path: /private}, limit: 100/minute, principal: everyone}
proxy: {lame_duck: 0s, grace: 5s}
"""
KEYS = f"keys:\n  - {{hash: {hash_key(KEY.encode()).hex()}, principal: acme}}\n"

DOORS = ("middleware", "sidecar", "check", "nginx", "nginx-one", "traefik", "caddy", "haproxy", "envoy")
FIGURES = ("x-ratelimit-limit", "x-ratelimit-remaining")
TOLD = (*FIGURES, "retry-after", "content-type", "cache-control")

# What a door cannot carry: of an admission the figures; of a refusal headers or another status than 429.
LACKING = {
    ("traefik", "figures of admissions"),
    ("nginx-one", "statuses other than 429"),
    ("nginx", "what the application is told of the caller"),
    ("nginx-one", "what the application is told of the caller"),
    ("traefik", "what the application is told of the caller"),
    ("caddy", "what the application is told of the caller"),
    ("haproxy", "what the application is told of the caller"),
}


class Asked(NamedTuple):
    """One request, and what becomes of it."""

    method: str
    path: str
    headers: dict[str, str]
    status: int


TABLE = [
    *[Asked("GET", "/limited?page=1", {"X-API-Key": "alice"}, status) for status in (200, 200, 200, 429, 429)],
    Asked("GET", "/limited", {"X-API-Key": "bob"}, 200),
    Asked("POST", "/orders/1", {"X-API-Key": "alice"}, 200),
    Asked("POST", "/orders/2", {"X-API-Key": "alice"}, 429),
    Asked("GET", "/orders/2", {"X-API-Key": "alice"}, 200),
    Asked("PUT", "/orders/%7e/..//2", {"X-API-Key": "alice"}, 200),
    *[Asked("GET", "/paid", {"X-API-Key": "carol"}, status) for status in (200, 200, 402)],
    Asked("GET", "/private", {}, 401),
    Asked("GET", "/private", {"X-Known": KEY}, 200),
    Asked("GET", "/private", {"X-Known": "rl_forged"}, 401),
    Asked("GET", "/address", {}, 200),
    Asked("GET", "/address", {}, 429),
    Asked("GET", "/unlimited", {}, 200),
]


def adapted(file: Path, ports: dict[int, int]) -> str:
    """The text of a file of `deploy/` with other ports, and timeouts that a busy machine keeps."""
    text = re.sub(
        r"127\.0\.0\.1:(\d+)|(?<=port_value: )(\d+)",
        lambda found: found[0].replace(found[1] or found[2], str(ports[int(found[1] or found[2])])),
        file.read_text(),
    )
    for short in ("250ms", "100ms", "0.25s"):
        text = text.replace(short, "5s")
    return text.replace("TIMEOUT_MS = 250", "TIMEOUT_MS = 5000")


def beside_python(program: str) -> str:
    """Where the environment of the tests has *program*."""
    places = [Path(sys.executable).parent, *(Path(place).parent.parent.parent / "bin" for place in sys.path)]
    return next((str(place / program) for place in places if (place / program).exists()), program)


@contextmanager
def nginx(tmp_path: Path, ports: dict[int, int], file: str) -> Iterator[None]:
    (tmp_path / "limited.conf").write_text(adapted(DEPLOY / "nginx" / file, ports))
    (tmp_path / "nginx.conf").write_text(
        "daemon off; pid nginx.pid; error_log stderr; events {}\n"
        "http { access_log off; client_body_temp_path t1; proxy_temp_path t2; fastcgi_temp_path t3;\n"
        "uwsgi_temp_path t4; scgi_temp_path t5; include limited.conf; }\n"
    )
    program = shutil.which("nginx") or "/usr/sbin/nginx"
    with running(program, "-p", str(tmp_path), "-c", "nginx.conf", port=ports[8080], log=tmp_path / "nginx.log"):
        yield


@contextmanager
def traefik(tmp_path: Path, ports: dict[int, int]) -> Iterator[None]:
    (tmp_path / "dynamic.yaml").write_text(adapted(DEPLOY / "traefik" / "dynamic.yaml", ports))
    static = adapted(DEPLOY / "traefik" / "traefik.yaml", ports)
    (tmp_path / "traefik.yaml").write_text(static.replace("dynamic.yaml", str(tmp_path / "dynamic.yaml")))
    command = [beside_python("traefik"), f"--configFile={tmp_path}/traefik.yaml"]
    with running(*command, port=ports[8080], log=tmp_path / "traefik.log"):
        while ask(ports[8080], "GET", "/unlimited")[0] == 404:  # it listens before it has read its routes
            time.sleep(0.05)
        yield


@contextmanager
def caddy(tmp_path: Path, ports: dict[int, int]) -> Iterator[None]:
    (tmp_path / "Caddyfile").write_text(adapted(DEPLOY / "caddy" / "Caddyfile", ports))
    command = [beside_python("caddy"), "run", "--config", str(tmp_path / "Caddyfile")]
    homes = {"HOME": str(tmp_path), "XDG_DATA_HOME": str(tmp_path), "XDG_CONFIG_HOME": str(tmp_path)}
    with running(*command, port=ports[8080], log=tmp_path / "caddy.log", env=homes):
        yield


@contextmanager
def haproxy(tmp_path: Path, ports: dict[int, int]) -> Iterator[None]:
    lua = tmp_path / "ratelimiter.lua"
    lua.write_text(adapted(DEPLOY / "haproxy" / "ratelimiter.lua", ports))
    config = adapted(DEPLOY / "haproxy" / "haproxy.cfg", ports).replace("lua-load ratelimiter.lua", f"lua-load {lua}")
    (tmp_path / "haproxy.cfg").write_text(config)
    program = shutil.which("haproxy") or "/usr/sbin/haproxy"
    with running(program, "-f", str(tmp_path / "haproxy.cfg"), "-db", port=ports[8080], log=tmp_path / "haproxy.log"):
        yield


@contextmanager
def envoy(tmp_path: Path, ports: dict[int, int]) -> Iterator[None]:
    (tmp_path / "envoy.yaml").write_text(adapted(DEPLOY / "envoy" / "ext-authz.yaml", ports))
    command = [ENVOY, "-c", str(tmp_path / "envoy.yaml"), "--concurrency", "1", "--disable-hot-restart", "-l", "error"]
    with running(*command, port=ports[8080], log=tmp_path / "envoy.log"):
        yield


PROXIES: dict[str, Callable[..., object]] = {
    "nginx": lambda tmp, ports: nginx(tmp, ports, "ratelimiter.conf"),
    "nginx-one": lambda tmp, ports: nginx(tmp, ports, "one-question.conf"),
    "traefik": traefik,
    "caddy": caddy,
    "haproxy": haproxy,
    "envoy": envoy,
}

MIDDLEWARE = """\
import sys, uvicorn
from ratelimiter import RateLimitMiddleware
async def app(scope, receive, send):
    if scope["type"] == "http":
        told = b"".join(name + b": " + value + b"\\n" for name, value in scope["headers"])
        await send({"type": "http.response.start", "status": 200, "headers": [(b"x-application", b"here")]})
        await send({"type": "http.response.body", "body": told})
uvicorn.run(RateLimitMiddleware(app, config=sys.argv[1]), port=int(sys.argv[2]), log_level="error", lifespan="off")
"""


class Door(NamedTuple):
    """A way to the policy."""

    port: int
    process: subprocess.Popen[bytes]  # that decides
    prefix: str = ""


@contextmanager
def opened(door: str, tmp_path: Path, store: str, name: str, patience: str = "1s") -> Iterator[Door]:
    """Open one door, by default with patience: a busy machine must not have requests decided without the store."""
    (tmp_path / "keys.yaml").write_text(KEYS)
    policy = POLICY.replace("STORE", store).replace("NAME", name).replace("PATIENCE", patience)
    with ExitStack() as stack:
        app = stack.enter_context(application())
        port = free_port()
        if door in ("middleware", "sidecar"):
            file = tmp_path / "policy.yaml"
            file.write_text(policy)
            upstream = ["--upstream", f"http://127.0.0.1:{app}", "--listen", f"127.0.0.1:{port}", "--admin", "none"]
            command = ["-m", "ratelimiter", "proxy", *upstream, "--config", str(file)]
            if door == "middleware":
                command = ["-c", MIDDLEWARE, str(file), str(port)]
            process = stack.enter_context(running(sys.executable, *command, port=port, log=tmp_path / "door.log"))
            yield Door(port, process)
            return
        service = stack.enter_context(served(tmp_path, policy))
        if door == "check":
            yield Door(service.http, service.process, "/check")
            return
        ports = {8080: port, 8000: app, 8081: service.grpc, 8082: service.http}
        stack.enter_context(PROXIES[door](tmp_path, ports))  # type: ignore[arg-type]  # each a context manager
        yield Door(port, service.process)


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[str, subprocess.Popen[bytes]]]:
    with redis(tmp_path_factory.mktemp("redis")) as (port, process):
        yield f"redis://127.0.0.1:{port}/0", process


def answers(door: Door) -> list[tuple[int, dict[str, str], bytes]]:
    """What the table of requests gets."""
    got = []
    for method, path, headers, _ in TABLE:
        status, fields, body = ask(door.port, method, door.prefix + path, headers)
        told = {name: value for name, value in fields if name in TOLD}
        if status != 200:
            told.pop("x-ratelimit-reset", None)
        got.append((status, told, body))
    return got


@pytest.fixture(scope="module")
def expected(
    store: tuple[str, object], tmp_path_factory: pytest.TempPathFactory
) -> list[tuple[int, dict[str, str], bytes]]:
    """What the middleware answers, whose statuses are those of the table."""
    with opened("middleware", tmp_path_factory.mktemp("middleware"), store[0], "middleware") as door:
        got = answers(door)
    assert [asked.status for asked in TABLE] == [status for status, _, _ in got]
    return got


@pytest.mark.parametrize("door", DOORS[1:])
def test_the_same_through_every_door(
    door: str,
    store: tuple[str, object],
    expected: list[tuple[int, dict[str, str], bytes]],
    tmp_path: Path,
) -> None:
    """Statuses, figures, Retry-After, content type and body of every answer are those of the middleware."""
    with opened(door, tmp_path, store[0], door) as opening:
        got = answers(opening)

    for asked, wanted, have in zip(TABLE, expected, got, strict=True):
        status, headers, body = wanted
        if status == 429 or (status != 200 and (door, "statuses other than 429") not in LACKING):
            assert (status, body.replace(b"rl-", b"")) == (have[0], have[2].replace(b"rl-", b"")), asked
            assert _roughly(headers) == _roughly(have[1]), asked
        elif status == 200:
            assert status == have[0], asked
            figures = {name: headers[name] for name in FIGURES if name in headers}
            if (door, "figures of admissions") in LACKING:
                figures = {}
            assert figures == {name: have[1][name] for name in FIGURES if name in have[1]}, asked
        else:
            assert have[0] in (403, 429, 401), asked


def _roughly(headers: dict[str, str]) -> dict[str, str]:
    """*headers* without seconds, which depend on when the first request was."""
    told = dict(headers)
    if "retry-after" in told:
        told["retry-after"] = "soon" if 50 <= int(told["retry-after"]) <= 60 else told["retry-after"]
    return told


@pytest.mark.wall_clock
@pytest.mark.parametrize("door", [door for door in DOORS if door not in ("nginx-one", "check")])
def test_without_the_store_each_rule_does_what_it_says(
    door: str, store: tuple[str, subprocess.Popen[bytes]], tmp_path: Path
) -> None:
    """With Redis stopped, `deny` refuses with 503 and the dialect's body; `allow` and `local` admit."""
    import signal

    with opened(door, tmp_path, store[0], f"{door}-out", "50ms") as opening:
        assert 200 == ask(opening.port, "GET", opening.prefix + "/open")[0]
        store[1].send_signal(signal.SIGSTOP)
        try:
            shut = [ask(opening.port, "GET", "/shut") for _ in range(2)]
            others = [ask(opening.port, "GET", path)[0] for path in ("/open", "/limited")]
        finally:
            store[1].send_signal(signal.SIGCONT)

    assert [503, 503] == [answer[0] for answer in shut]
    assert b'"status": 503' in shut[0][2]
    assert [200, 200] == others


@pytest.mark.parametrize(
    ("door", "status"), [("nginx", 500), ("traefik", 500), ("caddy", 502), ("haproxy", 503), ("envoy", 403)]
)
def test_without_the_service_nothing_passes(door: str, status: int, store: tuple[str, object], tmp_path: Path) -> None:
    """If the service is down, each proxy refuses, as the files of `deploy/` say, with a status of its own."""
    with opened(door, tmp_path, store[0], f"{door}-down") as opening:
        assert 200 == ask(opening.port, "GET", "/unlimited")[0]
        opening.process.terminate()
        opening.process.wait(20)

        assert status == ask(opening.port, "GET", "/unlimited")[0]


def test_clients_cannot_speak_for_the_proxy(store: tuple[str, object], tmp_path: Path) -> None:
    """A client that sends the fields of its proxy itself gains nothing: its own path, method and address count, or it
    is refused.
    """
    forged = {"X-Original-URI": "/unlimited", "X-Forwarded-Uri": "/unlimited", "X-Original-Method": "PUT"}
    forged |= {"X-Forwarded-Method": "PUT", "X-Real-IP": "203.0.113.1"}
    for door in ("nginx", "traefik", "caddy", "haproxy", "envoy"):
        folder = tmp_path / door
        folder.mkdir()
        with opened(door, folder, store[0], f"{door}-forged") as opening:
            first = ask(opening.port, "GET", "/address", forged)[0]
            second = ask(opening.port, "GET", "/address", forged | {"X-Real-IP": "203.0.113.2"})[0]
        assert (first, second) in ((200, 429), (400, 400)), door
