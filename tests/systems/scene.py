"""A documented system at work, and callers who come to it from addresses of their own."""

from __future__ import annotations

import itertools
import os
import subprocess
import sys
from contextlib import ExitStack
from typing import TYPE_CHECKING, Self

import httpx

from tests.stores.redis_server import RedisServer
from tests.systems.credentials import SECRET
from tests.systems.serving import Served
from tests.systems.system import Deployment

if TYPE_CHECKING:
    from pathlib import Path

    from tests.systems.system import System

_numbers = itertools.count(1)


def fresh_address() -> str:
    """An address of the loopback network that nobody has called from: its limits are untouched."""
    number = next(_numbers)
    return f"127.{1 + number // 62500}.{number // 250 % 250}.{number % 250 + 1}"


class Scene:
    """A system with a Redis of its own, limited one way, and credentials that were made for it.

    Args:
        system: which.
        way: how it is limited.
        folder: where its files go.
    """

    def __init__(self, system: System, way: str, folder: Path) -> None:
        self.system = system
        self.way = way
        self.deployment = Deployment(system, folder)
        self._stack = ExitStack()

    def __enter__(self) -> Self:
        with self._stack:
            self._stack.enter_context(self.deployment)
            self.redis = self._stack.enter_context(RedisServer())
            served = Served(self.system.api, self.deployment.policy, self.redis.url, self.way)
            self.served = self._stack.enter_context(served)
            self._stack = self._stack.pop_all()
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    def stranger(self, headers: dict[str, str] | None = None, address: str = "") -> httpx.Client:
        """Somebody with these headers and no credentials, from an address that nobody else has called from."""
        transport = httpx.HTTPTransport(local_address=address or fresh_address())
        client = httpx.Client(base_url=self.served.url, headers=headers, transport=transport, timeout=30)
        self._stack.callback(client.close)
        return client

    def caller(self, sort: str = "", address: str = "") -> httpx.Client:
        """Somebody new who may call; *sort* of key as `Deployment.headers` takes it."""
        return self.stranger(self.deployment.headers(sort), address)

    def operate(self, *words: str) -> str:
        """What `ratelimiter` says to an operator's *words* about this policy and its store."""
        command = [sys.executable, "-m", "ratelimiter", *words, "--config", str(self.deployment.policy)]
        environment = {**os.environ, "RATELIMITER_SECRET": SECRET}
        done = subprocess.run(
            [*command, "--store", self.redis.url], env=environment, capture_output=True, text=True, check=False
        )
        assert 0 == done.returncode, done.stderr
        return done.stdout

    def call(self, client: httpx.Client) -> httpx.Response:
        """The call that counts one against the system's main limit."""
        method, path, body = self.system.call
        return client.request(method, path, json=body)
