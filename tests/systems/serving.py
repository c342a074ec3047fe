"""One documented system at work: its example API, its limiter and a Redis, each a process of its own.

Two ways to run it: the API with the middleware, or the API without it behind the sidecar. Both are told nothing but the
policy file and the store.
"""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
import sys
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

from ratelimiter import RateLimitMiddleware
from tests.stores.redis_server import free_port, wait_until
from tests.systems.credentials import SECRET

if TYPE_CHECKING:
    from collections.abc import Sequence

ROOT = Path(__file__).parents[2]
WAYS = ("middleware", "sidecar")
START_S = 30.0
STOP_S = 0.5
# Of a busy machine of tests: what is tried here is not whether a decision comes in time (tests/faults does that).
TIMEOUT = "5s"


def app() -> Any:
    """What uvicorn serves: SYSTEM_API, behind the middleware if SYSTEM_POLICY names a policy file."""
    api = import_module(f"tests.systems.apis.{os.environ['SYSTEM_API']}").api()
    policy = os.environ.get("SYSTEM_POLICY")
    if policy:
        api.add_middleware(RateLimitMiddleware, config=policy, store=os.environ["SYSTEM_STORE"])
    return api


class Served:
    """A system that answers at `url` while the context lasts.

    Args:
        api: which of `tests.systems.apis`.
        policy: its policy file.
        store: URL of the store.
        way: how it is limited, one of `WAYS`.
    """

    def __init__(self, api: str, policy: Path, store: str, way: str) -> None:
        self._settings = {"SYSTEM_API": api, "PYTHONUNBUFFERED": "1", "RATELIMITER_DECISION_TIMEOUT": TIMEOUT}
        self._settings["RATELIMITER_SECRET"] = SECRET
        self._policy = policy
        self._store = store
        self._way = way
        self._stack = contextlib.ExitStack()
        self.processes: dict[str, subprocess.Popen[bytes]] = {}

    def __enter__(self) -> Self:
        with self._stack:
            if self._way == "middleware":
                limits = {"SYSTEM_POLICY": str(self._policy), "SYSTEM_STORE": self._store}
                self.port = self._uvicorn("api", limits)
                self._await("api", self.port)
            else:
                behind = self._uvicorn("api", {})
                self.port = self._proxy(behind)
                self._await("api", behind)
                self._await("proxy", self.port)
            self._stack = self._stack.pop_all()
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    @property
    def limiter(self) -> subprocess.Popen[bytes]:
        """The process that limits."""
        return self.processes["proxy" if self._way == "sidecar" else "api"]

    def log(self, name: str) -> str:
        """What a process has said so far."""
        return self._log_file(name).read_text()

    def _uvicorn(self, name: str, settings: dict[str, str]) -> int:
        port = free_port()
        words = ["-m", "uvicorn", "tests.systems.serving:app", "--factory", "--port", str(port)]
        words += ["--loop", "uvloop", "--http", "httptools", "--log-level", "warning", "--no-access-log"]
        self._start(name, [*words, "--no-proxy-headers", "--backlog", "4096"], settings)
        return port

    def _proxy(self, behind: int) -> int:
        port = free_port()
        words = ["-m", "ratelimiter", "proxy", "--upstream", f"http://127.0.0.1:{behind}"]
        words += ["--listen", f"127.0.0.1:{port}", "--admin", "127.0.0.1:0"]
        self._start("proxy", [*words, "--config", str(self._policy), "--store", self._store], {})
        return port

    def _log_file(self, name: str) -> Path:
        return self._policy.parent / f"{self._way}-{name}-{os.getpid()}-{id(self):x}.log"

    def _start(self, name: str, words: Sequence[str], settings: dict[str, str]) -> None:
        log = self._stack.enter_context(self._log_file(name).open("wb"))
        environment = {**os.environ, **self._settings, **settings}
        process = subprocess.Popen([sys.executable, *words], cwd=ROOT, env=environment, stdout=log, stderr=log)
        self.processes[name] = process
        self._stack.callback(_stopped, process)

    def _await(self, name: str, port: int) -> None:
        process = self.processes[name]

        def answers() -> bool:
            assert process.poll() is None, self.log(name)
            with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), 1):
                return True
            return False

        wait_until(answers, f"{name} listens", START_S)


def _stopped(process: subprocess.Popen[bytes]) -> None:
    """End it as a container would be ended, and soon after at once: nobody is left to be served."""
    for number in (signal.SIGTERM, signal.SIGKILL):
        process.send_signal(number)
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(STOP_S)
            return
