"""Goal: messages are read and written as Protocol Buffers has them. Method: the library protobuf as the other end."""

from __future__ import annotations

import pytest
from google.protobuf import struct_pb2
from hypothesis import given
from hypothesis import strategies as st

from ratelimiter.core.descriptors import Override
from ratelimiter.service import rls_messages
from ratelimiter.service.grpc import protobuf
from tests.service.calls import MESSAGES, descriptor, request

TEXTS = st.text(max_size=200)
ENTRIES = st.lists(st.tuples(st.text(min_size=1, max_size=20), TEXTS), max_size=5)


@given(st.integers(0, 2**64 - 1))
def test_a_number_survives(value: int) -> None:
    """Every unsigned number is read as it was written, and as the library reads it."""
    written = protobuf.whole(1, value)

    assert ([(1, value)] if value else []) == list(protobuf.fields(written))
    assert (value & 0xFFFFFFFF) == MESSAGES["UInt64Value"].FromString(written).value & 0xFFFFFFFF


@given(TEXTS, st.lists(ENTRIES, max_size=4), st.integers(0, 2**32 - 1))
def test_a_request_is_read_as_the_library_wrote_it(
    domain: str, descriptors: list[list[tuple[str, str]]], hits: int
) -> None:
    """Domain, descriptors in their order, and hits."""
    read = rls_messages.read_request(
        request(*(descriptor(*entries) for entries in descriptors), domain=domain, hits=hits)
    )

    assert (domain, hits or 1) == (read.domain, read.hits)
    assert [tuple(each) for each in descriptors] == [
        rls_messages.read_descriptor(each).entries for each in read.descriptors
    ]


@given(ENTRIES, st.integers(0, 2**32 - 1), st.integers(1, 6), st.integers(0, 2**40), st.booleans())
def test_a_descriptor_is_read_whole(
    entries: list[tuple[str, str]], limit: int, unit: int, hits: int, negative: bool
) -> None:
    """Its limit, hits of its own, 0 among them, and whether they are given back."""
    written = descriptor(*entries, limit=(limit, unit), hits=hits, negative=negative).SerializeToString()
    read = rls_messages.read_descriptor(written)

    assert (Override(limit, rls_messages.UNITS_MS[unit]), hits, negative) == (read.override, read.hits, read.gives_back)


@given(st.binary(max_size=60))
def test_nonsense_is_refused_and_nothing_else(message: bytes) -> None:
    """Bytes at random are a message or a ProtobufError."""
    for reader in (rls_messages.read_request, rls_messages.read_descriptor):
        try:
            reader(message)
        except protobuf.ProtobufError:
            continue


@given(st.sampled_from([1, 2]), st.text("ab-", min_size=1, max_size=64), st.integers(0, 2**33), st.integers(0, 10**7))
def test_a_status_reads_as_it_was_meant(code: int, name: str, remaining: int, reset_s: int) -> None:
    """What the library reads of a status and its figures is what was written, more than 32 bits as the most."""
    template = rls_messages.StatusTemplate(code, name, 10**9, 2)
    response = MESSAGES["Response"].FromString(template.status(remaining, reset_s))
    (status,) = response.statuses

    assert (code, name, 10**9) == (status.code, status.current_limit.name, status.current_limit.requests_per_unit)
    assert (min(remaining, 2**32 - 1), reset_s) == (status.limit_remaining, status.duration_until_reset.seconds)
    metadata = rls_messages.metadata("why", template.figures(remaining, reset_s))
    told = struct_pb2.Struct.FromString(MESSAGES["Response"].FromString(metadata).dynamic_metadata)
    figures = told["rules"][name]
    assert ("why", code == 2, remaining, reset_s) == (
        told["reason"],
        figures["over"],
        figures["remaining"],
        figures["reset_seconds"],
    )


@pytest.mark.parametrize(
    ("message", "issue"),
    [
        (b"\x0a", "a number is longer than its message"),
        (b"\x0a\x05ab", "a field is longer than its message"),
        (b"\x09\x00", "a field is longer than its message"),
        (b"\x0b", "has the wire type 3"),
        (b"\x02\x00", "has the number 0"),
        (b"\x08" + b"\xff" * 10, "a number is longer than 10 bytes"),
    ],
)
def test_each_fault_has_its_words(message: bytes, issue: str) -> None:
    """The caller is told what is wrong with its bytes."""
    with pytest.raises(protobuf.ProtobufError, match=issue):
        list(protobuf.fields(message))
