"""Servers that the tests of the stores share."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from tests.stores.redis_server import RedisServer

if TYPE_CHECKING:
    from collections.abc import Iterator


@pytest.fixture(scope="session")
def shared_redis() -> Iterator[RedisServer]:
    """One server for all who do it no harm."""
    with RedisServer() as server:
        yield server


@pytest.fixture
def redis_server(shared_redis: RedisServer) -> RedisServer:
    """The shared server, empty. Whoever stops or reconfigures a server starts one of his own."""
    with shared_redis.client() as client:
        client.flushall()
        client.script_flush()
    return shared_redis
