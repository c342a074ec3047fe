"""Goal: what has rules of its own follows them: Max-Forwards, names with underscores, the figures of a 429, Host, HTTP
versions, chunk extensions. Method: raw requests through a sidecar, and what the upstream and the client see.
"""

from __future__ import annotations

import pytest

from ratelimiter.proxy.body import ChunkedBody
from ratelimiter.proxy.settings import DROP, PASS, REFUSE, ProxySettings
from tests.proxy.inputs import chunked, get
from tests.proxy.wire import Upstream, answering, sidecar


@pytest.mark.parametrize("method", [b"TRACE", b"OPTIONS"])
@pytest.mark.parametrize(("sent", "forwarded"), [(b"5", "4"), (b"1", "0"), (b"007", "6"), (b"x", "x"), (b"", "")])
async def test_max_forwards_is_counted_down(method: bytes, sent: bytes, forwarded: str) -> None:
    """RFC 9110 section 7.6.2; what is no number is passed on."""
    async with Upstream().serving() as upstream, sidecar(upstream) as proxy, proxy.client() as client:
        assert 200 == (await client.exchange(get(b"/x", b"Max-Forwards: " + sent, method=method))).status
    assert forwarded == upstream.seen[0].value("max-forwards")


async def test_max_forwards_says_nothing_of_other_methods() -> None:
    """A GET with it goes on, and it stays."""
    async with Upstream().serving() as upstream, sidecar(upstream) as proxy, proxy.client() as client:
        assert 200 == (await client.exchange(get(b"/x", b"Max-Forwards: 0"))).status
    assert "0" == upstream.seen[0].value("max-forwards")


async def test_at_zero_the_proxy_is_the_final_recipient() -> None:
    """OPTIONS gets its methods, TRACE the request without credentials; both are charged; the upstream sees neither."""
    async with Upstream().serving() as upstream, sidecar(upstream, limit="2/hour") as proxy, proxy.client() as client:
        options = await client.exchange(get(b"*", b"Max-Forwards: 0", method=b"OPTIONS"))
        credentials = (b"Authorization: Bearer secret", b"X-API-Key: secret", b"Cookie: secret")
        trace = await client.exchange(get(b"/x?y", b"Max-Forwards: 0", *credentials, method=b"TRACE"))
        refused = await client.exchange(get(b"/x", b"Max-Forwards: 0", method=b"TRACE"))
    assert [200, 200, 429] == [options.status, trace.status, refused.status]
    assert "GET" in (options.value("allow") or "")
    assert ("message/http", "1") == (trace.value("content-type"), options.value("x-ratelimit-remaining"))
    assert trace.body.startswith(b"TRACE /x?y HTTP/1.1\r\nhost: api.example\r\n")
    assert b"secret" not in trace.body
    assert [] == upstream.seen


UNDERSCORED = (b"X_Trace: 1", b"X_Forwarded_For: 6.6.6.6", b"Content_Length: 9")


@pytest.mark.parametrize(("mode", "status", "seen"), [(DROP, 200, None), (PASS, 200, "1"), (REFUSE, 400, None)])
async def test_fields_with_an_underscore(mode: str, status: int, seen: str | None) -> None:
    """As the policy says; the twin of a field that the proxy writes passes in no case."""
    settings = ProxySettings(lame_duck_ms=0, underscore_headers=mode)
    async with (
        Upstream().serving() as upstream,
        sidecar(upstream, bounds=settings) as proxy,
        proxy.client() as client,
    ):
        assert status == (await client.exchange(get(b"/x", *UNDERSCORED))).status
    for request in upstream.seen:
        assert (seen, None) == (request.value("x_trace"), request.value("x_forwarded_for"))
        assert None is request.value("content_length")


THEIRS = b"X-RateLimit-Limit: 5\r\nX-RateLimit-Remaining: 0\r\nX-RateLimit-Reset: 7\r\nRetry-After: 7\r\n"


@pytest.mark.parametrize(("theirs", "remaining"), [(THEIRS, "0"), (b"", None), (b"x-ratelimit-remaining:0\r\n", "0")])
async def test_the_figures_of_a_429_of_the_service_stand(theirs: bytes, remaining: str | None) -> None:
    """It is the service's limit that is met, and ours would say that 99999 remain."""
    raw = b"HTTP/1.1 429 Too Many Requests\r\nContent-Length: 0\r\n%s\r\n" % theirs
    async with (
        Upstream(answering(raw, then_close=False)).serving() as upstream,
        sidecar(upstream) as proxy,
        proxy.client() as client,
    ):
        answers = [await client.exchange(get()) for _ in range(2)]
    assert [(429, remaining)] * 2 == [(answer.status, answer.value("x-ratelimit-remaining")) for answer in answers]


@pytest.mark.parametrize("status", [200, 428, 503])
async def test_of_any_other_status_the_figures_are_ours(status: int) -> None:
    """As before: what the service says in their place is dropped."""
    raw = b"HTTP/1.1 %d X\r\nContent-Length: 0\r\n%s\r\n" % (status, THEIRS)
    async with (
        Upstream(answering(raw, then_close=False)).serving() as upstream,
        sidecar(upstream, limit="9/minute") as proxy,
        proxy.client() as client,
    ):
        assert "8" == (await client.exchange(get())).value("x-ratelimit-remaining")


@pytest.mark.parametrize("version", [b"1.2", b"1.9"])
async def test_a_later_version_is_read_as_1_1(version: bytes) -> None:
    """RFC 9110 section 2.5: of the same major version the highest minor one that is known counts; it is kept alive."""
    raw = get().replace(b"HTTP/1.1", b"HTTP/" + version)
    async with Upstream().serving() as upstream, sidecar(upstream) as proxy, proxy.client() as client:
        assert [200, 200] == [(await client.exchange(raw)).status for _ in range(2)]
    assert {"GET /x HTTP/1.1"} == {seen.first_line for seen in upstream.seen}


@pytest.mark.parametrize("host", [b"a.example:", b"a,b;c", b"a%2Db", b"[v1.x]:80", b""])
async def test_a_valid_host_passes(host: bytes) -> None:
    """As it came (RFC 3986 section 3.2)."""
    async with Upstream().serving() as upstream, sidecar(upstream) as proxy, proxy.client() as client:
        assert 200 == (await client.exchange(b"GET /x HTTP/1.1\r\nHost: %s\r\n\r\n" % host)).status
    assert host.decode() == upstream.seen[0].value("host")


@pytest.mark.parametrize(
    "line", [b"3 ; a = b", b"3;a", b"3\t;a=b;c", b"000000000000000000003", b'3 ; a = "x;y"', b"0" * 250 + b"3"]
)
async def test_chunk_lines_with_white_space_and_zeros(line: bytes) -> None:
    """RFC 9112 section 7.1.1 allows white space around `;` and `=`; zeros may be as many as a line holds."""
    async with Upstream().serving() as upstream, sidecar(upstream) as proxy, proxy.client() as client:
        assert 200 == (await client.exchange(chunked(line + b"\r\nabc\r\n00 ;x\r\n\r\n"))).status
    assert b"abc" == upstream.seen[0].body


def test_a_line_of_zeros_only_ends_the_body() -> None:
    """However many there are."""
    body = ChunkedBody()
    body.feed(b"3\r\nabc\r\n0000000000000000000000\r\n\r\n")
    assert body.done
