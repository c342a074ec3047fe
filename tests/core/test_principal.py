"""Who is charged: one client, one principal, however it presents itself; and nobody else's."""

from __future__ import annotations

import ipaddress
from typing import TYPE_CHECKING

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ratelimiter.core.client_address import HOPS_MAX, Trust, client_id, forwarded_for, parse_address, resolve_client
from ratelimiter.core.principal import (
    CLIENT,
    EVERYONE,
    NAME_CHARACTERS_MAX,
    ORG,
    Principal,
    PrincipalReader,
    Source,
    parse_source,
    underscore_twins,
)
from ratelimiter.core.request import PRINCIPAL_BYTES_MAX, TOKEN_BYTES_MAX, MalformedRequest

if TYPE_CHECKING:
    from collections.abc import Sequence

PEER = "203.0.113.7"
PROXY = "10.0.0.1"
PROXIES = Trust(proxies=(ipaddress.ip_network("10.0.0.0/8"), ipaddress.ip_network("fd00::/8")))
KEY = Source("header", "x-api-key")
BEARER = Source("bearer")


def read(
    *headers: tuple[str, str | bytes],
    sources: Sequence[Source] = (KEY, BEARER, CLIENT),
    peer: str | None = PEER,
    trust: Trust | None = None,
    secret: bytes = b"",
) -> Principal:
    lines = [(name.encode(), v if isinstance(v, bytes) else v.encode("latin-1")) for name, v in headers]
    return PrincipalReader(sources, trust or Trust(), secret).read(sources, lines, peer)


def client(*headers: tuple[str, str | bytes], peer: str | None = PROXY, trust: Trust = PROXIES) -> Principal:
    return read(*headers, sources=[CLIENT], peer=peer, trust=trust)


def address(text: str | None) -> Principal:
    """Who is charged when the peer itself is *text*."""
    return read(sources=[CLIENT], peer=text)


# --- sources ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("header:X-API-Key", Source("header", "x-api-key")),
        ("header:x_key", Source("header", "x_key")),
        ("bearer", BEARER),
        ("org", ORG),
        ("client", CLIENT),
        ("everyone", EVERYONE),
    ],
)
def test_sources(text: str, expected: Source) -> None:
    """A source is written as in the policy file, and writes itself so."""
    assert expected == parse_source(text)
    assert text.lower() == str(expected)


def test_an_organisation_is_what_credentials_say() -> None:
    """Two callers of one organisation are one principal; who belongs to none is charged as the next source has it. A
    header cannot name one.
    """
    reader = PrincipalReader([ORG, KEY], Trust(), verified={ORG, KEY})
    alice, bob, carol = [("header:x-api-key", "alice"), ("org", "acme")], [("org", "acme")], [(str(KEY), "carol")]
    asked = [(b"org", b"acme"), (b"x-api-key", b"acme")]
    one, other, third, nobody = (reader.read([ORG, KEY], asked, PEER, names) for names in (alice, bob, carol, []))

    assert one == other
    assert ["org", "header:x-api-key", "client"] == [one.source, third.source, nobody.source]
    assert len({one.digest, third.digest, nobody.digest}) == 3


@pytest.mark.parametrize(
    "text",
    [
        "",
        "header",
        "header:",
        "header:a b",
        "header:a:b",
        "header:\u00e9",
        "client:",
        "bearer:x",
        "cookie:",
        "client lower",
        "query: x",
        "IP",
    ],
)
def test_sources_that_are_none(text: str) -> None:
    """What is no source is refused with the ones that are."""
    with pytest.raises(ValueError, match=r"header:NAME, cookie:NAME, .* everyone or identified"):
        parse_source(text)


@pytest.mark.parametrize(
    ("headers", "source"),
    [
        pytest.param([("X-API-Key", "k")], "header:x-api-key", id="key"),
        pytest.param(
            [("x-api-key", "k"), ("authorization", "Bearer t")], "header:x-api-key", id="140-configured-order"
        ),
        pytest.param([("authorization", "bearer t")], "bearer", id="scheme-in-any-case"),
        pytest.param([("authorization", "Basic t")], "client", id="another-scheme"),
        pytest.param([("authorization", "Bearer ")], "client", id="139-no-token"),
        pytest.param([("authorization", "Bearer")], "client", id="139-scheme-only"),
        pytest.param([], "client", id="139-absent"),
        pytest.param([("x-api-key", "")], "client", id="139-empty"),
        pytest.param([("x-api-key", " \t ")], "client", id="139-whitespace"),
    ],
)
def test_the_first_source_there_is(headers: list[tuple[str, str]], source: str) -> None:
    """The first source that a request has is charged, else its client: never nobody, never the empty key."""
    assert source == read(*headers).source


def test_everyone_is_one() -> None:
    """A limit on the service as a whole is charged to one principal."""
    one, other = (read(("x-api-key", key), sources=[EVERYONE], peer=peer) for key, peer in (("a", PEER), ("b", None)))

    assert one == other


@pytest.mark.parametrize(
    ("headers", "issue"),
    [
        pytest.param([("x-api-key", "a"), ("X-Api-Key", "b")], "more than once", id="49-H19-duplicate"),
        pytest.param([("x-api-key", "a"), ("x-api-key", "a")], "more than once", id="140-equal-duplicate"),
        pytest.param([("x-api-key", ""), ("x-api-key", "a")], "more than once", id="140-empty-duplicate"),
        pytest.param([("x-api-key", "a"), ("x_api_key", "b")], "more than once", id="48-H18-twin"),
        pytest.param([("X_Api-Key", "a")], "underscores", id="48-H18-half-twin-alone"),
        pytest.param([("X_API_KEY", "a")], "underscores", id="48-H18-twin-alone"),
        pytest.param([("x-api-key", "a" * (PRINCIPAL_BYTES_MAX + 1))], "longer than 1024", id="141-long-key"),
        pytest.param([("x-api-key", "a" * 2**20)], "longer than 1024", id="141-megabyte"),
        pytest.param([("authorization", "Bearer " + "a" * TOKEN_BYTES_MAX)], "longer than 8192", id="141-long-token"),
        pytest.param([("authorization", "Basic a"), ("authorization", "Bearer b")], "more than once", id="140-bearer"),
    ],
)
def test_headers_that_two_readers_read_differently(headers: list[tuple[str, str]], issue: str) -> None:
    """Which of two an application reads is not ours to guess: such a request is malformed."""
    with pytest.raises(MalformedRequest, match=issue) as caught:
        read(*headers)

    assert caught.value.field in ("x-api-key", "authorization")


def test_the_longest_key_is_charged() -> None:
    """A key of exactly the greatest length is a principal like any other (row 141)."""
    assert "header:x-api-key" == read(("x-api-key", "a" * PRINCIPAL_BYTES_MAX)).source


def test_headers_that_no_source_names_do_not_count() -> None:
    """User agents, cookies and unwatched duplicates are no part of an identity (row 148)."""
    noise = [("user-agent", "a"), ("cookie", "b"), ("x-other", "c"), ("x-other", "d"), ("x_other", "e")]

    assert read(("x-api-key", "k")) == read(("x-api-key", "k"), *noise)


@pytest.mark.parametrize(
    ("one", "other", "same"),
    [
        pytest.param(b"key", b" key\t", True, id="whitespace-around-is-not-of-the-value"),
        pytest.param(b"key", b"Key", False, id="143-case"),
        pytest.param(b"key", b"k ey", False, id="143-space"),
        pytest.param(b"key", b"key\x00", False, id="143-nul"),
        pytest.param("\u00e9".encode(), "e\u0301".encode(), False, id="143-nfc-nfd"),
        pytest.param(b"key", "\uff4b\uff45\uff59".encode(), False, id="143-full-width"),
        pytest.param(b"\xff\xfe", b"\xff\xfe", True, id="40-H10-bytes-are-stable"),
        pytest.param(b"\xff", b"\xfe", False, id="40-H10-bytes-are-apart"),
    ],
)
def test_keys_are_exact_bytes(one: bytes, other: bytes, same: bool) -> None:
    """Two keys are one principal if they are the same bytes, as an authenticator would have it."""
    assert same == (read(("x-api-key", one)) == read(("x-api-key", other)))


@pytest.mark.parametrize("value", ["Bearer  t", "bearer t", "BEARER t ", "Bearer\tt", "Bearer \t t"])
def test_spellings_of_one_token(value: str) -> None:
    """However the scheme and the space after it are written, the token is charged (bypass 8)."""
    assert read(("authorization", "Bearer t")) == read(("authorization", value))


# --- addresses -------------------------------------------------------------------------------------------------------

SAME_CLIENT = [
    ("133-mapped-dotted", "::ffff:1.2.3.4", "1.2.3.4"),
    ("133-mapped-hexadecimal", "::ffff:102:304", "1.2.3.4"),
    ("133-mapped-long", "0:0:0:0:0:FFFF:0102:0304", "1.2.3.4"),
    ("135-one-64", "2001:db8:1:2::1", "2001:db8:1:2:ffff:ffff:ffff:ffff"),
    ("136-zone", "fe80::1%eth0", "fe80::1%eth1"),
    ("136-zone-or-none", "fe80::1%25eth0", "fe80::1"),
    ("137-nat64", "64:ff9b::1.2.3.4", "1.2.3.4"),
    ("137-6to4", "2002:0102:0304::1", "1.2.3.4"),
    ("132-port", "1.2.3.4:5678", "1.2.3.4"),
    ("132-brackets-and-port", "[2001:db8::1]:80", "2001:db8::1"),
    ("132-brackets", "[2001:db8::1]", "2001:db8::1"),
    ("132-quotes", '"1.2.3.4"', "1.2.3.4"),
    ("132-quotes-brackets-port", '"[2001:db8::1]:80"', "2001:db8::1"),
    ("132-spaces", " 1.2.3.4 ", "1.2.3.4"),
    ("compressed", "2001:0db8:0000::0001", "2001:db8::1"),
    ("upper-case", "2001:DB8::A", "2001:db8::a"),
]

OTHER_CLIENT = [
    ("134-embedded-dotted-is-no-mapped", "2001:db8::1.2.3.4", "1.2.3.4"),
    ("135-the-next-64", "2001:db8:1:2::1", "2001:db8:1:3::1"),
    ("133-mapped-are-apart", "::ffff:1.2.3.4", "::ffff:1.2.3.5"),
    ("137-6to4-are-apart", "2002:0102:0304::1", "2002:0102:0305::1"),
    ("137-nat64-are-apart", "64:ff9b::1.2.3.4", "64:ff9b::1.2.3.5"),
    ("138-a-unix-socket-is-no-address", "127.0.0.1", None),
]


@pytest.mark.parametrize(("one", "other"), [row[1:] for row in SAME_CLIENT], ids=[row[0] for row in SAME_CLIENT])
def test_one_client_has_one_principal(one: str, other: str) -> None:
    """An address is decided by its bits, not by its notation."""
    assert address(one) == address(other)


@pytest.mark.parametrize(("one", "other"), [row[1:] for row in OTHER_CLIENT], ids=[row[0] for row in OTHER_CLIENT])
def test_two_clients_have_two_principals(one: str, other: str | None) -> None:
    """No notation puts different clients into one bucket."""
    assert address(one) != address(other)


@pytest.mark.parametrize(
    ("prefix", "text", "expected"),
    [
        (64, "2001:db8:1:2:3:4:5:6", "2001:db8:1:2::/64"),
        (56, "2001:db8:1:2ff::1", "2001:db8:1:200::/56"),
        (48, "2001:db8:1:2::1", "2001:db8:1::/48"),
        (32, "2001:db8:1:2::1", "2001:db8::/32"),
        (128, "2001:db8::1", "2001:db8::1"),
        (64, "1.2.3.4", "1.2.3.4"),
        (32, "::ffff:1.2.3.4", "1.2.3.4"),
    ],
)
def test_ipv6_prefixes(prefix: int, text: str, expected: str) -> None:
    """One client is the configured prefix of an IPv6 address, and all of an IPv4 one (row 135)."""
    assert expected == client_id(parse_address(text), prefix)


def test_a_unix_socket_has_a_name() -> None:
    """A peer without an address is `local`, on purpose (row 138)."""
    assert "local" == client_id(None, 64)


@pytest.mark.parametrize(
    "text",
    ["", "unknown", "_hidden", "1.2.3", "1.2.3.4.5", "256.1.1.1", "01.2.3.4", "1.2.3.4/8", "::1::", "[", "[]", ":", "%",
     "localhost", "0x7f.1", "2130706433", "\u0661.2.3.4", '"', "1.2.3.4 5.6.7.8", "fe80::1/64"],
)  # fmt: skip
def test_what_is_no_address(text: str) -> None:
    """Names, other notations and garbage are no address (row 132)."""
    assert parse_address(text) is None


@given(st.text() | st.text(st.sampled_from('0123456789abcdef:.[]%"/ ,;=for')))
def test_no_text_is_too_odd(text: str) -> None:
    """Reading addresses and forwarding headers never fails, whatever is written in them."""
    parse_address(text)
    for header in ("x-forwarded-for", "forwarded", "x-real-ip"):
        nodes = forwarded_for([text, text], header)
        assert len(nodes) <= HOPS_MAX
        for peer in (None, text, PROXY):
            for trust in (Trust(), PROXIES, Trust(hops=2)):
                client_id(resolve_client(peer, nodes, trust), 64)


# --- forwarding ------------------------------------------------------------------------------------------------------

XFF = "X-Forwarded-For"
FORWARDING = [
    # name, headers, peer, trust, who is charged
    ("126-untrusted-peer", [(XFF, "1.2.3.4")], PEER, PROXIES, PEER),
    ("126-nobody-trusted", [(XFF, "1.2.3.4")], PROXY, Trust(), PROXY),
    ("trusted-peer", [(XFF, "1.2.3.4")], PROXY, PROXIES, "1.2.3.4"),
    ("spoofed-on-the-left", [(XFF, "9.9.9.9, 1.2.3.4")], PROXY, PROXIES, "1.2.3.4"),
    ("trusted-chain", [(XFF, "9.9.9.9, 1.2.3.4, 10.1.1.1, 10.2.2.2")], PROXY, PROXIES, "1.2.3.4"),
    ("trusted-to-the-end", [(XFF, "10.1.1.1, 10.2.2.2")], PROXY, PROXIES, "10.1.1.1"),
    ("trusted-address-left-of-the-client", [(XFF, "10.9.9.9, 1.2.3.4")], PROXY, PROXIES, "1.2.3.4"),
    ("no-header", [], PROXY, PROXIES, PROXY),
    ("127-1000-entries", [(XFF, "9.9.9.9, " * 999 + "1.2.3.4")], PROXY, PROXIES, "1.2.3.4"),
    ("127-1000-trusted-entries", [(XFF, "1.2.3.4" + ", 10.0.0.9" * 999)], PROXY, PROXIES, "10.0.0.9"),
    ("128-two-lines", [(XFF, "9.9.9.9"), (XFF, "1.2.3.4")], PROXY, PROXIES, "1.2.3.4"),
    ("128-first-line-empty", [(XFF, ""), (XFF, "1.2.3.4")], PROXY, PROXIES, "1.2.3.4"),
    ("128-last-line-empty", [(XFF, "1.2.3.4"), (XFF, "")], PROXY, PROXIES, PROXY),
    ("128-any-case", [("x-FORWARDED-for", "1.2.3.4")], PROXY, PROXIES, "1.2.3.4"),
    ("129-forwarded-is-not-read", [("Forwarded", "for=127.0.0.1")], PROXY, PROXIES, PROXY),
    ("130-real-ip", [("X-Real-IP", "1.2.3.4")], PROXY, PROXIES, PROXY),
    ("130-client-ip", [("X-Client-IP", "1.2.3.4")], PROXY, PROXIES, PROXY),
    ("130-true-client-ip", [("True-Client-IP", "1.2.3.4")], PROXY, PROXIES, PROXY),
    ("130-originating-ip", [("X-Originating-IP", "1.2.3.4")], PROXY, PROXIES, PROXY),
    ("48-H18-underscores", [("X_Forwarded_For", "9.9.9.9"), (XFF, "1.2.3.4")], PROXY, PROXIES, "1.2.3.4"),
    ("131-loopback", [(XFF, "127.0.0.1")], PEER, PROXIES, PEER),
    ("132-port", [(XFF, "1.2.3.4:5678")], PROXY, PROXIES, "1.2.3.4"),
    ("132-ipv6-and-port", [(XFF, "[2001:db8::1]:80")], PROXY, PROXIES, "2001:db8::1"),
    ("132-quoted", [(XFF, '"1.2.3.4"')], PROXY, PROXIES, "1.2.3.4"),
    ("132-unknown-stops", [(XFF, "1.2.3.4, unknown")], PROXY, PROXIES, PROXY),
    ("132-hidden-stops", [(XFF, "1.2.3.4, _hidden, 10.1.1.1")], PROXY, PROXIES, "10.1.1.1"),
    ("132-trailing-comma-stops", [(XFF, "1.2.3.4,")], PROXY, PROXIES, PROXY),
    ("133-mapped-proxy", [(XFF, "1.2.3.4")], "::ffff:10.0.0.1", PROXIES, "1.2.3.4"),
    ("133-mapped-node", [(XFF, "::ffff:1.2.3.4, ::ffff:10.1.1.1")], PROXY, PROXIES, "1.2.3.4"),
    ("ipv6-proxy", [(XFF, "1.2.3.4")], "fd00::1", PROXIES, "1.2.3.4"),
    ("138-unix-socket", [(XFF, "9.9.9.9, 1.2.3.4")], None, PROXIES, "1.2.3.4"),
    ("138-unix-socket-without-header", [], None, PROXIES, None),
    ("138-unix-socket-nobody-trusted", [(XFF, "1.2.3.4")], None, Trust(), None),
    ("hops-1", [(XFF, "9.9.9.9, 1.2.3.4")], PEER, Trust(hops=1), "1.2.3.4"),
    ("hops-2", [(XFF, "9.9.9.9, 1.2.3.4, 5.6.7.8")], PEER, Trust(hops=2), "1.2.3.4"),
    ("hops-too-few-nodes", [(XFF, "1.2.3.4")], PEER, Trust(hops=2), PEER),
    ("hops-no-header", [], PEER, Trust(hops=1), PEER),
    ("hops-garbage", [(XFF, "9.9.9.9, unknown")], PEER, Trust(hops=1), PEER),
    ("hops-two-lines", [(XFF, "9.9.9.9"), (XFF, "1.2.3.4, 5.6.7.8")], PEER, Trust(hops=2), "1.2.3.4"),
    ("hops-unix-socket", [(XFF, "9.9.9.9, 1.2.3.4")], None, Trust(hops=1), "1.2.3.4"),
]


@pytest.mark.parametrize(
    ("headers", "peer", "trust", "charged"), [row[1:] for row in FORWARDING], ids=[row[0] for row in FORWARDING]
)
def test_who_speaks_for_whom(
    headers: list[tuple[str, str]], peer: str | None, trust: Trust, charged: str | None
) -> None:
    """Only what trusted hosts wrote is believed, from the right; the rest is the client's invention."""
    assert address(charged) == client(*headers, peer=peer, trust=trust)


@pytest.mark.parametrize(
    ("value", "charged"),
    [
        ("for=1.2.3.4", "1.2.3.4"),
        ("For=1.2.3.4;proto=https", "1.2.3.4"),
        ('proto=https; for="1.2.3.4:80"; by=10.0.0.1', "1.2.3.4"),
        ('for=9.9.9.9, for="[2001:db8::1]:80"', "2001:db8::1"),
        ("for=1.2.3.4, for=10.1.1.1", "1.2.3.4"),
        ("for=unknown", PROXY),
        ("for=1.2.3.4, proto=https", PROXY),
        ("1.2.3.4", PROXY),
        ('for="9.9.9.9, for=1.2.3.4', "1.2.3.4"),
    ],
)
def test_forwarded(value: str, charged: str) -> None:
    """Where it is configured, `Forwarded` (RFC 7239) is walked like the other, and the other is ignored (row 129)."""
    trust = Trust(proxies=PROXIES.proxies, header="forwarded")

    assert address(charged) == client(("Forwarded", value), (XFF, "9.9.9.9"), trust=trust)


def test_a_header_of_one_address() -> None:
    """Where it is configured, `X-Real-IP` speaks (row 130)."""
    trust = Trust(proxies=PROXIES.proxies, header="x-real-ip")

    assert address("1.2.3.4") == client(("X-Real-IP", "1.2.3.4"), (XFF, "9.9.9.9"), trust=trust)


@pytest.mark.parametrize(
    ("settings", "problem"),
    [
        ({"proxies": PROXIES.proxies, "hops": 1}, "exclude each other"),
        ({"hops": -1}, "trusted_hops must be 0 to 32"),
        ({"hops": HOPS_MAX + 1}, "trusted_hops must be 0 to 32"),
        ({"ipv6_prefix": 31}, "ipv6_prefix must be 32 to 128"),
        ({"ipv6_prefix": 129}, "ipv6_prefix must be 32 to 128"),
    ],
)
def test_trust_refuses_nonsense(settings: dict[str, object], problem: str) -> None:
    """Trust that cannot be meant is refused at the door."""
    with pytest.raises(ValueError, match=problem):
        Trust(**settings)  # type: ignore[arg-type]


# --- digests ---------------------------------------------------------------------------------------------------------

odd = st.text(st.sampled_from("ab:{}\r\n\x00*0123456789")) | st.text(max_size=8)


@given(st.tuples(odd, st.binary(max_size=8)), st.tuples(odd, st.binary(max_size=8)))
def test_digests_are_injective(one: tuple[str, bytes], other: tuple[str, bytes]) -> None:
    """Different (source, value) have different digests, whatever separators they hold (row 144, 7)."""
    reader = PrincipalReader((), Trust())

    assert (one == other) == (reader.principal(*one).digest == reader.principal(*other).digest)


@given(st.binary(min_size=1, max_size=200))
def test_digests_hide_and_are_bounded(value: bytes) -> None:
    """A principal is 32 hexadecimal digits, whatever it was made of (8)."""
    digest = read(("x-api-key", b"k" + value)).digest

    assert 32 == len(digest)
    assert set(digest) <= set("0123456789abcdef")


def test_digests_are_keyed() -> None:
    """Without the secret nobody can tell from a digest whose it is."""
    assert read(("x-api-key", "k")) != read(("x-api-key", "k"), secret=b"secret")
    assert read(("x-api-key", "k"), secret=b"secret") == read(("x-api-key", "k"), secret=b"secret")


@pytest.mark.parametrize("peer", ["2002:0a00:0001::1", "64:ff9b::10.0.0.1"])
def test_a_translated_address_is_not_trusted_as_the_one_inside_it(peer: str) -> None:
    """Whoever may choose an IPv6 address cannot become a trusted IPv4 proxy by it."""
    trust = Trust(proxies=(ipaddress.ip_network("10.0.0.0/8"),))

    assert ipaddress.ip_address(peer) == resolve_client(peer, ["1.2.3.4"], trust)


def test_headers_are_named_in_any_case() -> None:
    """A source or a trusted header that is written as in the documentation is the one that servers send."""
    assert Source("header", "x-api-key") == Source("header", "X-API-Key")
    assert "x-forwarded-for" == Trust(header="X-Forwarded-For").header


@pytest.mark.parametrize(
    ("sources", "headers", "verified", "expected"),
    [
        ("header:x-key", [("X-Key", "alice")], (), "alice"),
        ("header:x-key", [("X-Key", "a" * 100)], (), "a" * NAME_CHARACTERS_MAX),
        ("header:x-key", [("X-Key", b"\xff\xfe")], (), "\\xff\\xfe"),
        ("bearer", [("Authorization", "Bearer t0ken")], (), ""),
        ("bearer", [("Authorization", "Bearer t0ken")], (("bearer", "alice@example.org"),), "alice@example.org"),
        ("everyone", [], (), ""),
        ("client", [], (), "192.0.2.1"),
    ],
)
def test_a_name_is_what_people_may_be_shown(
    sources: str, headers: list[tuple[str, str | bytes]], verified: tuple[tuple[str, str], ...], expected: str
) -> None:
    """Short, text whatever the bytes, and never a token that whoever sees it could use."""
    source = parse_source(sources)
    reader = PrincipalReader([source], Trust(), verified=[source] if verified else [])
    sent = [(name.encode(), text.encode() if isinstance(text, str) else text) for name, text in headers]

    assert expected == reader.name([source], sent, "192.0.2.1", verified)


@pytest.mark.parametrize(("name", "count"), [("X-Key", 2), ("a-b-c-d-e-f-g", 64), ("a-b-c-d-e-f-g-h", 2)])
def test_spellings_with_underscores(name: str, count: int) -> None:
    """Every mixture is known, of a very long name those that gateways produce: all hyphens, or all underscores."""
    spellings = underscore_twins(name)

    assert (count, name) == (len(set(spellings)), spellings[0])
    assert name.replace("-", "_") in spellings
