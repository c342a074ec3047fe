"""Who is charged: the first source that a request has, reduced to a keyed digest."""

from __future__ import annotations

import ipaddress
from dataclasses import dataclass
from hashlib import blake2b
from itertools import product
from typing import TYPE_CHECKING

from ratelimiter.core.request import PRINCIPAL_BYTES_MAX, TOKEN_BYTES_MAX, MalformedRequest

if TYPE_CHECKING:
    from collections.abc import Container, Iterable, Mapping

HOPS_MAX = 32  # addresses read from the right of a forwarding header; more is an attack, not a path
IPV6_PREFIX = 64  # one subscriber's network at least (RFC 6177 section 2), so rotating within it is no escape
DIGEST_BYTES = 16
NAME_CHARACTERS_MAX = 64  # of what people are shown of a principal

_NAT64 = ipaddress.ip_network("64:ff9b::/96")  # RFC 6052 section 2.1: the IPv4 address is in the last 32 bits

Network = ipaddress.IPv4Network | ipaddress.IPv6Network
Address = ipaddress.IPv4Address | ipaddress.IPv6Address


@dataclass(frozen=True, slots=True)
class Principal:
    """Who is charged, without saying who it is (invariant 8)."""

    source: str  # where it was found: "header:x-api-key", "bearer", "org", "client" or "everyone"
    digest: str  # 32 hexadecimal digits, keyed: equal values, and only they, have equal digests


@dataclass(frozen=True, slots=True)
class Source:
    """One place where a principal may be found.

    Args:
        kind: `header`, `bearer`, `org`, `client` or `everyone`.
        name: the header's name, in any case; empty for the other kinds.
    """

    kind: str
    name: str = ""

    def __post_init__(self) -> None:
        object.__setattr__(self, "name", self.name.lower())

    def __str__(self) -> str:
        return f"{self.kind}:{self.name}" if self.name else self.kind


CLIENT = Source("client")
ORG = Source("org")  # the organisation that verified credentials belong to
EVERYONE = Source("everyone")  # one principal for all: a limit on the service as a whole


def parse_source(text: str) -> Source:
    """Read `header:NAME`, `bearer`, `org`, `client` or `everyone`.

    Raises:
        ValueError: it is none of these.
    """
    kind, _, name = text.partition(":")
    if kind == "header" and name and all(c.isascii() and (c.isalnum() or c in "!#$%&'*+-.^_`|~") for c in name):
        return Source("header", name)
    if not name and kind in ("bearer", "org", "client", "everyone") and ":" not in text:
        return Source(kind)
    msg = f"{text!r} is not a principal source: header:NAME, bearer, org, client or everyone"
    raise ValueError(msg)


@dataclass(frozen=True, slots=True)
class Trust:
    """Whose word about another address is taken.

    Args:
        proxies: networks of proxies; the client is the first address from the right that is in none of them.
        hops: or, where proxies have no fixed addresses: how many of them stand before us.
        header: `x-forwarded-for`, `forwarded` (RFC 7239), or a header of one address such as `x-real-ip`.
        ipv6_prefix: bits of an IPv6 address that name one client, 32 to 128.

    Raises:
        ValueError: both *proxies* and *hops* are given, or a number is out of range.
    """

    proxies: tuple[Network, ...] = ()
    hops: int = 0
    header: str = "x-forwarded-for"
    ipv6_prefix: int = IPV6_PREFIX

    def __post_init__(self) -> None:
        object.__setattr__(self, "header", self.header.lower())
        if self.proxies and self.hops:
            msg = "trusted_proxies and trusted_hops exclude each other"
            raise ValueError(msg)
        if not 0 <= self.hops <= HOPS_MAX:
            msg = f"trusted_hops must be 0 to {HOPS_MAX}, not {self.hops}"
            raise ValueError(msg)
        if not 32 <= self.ipv6_prefix <= 128:
            msg = f"ipv6_prefix must be 32 to 128, not {self.ipv6_prefix}"
            raise ValueError(msg)

    @property
    def anyone(self) -> bool:
        """Whether any header is read at all."""
        return bool(self.proxies or self.hops)

    def trusts_peer(self, peer: str | None) -> bool:
        """Whether *peer*, the address of a socket's other end and None for a unix socket, may speak for others."""
        if peer is None or self.hops:
            return self.anyone
        address = parse_address(peer)
        return address is not None and self.trusts(address)

    def trusts(self, address: Address) -> bool:
        """Whether *address* is one of the proxies."""
        return any(address in network for network in self.proxies if network.version == address.version)


def parse_address(text: str) -> Address | None:
    """The address that *text* names, decided by its bits and not its notation; None when it names none.

    Takes off a port, brackets, quotes and an IPv6 zone. An IPv4-mapped address is the IPv4 address inside it.
    """
    text = text.strip().strip('"')
    if text.startswith("["):
        text = text[1:].partition("]")[0]
    elif text.count(":") == 1:
        text = text.partition(":")[0]
    text = text.partition("%")[0]
    try:
        address = ipaddress.ip_address(text)
    except ValueError:
        return None
    return (address.ipv4_mapped or address) if isinstance(address, ipaddress.IPv6Address) else address


def forwarded_for(values: Iterable[str], header: str) -> list[str]:
    """The node names that forwarding headers list, left to right, at most the last `HOPS_MAX` of them."""
    joined = ",".join(values)
    if header != "forwarded":
        return [item.strip() for item in joined.split(",")[-HOPS_MAX:]]
    nodes = []
    for element in joined.split(",")[-HOPS_MAX:]:  # a quoted comma is in no valid node name (RFC 7239 section 6)
        pairs = (pair.partition("=") for pair in element.split(";"))
        nodes.append(next((value.strip() for name, _, value in pairs if name.strip().lower() == "for"), ""))
    return nodes


def resolve_client(peer: str | None, nodes: list[str], trust: Trust) -> Address | None:
    """The client's address: walked from the right, because each proxy appends, so only the tail was written by hosts we
    trust. Stops before the first node that is no address, never skips over it.

    Returns None when the peer has no address: a unix socket.
    """
    client = parse_address(peer) if peer is not None else None
    if not trust.anyone:
        return client
    if trust.hops:
        # The nearest proxy is the peer and the node it wrote is the last: the client is hops from the right.
        named = parse_address(nodes[-trust.hops]) if len(nodes) >= trust.hops else None
        return named or client
    # A unix socket's other end is on this machine, as the proxy that trusted_proxies speaks of must be.
    for node in reversed(nodes):
        if client is not None and not trust.trusts(client):
            break
        address = parse_address(node)
        if address is None:
            break
        client = address
    return client


def client_id(address: Address | None, ipv6_prefix: int) -> str:
    """What of *address* names one client: all of IPv4, the prefix of IPv6, `local` for a unix socket.

    NAT64 (64:ff9b::/96) and 6to4 addresses are charged as the IPv4 address inside them: the prefix would put all of
    IPv4 into one bucket, or give one caller 65,536 of them. They are not trusted as that address (`Trust.trusts`).
    """
    if isinstance(address, ipaddress.IPv6Address):
        if address in _NAT64:
            return str(ipaddress.IPv4Address(int(address) & 0xFFFFFFFF))
        if address.sixtofour is not None:
            return str(address.sixtofour)
        if ipv6_prefix < 128:
            return str(ipaddress.ip_network((address, ipv6_prefix), strict=False))
    return str(address) if address is not None else "local"


class PrincipalReader:
    """Reads principals from a request's headers.

    Args:
        sources: every source that any rule names.
        trust: who may speak for another address.
        secret: key of the digests, at most 64 bytes; the same in every process that shares a store.
        verified: of them those that name a principal only when somebody has verified what they hold. Their headers are
            not looked at here.

    Attributes:
        watched: lower-case names of the headers that `read` looks at, each with the name it means. Underscored
            twins are among them, as some frameworks read those as the same header.
    """

    def __init__(
        self, sources: Iterable[Source], trust: Trust, secret: bytes = b"", verified: Container[Source] = ()
    ) -> None:
        self._trust = trust
        self._secret = secret
        self._verified = verified
        self.watched = watched_for(source for source in sources if source not in verified)
        self._forwarding = trust.header.encode() if trust.anyone else None
        if self._forwarding is not None:
            self.watched.setdefault(self._forwarding, self._forwarding)

    def read(
        self,
        sources: Iterable[Source],
        headers: Iterable[tuple[bytes, bytes]],
        peer: str | None,
        names: Iterable[tuple[str, str]] = (),
    ) -> Principal:
        """The first of *sources* that the request has, else its client: never nobody.

        Args:
            sources: in order.
            headers: of the request.
            peer: address of the socket's other end; None on a unix socket.
            names: source and principal of each of its credentials that was verified.

        Raises:
            MalformedRequest: a header that names a principal is there twice, has an underscore twin, or is too long.
        """
        return self.principal(*self.find(sources, headers, peer, names))

    def find(
        self,
        sources: Iterable[Source],
        headers: Iterable[tuple[bytes, bytes]],
        peer: str | None,
        names: Iterable[tuple[str, str]] = (),
    ) -> tuple[str, bytes]:
        """Like `read`: the source, and the value that nobody else may see (8)."""
        for source in sources:
            if source in self._verified:
                for verified, name in names:
                    if verified == str(source):
                        return verified, name.encode()
            elif source.kind in ("header", "bearer"):
                value = credential(source, headers, self.watched)
                if value:
                    return str(source), value
            elif source.kind == "everyone":
                return "everyone", b""
            else:
                break
        return "client", client_id(self.client(headers, peer), self._trust.ipv6_prefix).encode()

    def name(
        self,
        sources: Iterable[Source],
        headers: Iterable[tuple[bytes, bytes]],
        peer: str | None,
        names: Iterable[tuple[str, str]] = (),
    ) -> str:
        """What `find` finds as people may be shown it: its first `NAME_CHARACTERS_MAX` characters. Empty for a token
        that nobody has verified, with which whoever sees it could ask.
        """
        source, value = self.find(sources, headers, peer, names)
        if source == "bearer" and all(verified != source for verified, _ in names):
            return ""
        return value.decode("utf-8", "backslashreplace")[:NAME_CHARACTERS_MAX]

    def client(self, headers: Iterable[tuple[bytes, bytes]], peer: str | None) -> Address | None:
        """The client's address, as far as the trusted proxies say; None on a unix socket."""
        lines = [value for name, value in headers if name.lower() == self._forwarding]
        nodes = forwarded_for((line.decode("latin-1") for line in lines), self._trust.header) if lines else []
        return resolve_client(peer, nodes, self._trust)

    def principal(self, source: str, value: bytes) -> Principal:
        """The principal that *source* calls *value*."""
        # The length before the source keeps ("a", "b:c") and ("a:b", "c") apart (7).
        text = b"%d:%s:%s" % (len(source), source.encode(), value)
        digest = blake2b(text, digest_size=DIGEST_BYTES, key=self._secret, person=b"principal").hexdigest()
        return Principal(source, digest)


def watched_for(sources: Iterable[Source]) -> dict[bytes, bytes]:
    """Every spelling of the headers that *sources* are in, lower case, each with the name it means."""
    named = {source.name or "authorization" for source in sources if source.kind in ("header", "bearer")}
    return {twin.encode(): name.encode() for name in named for twin in underscore_twins(name)}


def credential(source: Source, headers: Iterable[tuple[bytes, bytes]], watched: Mapping[bytes, bytes]) -> bytes:
    """What *source*, a header or `bearer`, holds; empty when the request does not have it.

    Args:
        source: where to look.
        headers: of the request.
        watched: of `watched_for`, with *source* among the sources.

    Raises:
        MalformedRequest: the header is there twice, has an underscore twin, or is too long.
    """
    if source.kind == "header":
        return _single(source.name, headers, watched, PRINCIPAL_BYTES_MAX)
    # Any white space parts the two, as for the frameworks: a tab must not hide a token from its limit.
    words = _single("authorization", headers, watched, TOKEN_BYTES_MAX).split(None, 1)
    return words[1] if len(words) == 2 and words[0].lower() == b"bearer" else b""


def _single(name: str, headers: Iterable[tuple[bytes, bytes]], watched: Mapping[bytes, bytes], bytes_max: int) -> bytes:
    wanted = name.encode()
    lines = [(sent_as.lower(), value) for sent_as, value in headers if watched.get(sent_as.lower()) == wanted]
    if not lines:
        return b""
    # Which of two an application reads is its framework's choice: charging the other one would be a bypass.
    if len(lines) > 1:
        raise MalformedRequest(name, "is there more than once")
    sent_as, value = lines[0]
    if sent_as != wanted:
        raise MalformedRequest(name, "is spelled with underscores")
    if len(value) > bytes_max:
        raise MalformedRequest(name, f"is longer than {bytes_max} bytes")
    return value.strip()


def underscore_twins(name: str) -> list[str]:
    """Every spelling of *name* with some of its hyphens as underscores; itself first."""
    parts = name.split("-")
    if len(parts) > 7:  # 64 spellings are enough; the all-underscore one is what gateways produce
        return [name, name.replace("-", "_")]
    return [
        "".join(part + glue for part, glue in zip(parts, (*glues, ""), strict=True))
        for glues in product("-_", repeat=len(parts) - 1)
    ]
