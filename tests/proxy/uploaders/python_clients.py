# ruff: noqa: S310, S323, S501  # the certificate is made for the test, and so is the URL
"""Uploads with Python's clients: prints a line `CLIENT MODE SIZE STATUS` for each. Arguments: URL SIZE..."""

from __future__ import annotations

import http.client
import ssl
import sys
import time
import urllib.error
import urllib.request
from functools import partial
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

import httpx
import requests

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

STEP = 65536


def parts_of(body: bytes, step: int, pause_s: float) -> Iterator[bytes]:
    """Yield *body* in pieces of *step* bytes."""
    for at in range(0, len(body), step):
        yield body[at : at + step]
        if pause_s:
            time.sleep(pause_s)


def connection(url: str) -> http.client.HTTPConnection:
    parts = urlsplit(url)
    if parts.scheme == "https":
        return http.client.HTTPSConnection(parts.netloc, timeout=60, context=ssl._create_unverified_context())
    return http.client.HTTPConnection(parts.netloc, timeout=60)


def with_http_client(url: str, body: bytes, *, close: bool = False, step: int = STEP, pause_s: float = 0) -> int:
    asking = connection(url)
    asking.putrequest("POST", "/")
    asking.putheader("Content-Length", str(len(body)))
    if close:
        asking.putheader("Connection", "close")
    asking.endheaders()
    for part in parts_of(body, step, pause_s):
        asking.send(part)
    answer = asking.getresponse()
    answer.read()
    return answer.status


def chunked(url: str, body: bytes) -> int:
    asking = connection(url)
    asking.request("POST", "/", parts_of(body, STEP, 0), encode_chunked=True)
    answer = asking.getresponse()
    answer.read()
    return answer.status


def with_urllib(url: str, body: bytes) -> int:
    try:
        context = ssl._create_unverified_context() if url.startswith("https") else None
        status: int = urllib.request.urlopen(url, body, timeout=60, context=context).status
    except urllib.error.HTTPError as error:
        error.read()
        return error.code
    return status


def with_requests(url: str, body: bytes) -> int:
    return requests.post(url, data=body, verify=False, timeout=60).status_code


def with_requests_session(url: str, body: bytes) -> int:
    with requests.Session() as session:
        session.verify = False
        session.get(url, verify=False, timeout=60)
        return session.post(url, data=parts_of(body, STEP, 0), verify=False, timeout=60).status_code


def with_httpx(url: str, body: bytes) -> int:
    with httpx.Client(verify=False, timeout=60) as client:
        client.get(url)
        return client.post(url, content=body).status_code


def main(url: str, sizes: list[int]) -> None:
    """Upload with each client in each size."""
    for size in sizes:
        body = bytes(size)
        tries: dict[str, Callable[[], int]] = {
            "http.client keep-alive": partial(with_http_client, url, body),
            "http.client close": partial(with_http_client, url, body, close=True),
            "http.client chunked": partial(chunked, url, body),
            "urllib close": partial(with_urllib, url, body),
            "requests keep-alive": partial(with_requests, url, body),
            "requests session": partial(with_requests_session, url, body),
            "httpx keep-alive": partial(with_httpx, url, body),
        }
        if size <= 200_000:
            tries["http.client slow"] = partial(with_http_client, url, body, step=1000, pause_s=0.008)
        for name, upload in tries.items():
            try:
                status: object = upload()
            except Exception as error:  # that is the finding
                status = repr(error).replace(" ", "_")
            print(name, size, status, flush=True)


if __name__ == "__main__":
    import urllib3

    urllib3.disable_warnings()
    main(sys.argv[1], [int(size) for size in sys.argv[2:]])
