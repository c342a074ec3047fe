"""A redis-server to hurt."""

from __future__ import annotations

from typing import Any

from tests.stores.redis_server import RedisServer

PASSWORD = "p4ssw0rd-of-the-store"  # noqa: S105 - of a server that lives for one test


class Server(RedisServer):
    """A server with a password, which must never be seen anywhere."""

    def __init__(self, **options: str) -> None:
        settings: dict[str, Any] = {"requirepass": PASSWORD, **options}
        super().__init__(**settings)

    @property
    def url(self) -> str:
        return self.url_of(self.port)

    @staticmethod
    def url_of(port: int, host: str = "127.0.0.1", password: str = PASSWORD) -> str:
        return f"redis://:{password}@{host}:{port}/0"

    def set(self, **settings: str) -> None:
        """CONFIG SET."""
        with self.client() as client:
            for name, value in settings.items():
                client.config_set(name.replace("_", "-"), value)
