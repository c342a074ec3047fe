"""A real Redis for all."""

from __future__ import annotations

from tests.stores.conftest import redis_server, shared_redis

__all__ = ["redis_server", "shared_redis"]
