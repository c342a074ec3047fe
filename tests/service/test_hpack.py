from __future__ import annotations

import hpack as reference
import pytest
from hpack.huffman_constants import REQUEST_CODES, REQUEST_CODES_LENGTH
from hpack.table import HeaderTable
from hypothesis import example, given
from hypothesis import strategies as st

from ratelimiter.service.grpc import hpack, huffman

NAMES = st.sampled_from([b":path", b":method", b"content-type", b"grpc-timeout", b"x-request-id", b"x" * 60])
NAMES |= st.text("abcdefghijklmnopqrstuvwxyz-0123456789", min_size=1).map(str.encode)
VALUES = st.sampled_from([b"", b"/", b"POST", b"20m", b"application/grpc", b"v" * 200]) | st.binary(max_size=300)
HEADERS = st.lists(st.tuples(NAMES, VALUES), max_size=12)


def test_the_tables_are_those_of_the_rfc() -> None:
    """The static table and the Huffman code, which is worked out from its lengths, are those that the library has."""
    assert tuple(HeaderTable.STATIC_TABLE) == hpack.STATIC
    assert list(zip(REQUEST_CODES, REQUEST_CODES_LENGTH, strict=True)) == huffman.CODES


@given(st.binary())
@example(bytes(range(256)))
def test_what_is_encoded_is_decoded(text: bytes) -> None:
    """Every string survives the Huffman code."""
    assert text == huffman.decode(huffman.encode(text))


@given(st.lists(st.tuples(HEADERS, st.booleans(), st.none() | st.integers(0, 4096)), max_size=8))
def test_blocks_of_another_encoder_are_read(blocks: list[tuple[list[hpack.Header], bool, int | None]]) -> None:
    """Whatever the library writes over the life of a connection, with tables that grow, shrink and overflow, is read
    as it was meant.
    """
    encoder, decoder = reference.Encoder(), hpack.Decoder(list_bytes_max=1 << 20)

    for headers, coded, size in blocks:
        if size is not None:
            encoder.header_table_size = size
        block = encoder.encode(headers, huffman=coded)
        assert headers == decoder.decode(block)


@given(st.lists(HEADERS, max_size=4))
def test_blocks_of_ours_are_read_by_another_decoder(blocks: list[list[hpack.Header]]) -> None:
    """Whatever we write is read by the library as it was meant, even if it keeps no table."""
    decoder = reference.Decoder()
    decoder.max_allowed_table_size = 0

    for lead, headers in zip((hpack.NO_TABLE, b"", b"", b""), blocks, strict=False):
        block = lead + hpack.encode(headers)
        assert headers == [(bytes(name), bytes(value)) for name, value in decoder.decode(block, raw=True)]


@given(st.lists(st.binary(max_size=60), max_size=4))
def test_broken_blocks_are_read_as_another_decoder_does(blocks: list[bytes]) -> None:
    """Bytes at random are read as the library reads them, or refused by both: a reader that is out of step sees headers
    that were never sent.
    """
    ours, theirs = hpack.Decoder(list_bytes_max=1 << 20), reference.Decoder(max_header_list_size=1 << 20)

    for block in blocks:
        try:
            expected = [(bytes(name), bytes(value)) for name, value in theirs.decode(block, raw=True)]
        except reference.HPACKError:
            with pytest.raises(hpack.HpackError):
                ours.decode(block)
            return
        assert expected == ours.decode(block)


@pytest.mark.parametrize(
    ("block", "issue"),
    [
        (b"\x80", "no header has the index 0"),
        (b"\xbe", "no header has the index 62"),
        (b"\xff", "ends within a field"),
        (b"\xff\x80\x80\x80\x80\x80\x01", "a number is too large"),
        (b"\x40\x01a\x7f\xff\xff\xff\xff\x0f", "a number is too large"),
        (b"\x00\x05abc", "a string is longer than its header block"),
        (b"\x00\x01a", "ends within a field"),
        (b"\x3f\xe2\x1f", "a table of 4097 bytes is larger than 4096"),
        (b"\x82\x20", "a table size update stands behind a header"),
        (b"\x00\x81\x00\x00", "padding is not the beginning"),
        (b"\x00\x82\x1f\xff\x00", "padding is not the beginning"),
        (b"\x00\x84\xff\xff\xff\xfc\x00", "the end of string is within the string"),
    ],
)
def test_broken_blocks_are_refused_with_a_reason(block: bytes, issue: str) -> None:
    """Each kind of fault has words of its own, for the GOAWAY that it causes."""
    decoder = hpack.Decoder(list_bytes_max=1 << 20)

    with pytest.raises(hpack.HpackError, match=issue):
        decoder.decode(block)


def test_of_a_header_bomb_nothing_is_kept() -> None:
    """A block whose indices unfold to megabytes is read without making them, and the table is in step behind it."""
    decoder = hpack.Decoder(list_bytes_max=32_768)
    decoder.decode(hpack._number(0, 0x3F, 0x40) + b"\x01a" + hpack._number(4000, 0x7F, 0x00) + b"v" * 4000)

    assert decoder.decode(b"\xbe" * 60_000) is None
    assert decoder.decode(b"\xbe") == [(b"a", b"v" * 4000)]


def test_changes_tell_whether_a_block_may_be_read_again() -> None:
    """Two equal blocks are different requests if the table was changed between them; the number of changes tells."""
    decoder, encoder = hpack.Decoder(list_bytes_max=1 << 20), reference.Encoder()
    first = encoder.encode([(b"a", b"1")])
    decoder.decode(first)
    changes = decoder.changes
    again = encoder.encode([(b"a", b"1")])
    decoder.decode(again)

    assert changes == decoder.changes
    decoder.decode(encoder.encode([(b"b", b"2")]))
    assert changes < decoder.changes
    assert [(b"b", b"2")] == decoder.decode(again)
