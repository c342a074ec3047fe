"""A client that speaks ASGI itself, so that a test sees every message and every header line as they were sent."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any


@dataclass
class Answer:
    """What an application sent for one request."""

    messages: list[dict[str, Any]] = field(default_factory=list)
    error: Exception | None = None

    @property
    def start(self) -> dict[str, Any]:
        return next(m for m in self.messages if m["type"].endswith("response.start"))

    @property
    def status(self) -> int:
        status: int = self.start["status"]
        return status

    @property
    def body(self) -> bytes:
        return b"".join(m.get("body", b"") for m in self.messages if m["type"].endswith("response.body"))

    def lines(self, name: str) -> list[str]:
        """The values of every header line called *name*."""
        return [value.decode() for key, value in self.start.get("headers", ()) if key.decode().lower() == name.lower()]

    def line(self, name: str) -> str | None:
        """The value of the one header line called *name*; None when there is none."""
        values = self.lines(name)
        assert len(values) <= 1, f"{name} is there {len(values)} times"
        return values[0] if values else None


def http_scope(
    method: str = "GET", target: str = "/", headers: dict[str, str] | None = None, **more: Any
) -> dict[str, Any]:
    """A scope as uvicorn makes it."""
    from urllib.parse import unquote

    path, _, query = target.partition("?")
    return {
        "type": "http",
        "asgi": {"version": "3.0", "spec_version": "2.3"},
        "http_version": "1.1",
        "method": method,
        "scheme": "http",
        "path": unquote(path),
        "raw_path": path.encode(),
        "query_string": query.encode(),
        "root_path": "",
        "headers": [(b"host", b"api.example"), *((k.lower().encode(), v.encode()) for k, v in (headers or {}).items())],
        "client": ("203.0.113.7", 50000),
        "server": ("127.0.0.1", 8000),
        "state": {},
        **more,
    }


async def send_request(app: Any, scope: dict[str, Any], incoming: list[dict[str, Any]] | None = None) -> Answer:
    """Run *app* on *scope*; what it raises is kept, as a server would log it and go on."""
    answer = Answer()
    queue = list(incoming if incoming is not None else [{"type": "http.request", "body": b"", "more_body": False}])

    async def receive() -> dict[str, Any]:
        return queue.pop(0) if queue else {"type": "http.disconnect"}

    async def send(message: Any) -> None:
        answer.messages.append(dict(message))

    try:
        await app(scope, receive, send)
    except Exception as error:  # whatever it is, the test looks at it
        answer.error = error
    return answer


async def get(app: Any, target: str = "/", headers: dict[str, str] | None = None, **more: Any) -> Answer:
    """The answer to a GET."""
    return await send_request(app, http_scope("GET", target, headers, **more))
