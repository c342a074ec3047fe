"""The parts of a request that a limiter looks at."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Iterable

PRINCIPAL_BYTES_MAX = 1024  # of one header that names a principal
TOKEN_BYTES_MAX = 8192  # of one bearer token: real JWTs carry a kilobyte or two


class MalformedRequest(ValueError):  # noqa: N818  # the answer is 400, and it is the client's fault, not an error of ours
    """A request whose meaning two readers could disagree about, so that no rule can be chosen safely.

    Attributes:
        field: what is at fault: `path`, or the name of a header. Never its value.
        issue: the fault, in words fit for the client.
    """

    def __init__(self, field: str, issue: str) -> None:
        super().__init__(f"{field} {issue}")
        self.field = field
        self.issue = issue


class Request(NamedTuple):
    """The parts of a request that a rule can match or a principal be read from.

    A named tuple because one is built per request on the hot path.
    """

    method: str
    target: bytes  # the raw request target, before any decoding; a query may follow
    headers: Iterable[tuple[bytes, bytes]]  # in the order received, duplicates kept
    peer: str | None  # address of the socket's other end; None on a unix socket
    root_path: str = ""  # the prefix under which the application is mounted
    routed_path: str | None = None  # the decoded path an application routes by, when that is not ours to choose
    body: bytes | None = (
        None  # as much of its beginning as was asked for, b"" if there is none; None if it was not read
    )
