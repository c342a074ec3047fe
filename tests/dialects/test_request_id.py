from __future__ import annotations

import os
import re
import time
import uuid

import pytest

from ratelimiter.dialects import request_id
from ratelimiter.dialects.request_id import RequestIds

TOKENS = RequestIds(form="token", prefix="req_")
UUIDS = RequestIds(form="uuid")
ID = b"7d3f6b0e-4c1a-4f5e-9b57-2d1c8a9e0f36"


def test_a_token_has_the_documented_form() -> None:
    """`req_` and 15 characters of Crockford's base 32, as in `req_01JNQBC4X8Y2Z3A`."""
    for _ in range(100):
        assert re.fullmatch("req_0[0-9A-HJKMNP-TV-Z]{14}", request_id.generate(TOKENS))


def test_a_token_begins_with_the_time(monkeypatch: pytest.MonkeyPatch) -> None:
    """Ten characters hold the Unix time in ms, so tokens sort by it."""
    # The documented example, req_01JNQBC4X8Y2Z3A, was made then.
    monkeypatch.setattr(time, "time_ns", lambda: 1741319181224 * 1_000_000)

    assert request_id.generate(TOKENS).startswith("req_01JNQBC4X8")


def test_tokens_of_one_millisecond_differ(monkeypatch: pytest.MonkeyPatch) -> None:
    """A process repeats itself not even when the clock stands still."""
    monkeypatch.setattr(time, "time_ns", lambda: 1_800_000_000_000_000_000)
    tokens = [request_id.generate(TOKENS) for _ in range(20_000)]

    assert 20_000 == len(set(tokens))
    assert 1 == len({token[:14] for token in tokens})


def test_a_forked_process_counts_from_elsewhere(monkeypatch: pytest.MonkeyPatch) -> None:
    """Workers that were forked from one process do not go on in step."""
    monkeypatch.setattr(time, "time_ns", lambda: 1_800_000_000_000_000_000)
    tokens = request_id._Tokens()
    monkeypatch.setattr(os, "urandom", lambda size: b"\x07" * size)
    tokens.reseed()
    first = tokens()
    tokens()
    tokens.reseed()

    assert first == tokens()


def test_a_uuid_is_random() -> None:
    """Version 4, of the variant of RFC 9562, in its canonical form, and never the same."""
    ids = [request_id.generate(UUIDS) for _ in range(1000)]

    assert 1000 == len(set(ids))
    for text in ids:
        parsed = uuid.UUID(text)
        assert (4, uuid.RFC_4122, text) == (parsed.version, parsed.variant, str(parsed))


def test_a_well_formed_id_is_taken_over() -> None:
    """What the caller calls its request is what we call it."""
    assert ID.decode() == request_id.choose(UUIDS, [(b"host", b"x"), (b"x-request-id", ID)])
    assert "my-id_1" == request_id.choose(TOKENS, [(b"x-request-id", b"my-id_1")])


@pytest.mark.parametrize(
    "headers",
    [
        [],
        [(b"x-request-id", b"")],
        [(b"x-request-id", b"req_01JNQBC4X8Y2Z3A")],
        [(b"x-request-id", ID + b"\r\nset-cookie: a=b")],
        [(b"x-request-id", ID), (b"x-request-id", ID)],
        [(b"x-correlation-id", ID)],
        [(b"x-request-id", b"\xff" * 36)],
    ],
)
def test_anything_else_is_replaced(headers: list[tuple[bytes, bytes]]) -> None:
    """An id that is malformed, or that came twice, is none."""
    chosen = request_id.choose(UUIDS, headers)

    assert UUIDS.well_formed(chosen.encode())
    assert ID.decode() != chosen
