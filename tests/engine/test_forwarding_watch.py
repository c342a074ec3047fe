from __future__ import annotations

from ipaddress import ip_network

import pytest

from ratelimiter.core.client_address import Trust
from ratelimiter.engine.forwarding_watch import SAMPLE, ForwardingWatch
from tests.requesting import request

FORWARDED = [("X-Forwarded-For", "198.51.100.9")]
TRUSTED = Trust((ip_network("127.0.0.0/8"),))


def warnings(
    watch: ForwardingWatch, caplog: pytest.LogCaptureFixture, *, peer: str | None, number: int = SAMPLE
) -> str:
    """Return the lines that *number* requests with a forwarding header cause."""
    caplog.clear()
    for _ in range(number):
        if not watch.looks_on(request(headers=FORWARDED, peer=peer)):
            break
    return "\n".join(record.getMessage() for record in caplog.records)


@pytest.mark.parametrize("peer", [None, "127.0.0.1", "10.1.2.3", "fd00::1"])
def test_an_unknown_proxy_is_warned_of_once(peer: str | None, caplog: pytest.LogCaptureFixture) -> None:
    """A local peer whose every request is forwarded is a proxy, and all its callers share one limit."""
    told = warnings(ForwardingWatch(Trust()), caplog, peer=peer)

    assert 1 == told.count("which the policy does not trust")
    assert "write its network into trusted_proxies" in told
    assert (peer or "a unix socket") in told


def test_a_server_that_rewrites_the_peer_is_warned_of(caplog: pytest.LogCaptureFixture) -> None:
    """Uvicorn's --proxy-headers behind nginx: the trusted proxy is never seen, so the plan's header is ignored."""
    assert "--no-proxy-headers" in warnings(ForwardingWatch(TRUSTED), caplog, peer="198.51.100.9")


@pytest.mark.parametrize(
    ("trust", "peer"),
    [
        (Trust(), "8.8.8.8"),  # a client that writes such headers itself
        (TRUSTED, "127.0.0.1"),  # the trusted proxy
        (TRUSTED, "10.0.0.1"),  # another peer: perhaps a health check
        (Trust(), "198.51.100.9"),  # rewritten, and no proxy to be trusted: the peer is the client
    ],
)
def test_what_is_as_it_should_be_is_silent(trust: Trust, peer: str, caplog: pytest.LogCaptureFixture) -> None:
    """No line, and the watch ends with the first such request."""
    watch = ForwardingWatch(trust)

    assert "" == warnings(watch, caplog, peer=peer)
    assert not watch.looks_on(request(headers=FORWARDED, peer=peer))


def test_one_request_without_the_header_ends_the_watch(caplog: pytest.LogCaptureFixture) -> None:
    """Some requests come from a proxy and others do not: nothing can be said."""
    watch = ForwardingWatch(Trust())

    assert "" == warnings(watch, caplog, peer="127.0.0.1", number=SAMPLE - 1)
    assert not watch.looks_on(request(peer="127.0.0.1"))
