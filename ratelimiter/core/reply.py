"""A whole response as a value, and the reason phrases of HTTP."""

from __future__ import annotations

from http import HTTPStatus
from typing import NamedTuple

# Reason phrases are those of RFC 9110 section 15, which some versions of http.HTTPStatus have not caught up with.
REASON_PHRASES = {status.value: status.phrase for status in HTTPStatus} | {
    413: "Content Too Large",
    414: "URI Too Long",
    416: "Range Not Satisfiable",
    422: "Unprocessable Content",
}


class Reply(NamedTuple):
    """A whole response: names of headers are lower case, and a content-length is among them."""

    status: int
    headers: list[tuple[bytes, bytes]]
    body: bytes
