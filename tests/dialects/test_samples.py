"""Sample refusals: what `ratelimiter dialects NAME` shows to a person who writes one."""

from __future__ import annotations

import pytest

from ratelimiter.dialects import loader
from ratelimiter.dialects.samples import UUID_ID, samples

STATUSES = {
    "over the limit": 429,
    "cost above the limit": 429,
    "blocked by an operator": 429,
    "out of credits": 402,
    "malformed request": 400,
    "store unavailable": 503,
}


@pytest.mark.parametrize("name", loader.names())
def test_every_reason_has_a_sample(name: str) -> None:
    """Each is the reply that a client would get: its documented status, and a wait exactly where one helps."""
    found = dict(samples(loader.load(name)))
    documented = STATUSES | ({"out of credits": 429} if name == "openai" else {})

    assert documented == {title: reply.status for title, reply in found.items()}
    waits = {title: dict(reply.headers).get(b"retry-after") for title, reply in found.items()}
    assert {"over the limit": b"30", "blocked by an operator": b"30", "store unavailable": b"1"} == {
        title: wait for title, wait in waits.items() if wait is not None
    }


@pytest.mark.parametrize("name", ["anthropic", "intrace"])
def test_a_sample_has_an_id_of_its_dialects_form(name: str) -> None:
    """It is plainly an example: all zeros, behind the prefix that the API documents."""
    for _, reply in samples(loader.load(name)):
        assert b'"req_000000000000000"' in reply.body


def test_the_sample_of_a_uuid_is_well_formed() -> None:
    """A dialect that names its requests by UUIDs shows one that its clients could parse."""
    ids = loader.load("tracefinance").request_ids

    assert ids is not None
    assert ids.well_formed(UUID_ID.encode())
