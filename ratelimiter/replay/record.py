"""One line of an access log, read: the fields that a policy may ask for, whatever the format."""

from __future__ import annotations

from typing import NamedTuple

ABSENT = ("", "-", None)  # how formats spell a field without a value


class Unread(ValueError):  # noqa: N818  # a line that cannot be read is counted, and is no failure of ours
    """A line that holds no request.

    Attributes:
        kind: why, in a few words: one of a small set, so that lines can be counted by it.
    """

    def __init__(self, kind: str) -> None:
        super().__init__(kind)
        self.kind = kind


# The kinds of unread lines.
UNFIT = "does not fit the format"
NO_REQUEST = "no request line (the client sent none that the server could read)"
NO_TIME = "no time that can be read"
NOT_JSON = "not a JSON object"
TOO_LONG = "longer than 1 MiB"
NO_COLUMNS = "no #Fields line before it"


class Record(NamedTuple):
    """The request of one line. A named tuple, as there is one for each line."""

    start_ms: int  # Unix time at which the request began, as far as the line tells; else at which it ended
    method: str
    target: str  # as logged: the path with the query, or the path only if the format leaves the query out
    status: int  # 0 if the client left before there was one
    client: str | None  # address of the client, or of the nearest proxy if `forwarded` names others
    forwarded: str | None = None  # value of X-Forwarded-For
    duration_ms: float | None = None
    size: int | None = None  # bytes of the response
    user: str | None = None
    agent: str | None = None
    referer: str | None = None
    host: str | None = None
    headers: tuple[tuple[str, str], ...] = ()  # other request headers: lower-case name and value
    responded: tuple[tuple[str, str], ...] = ()  # response headers, likewise
    principal: str | None = None  # the field that the caller of the replay named
    omitted: int = 0  # refusals left out of the log before this line
    tokens: tuple[int, int, int | None] | None = None  # of input, of output, and the bound of output that was asked for
    model: str | None = None


def value_or_none(text: str | None) -> str | None:
    """Return *text*, or None if it stands for no value."""
    return None if text in ABSENT else text


def split_request(line: str) -> tuple[str, str]:
    """Return the method and the target of a request line.

    Raises:
        Unread: it is no request line.
    """
    method, _, rest = line.partition(" ")
    target, _, protocol = rest.rpartition(" ")
    if not protocol.startswith("HTTP/"):  # HTTP/0.9 has no version
        target = rest
    if not target or not method.isalpha():
        raise Unread(NO_REQUEST)
    return method, target


def host_of(address: str) -> str:
    """Return *address* without its port: `203.0.113.7:0`, `[2001:db8::5]:0`, and `2001:db8::5:0`, which some servers
    write without brackets.
    """
    if address.startswith("["):
        return address[1:].partition("]")[0]
    return address.rpartition(":")[0] or address


def first_of(addresses: str) -> tuple[str, str | None]:
    """Return the client and the forwarded list of a field that may hold a list of addresses.

    Without a list there is nothing forwarded. The first address of a list is the client as the proxy that wrote the log
    saw it; a policy with trusted proxies walks the list itself.
    """
    if "," not in addresses:
        return addresses, None
    return addresses.partition(",")[0].strip(), addresses
