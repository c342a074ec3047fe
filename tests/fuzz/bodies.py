"""Bodies in chunks: the same content for every reader, however they are cut, and the same end."""

from __future__ import annotations

from ratelimiter.proxy.body import BodyError, ChunkedBody, SizedBody, chunk, last_chunk
from tests.fuzz.cuts import pieces, seeds
from tests.fuzz.readers import Message, disputed, requests_by_h11, requests_by_llhttp

SEEDS = seeds(
    [
        b"3\r\nabc\r\n0\r\n\r\n",
        b"A;x=y;z\r\n0123456789\r\n000\r\nX-Sum: y\r\nY:\t z\r\n\r\nGET / HTTP/1.1\r\n",
        b"3 \r\nabc\r\n0\r\n\r\n", b"3\nabc\r\n0\r\n\r\n", b"3\r\nabcd\r\n0\r\n\r\n", b"0x3\r\nabc\r\n0\r\n\r\n",
        b"3;\"\r\n\"\r\nabc\r\n0\r\n\r\n", b"0\r\nX : y\r\n\r\n", b"ffffffffffffffff\r\n", b"3\r\nabc\n0\r\n\r\n",
    ]
)  # fmt: skip
HEAD = b"POST /x HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n"


def read(parts: list[bytes]) -> tuple[bytes, list[bytes], bytes | None, bool]:
    """The content, the trailers, what is behind the end or None before it, and whether an error ended it all."""
    body = ChunkedBody()
    content = rest = b""
    for at, part in enumerate(parts):
        try:
            content += body.feed(part)
        except BodyError:
            return content, [], None, True
        if body.done:
            rest = body.rest + b"".join(parts[at + 1 :])
            break
    return content, body.trailers, rest if body.done else None, False


async def check(data: bytes) -> None:
    """Raise AssertionError if two readers read *data* differently, or one of them when it is cut."""
    raw, parts = pieces(data)
    content, trailers, rest, failed = read(parts)
    whole = read([raw]) if raw else (b"", [], None, False)
    if failed or whole[3]:  # at the latest when all has come; what came before the fault may have been passed on
        assert failed == whole[3]
    else:
        assert whole == (content, trailers, rest, failed)
        for reader in () if disputed(b"\n" + raw) else (requests_by_h11, requests_by_llhttp):
            _compare(reader(HEAD + raw)[0], content, trailers, complete=rest is not None)
            if rest is not None:
                end = len(HEAD + raw) - len(rest)
                assert reader((HEAD + raw)[:end])[0].complete, "it ends here for everybody"
                assert not reader((HEAD + raw)[: end - 1])[0].complete, "and not before"
    if rest is not None:
        again = (chunk(content) if content else b"") + last_chunk(trailers)
        assert (content, trailers, b"", False) == read([again])
    _check_sized(raw, parts)


def _compare(theirs: Message, content: bytes, trailers: list[bytes], *, complete: bool) -> None:
    assert theirs.complete == complete
    assert theirs.body == content
    if complete:
        ours = [(name.lower(), value.strip(b" \t")) for name, _, value in (line.partition(b":") for line in trailers)]
        assert theirs.trailers == ours


def _check_sized(raw: bytes, parts: list[bytes]) -> None:
    length = len(raw) // 2
    body = SizedBody(length)
    content = b""
    for at, part in enumerate(parts):
        content += body.feed(part)
        if body.done:
            assert raw == content + body.rest + b"".join(parts[at + 1 :])
            break
    assert raw[:length] == content
    assert body.done
