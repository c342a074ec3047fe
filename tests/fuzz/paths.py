"""The canonical path: one meaning, which two independent readers of paths find in the target, too."""

from __future__ import annotations

import posixpath
import re
from urllib.parse import unquote_to_bytes

import ada_url

from ratelimiter.core.path import canonical_path
from ratelimiter.core.request import MalformedRequest
from tests.core.test_request import CANONICAL, REFUSED

SEEDS = [row[1] for row in CANONICAL + REFUSED] + [b"/a/b;c=d/.../%F0%9F%98%80", b"/a//../b/%7e", b"/a/b/../../..//c"]


def by_decoding_first(path: bytes) -> bytes:
    """As file servers read: everything is decoded, then slashes are one and dot segments are resolved."""
    decoded = unquote_to_bytes(path)
    closing = b"/" if re.search(rb"/\.{0,2}$", decoded) else b""
    plain = posixpath.normpath(b"/" + decoded.lstrip(b"/"))
    return plain if plain == b"/" else plain + closing


def by_browsers(path: bytes) -> bytes:
    """As the URL Standard reads, once repeated slashes are one; the rest is decoded last."""
    return unquote_to_bytes(ada_url.URL("http://host" + re.sub("/+", "/", path.decode())).pathname)


def resolved(target: bytes) -> bytes:
    """The path that *target*, in origin or absolute form, names to both: decoded, without its query."""
    path = target.partition(b"?")[0]
    if not path.startswith(b"/"):
        path = b"/" + path.partition(b"://")[2].partition(b"/")[2]
    found = by_decoding_first(path)
    assert found == by_browsers(path)
    return found


async def check(data: bytes) -> None:
    """Raise AssertionError if *data* as a target is read in two ways."""
    try:
        path = canonical_path(data)
    except MalformedRequest:
        return
    again = path.encode("ascii")
    assert path == canonical_path(again), "it is its own canonical path"
    if path == "*":
        assert b"*" == data.partition(b"?")[0]
        return
    assert unquote_to_bytes(path) == resolved(data)
    assert unquote_to_bytes(path) == resolved(again), "what is forwarded names the same"
    assert path.encode() == ada_url.URL(f"http://host{path}").pathname.encode(), "and nobody rewrites it"
