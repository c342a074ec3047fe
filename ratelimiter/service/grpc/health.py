"""`grpc.health.v1.Health`: the serving status, asked for once or watched."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING

from ratelimiter.service.grpc import protobuf
from ratelimiter.service.grpc.calls import CallError, Status

if TYPE_CHECKING:
    from collections.abc import Callable, Collection

    from ratelimiter.service.grpc.calls import Answers, Call

CHECK = "/grpc.health.v1.Health/Check"
WATCH = "/grpc.health.v1.Health/Watch"

SERVING, NOT_SERVING, SERVICE_UNKNOWN = 1, 2, 3


class Health:
    """Answers health checks and watches.

    Args:
        services: their names; the empty one, which means all of them, is known, too.
    """

    def __init__(self, services: Collection[str]) -> None:
        self._services = {"", *services}
        self._serving = True
        self._watching: dict[Answers, str] = {}

    def drain(self) -> None:
        """Report NOT_SERVING from now on."""
        self._serving = False
        for answers, service in list(self._watching.items()):
            answers.tell(self._status(service))

    def close(self) -> None:
        """End what is watched: a connection with an open call cannot be drained."""
        watching, self._watching = self._watching, {}
        for answers in watching:
            answers.end(Status.UNAVAILABLE, "the server is shutting down")

    async def check(self, call: Call) -> bytes:
        """Return a HealthCheckResponse.

        Raises:
            CallError: there is no such service.
        """
        service = _service(call.message)
        if service not in self._services:
            raise CallError(Status.NOT_FOUND, "there is no such service")
        return self._status(service)

    def watch(self, call: Call, answers: Answers) -> Callable[[], None]:
        """Tell *answers* the status now and whenever it changes."""
        service = _service(call.message)
        answers.tell(self._status(service))
        self._watching[answers] = service
        return partial(self._left, answers)

    def _left(self, answers: Answers) -> None:
        self._watching.pop(answers, None)

    def _status(self, service: str) -> bytes:
        if service not in self._services:
            return protobuf.whole(1, SERVICE_UNKNOWN)
        return protobuf.whole(1, SERVING if self._serving else NOT_SERVING)


def _service(message: bytes) -> str:
    service = ""
    try:
        for field, value in protobuf.fields(message):
            if field == 1:
                service = protobuf.text(value)
    except protobuf.ProtobufError as fault:
        raise CallError(Status.INVALID_ARGUMENT, str(fault)) from None
    return service
