"""The principal that is charged: the first source that a request has, reduced to a keyed digest."""

from __future__ import annotations

from dataclasses import dataclass
from hashlib import blake2b
from itertools import product
from typing import TYPE_CHECKING

from ratelimiter.core.client_address import Address, Trust, client_id, forwarded_for, resolve_client
from ratelimiter.core.request import PRINCIPAL_BYTES_MAX, TOKEN_BYTES_MAX, MalformedRequest

if TYPE_CHECKING:
    from collections.abc import Container, Iterable, Mapping

DIGEST_BYTES = 16
NAME_CHARACTERS_MAX = 64  # of what people are shown of a principal


@dataclass(frozen=True, slots=True)
class Principal:
    """The principal that is charged, without its value (invariant 8)."""

    source: str  # where it was found: "header:x-api-key", "bearer", "org", "client" or "everyone"
    digest: str  # 32 hexadecimal digits, keyed: equal values, and only they, have equal digests


OF_HEADERS = ("header", "bearer")
OF_REQUEST = ("cookie", "query", "path", "json", "form")  # found by `facts`, not in watched headers
OF_BODY = ("json", "form")
NAMED_KINDS = ("header", *OF_REQUEST)
PLAIN_KINDS = ("bearer", "org", "client", "everyone", "identified")
LOWER = " lower"  # ends a source whose values differ by case only in spelling
HEADER_CHARACTERS = frozenset("!#$%&'*+-.^_`|~0123456789abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ")


@dataclass(frozen=True, slots=True)
class Source:
    """One place where a principal may be found, or several that make one together.

    Args:
        kind: one of `NAMED_KINDS` or `PLAIN_KINDS`; `all` for a combination.
        name: of the header, in any case; of the cookie, parameter or field; a dotted path into JSON.
        lower: True if values that are equal in lower case are one principal.
        parts: of a combination, at least two: a request has it if it has all.
    """

    kind: str
    name: str = ""
    lower: bool = False
    parts: tuple[Source, ...] = ()

    def __post_init__(self) -> None:
        if self.kind == "header":
            object.__setattr__(self, "name", self.name.lower())

    def __str__(self) -> str:
        if self.parts:
            return "+".join(map(str, self.parts))
        text = f"{self.kind}:{self.name}" if self.name else self.kind
        return text + LOWER if self.lower else text

    @property
    def each(self) -> tuple[Source, ...]:
        """The single sources of it: its parts, or itself."""
        return self.parts or (self,)


CLIENT = Source("client")
ORG = Source("org")  # the organisation that verified credentials belong to
EVERYONE = Source("everyone")  # one principal for all: a limit on the service as a whole
IDENTIFIED = Source("identified")  # the caller, however its identity was established


def parse_source(text: str) -> Source:
    """Read `header:NAME`, `cookie:NAME`, `query:NAME`, `path:NAME`, `json:PATH`, `form:NAME`, `bearer`, `org`,
    `identified`, `client` or `everyone`; with ` lower` behind it, values are compared in lower case.

    Raises:
        ValueError: it is none of these.
    """
    lower = text.endswith(LOWER)
    kind, colon, name = text.removesuffix(LOWER).partition(":")
    if kind == "header" and name and HEADER_CHARACTERS.issuperset(name):
        return Source("header", name, lower)
    if kind in OF_REQUEST and name and name == name.strip() and len(name) <= PRINCIPAL_BYTES_MAX:
        return Source(kind, name, lower)
    if kind in PLAIN_KINDS and not colon and not lower:
        return Source(kind)
    known = ", ".join([*(f"{each}:NAME" for each in NAMED_KINDS), *PLAIN_KINDS[:-1]])
    msg = f"{text!r} is not a principal source: {known} or {PLAIN_KINDS[-1]}"
    raise ValueError(msg)


class PrincipalReader:
    """Reads principals from a request's headers.

    Args:
        sources: every source that any rule names.
        trust: the proxies that may name another client address.
        secret: key of the digests, at most 64 bytes; the same in every process that shares a store.
        verified: of them those that name a principal only when what they hold is verified. Their headers are
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
        self.watched = watched_for(each for source in sources for each in source.each if each not in verified)
        self._forwarding = trust.header.encode() if trust.anyone else None
        if self._forwarding is not None:
            self.watched.setdefault(self._forwarding, self._forwarding)

    def read(
        self,
        sources: Iterable[Source],
        headers: Iterable[tuple[bytes, bytes]],
        peer: str | None,
        names: Iterable[tuple[str, str]] = (),
        found: Mapping[Source, bytes] | None = None,
    ) -> Principal:
        """Return the first of *sources* that the request has, else its client.

        Args:
            sources: in order.
            headers: of the request.
            peer: address of the socket's other end; None on a unix socket.
            names: source and principal of each of its credentials that was verified.
            found: the values of sources `OF_REQUEST`, by single source.

        Raises:
            MalformedRequest: a header that names a principal is there twice, has an underscore twin, or is too long.
        """
        return self.principal(*self.find(sources, headers, peer, names, found))

    def find(
        self,
        sources: Iterable[Source],
        headers: Iterable[tuple[bytes, bytes]],
        peer: str | None,
        names: Iterable[tuple[str, str]] = (),
        found: Mapping[Source, bytes] | None = None,
    ) -> tuple[str, bytes]:
        """Return, like `read`, the source and the value, which no output may show (8)."""
        for source in sources:
            if source.parts:
                values = [self._value(part, headers, peer, names, found) for part in source.parts]
                there = [value for value in values if value is not None]
                if len(there) == len(values):
                    # With the length before each, so that no two combinations read the same (7).
                    return str(source), b"".join(b"%d:%s" % (len(value), value) for value in there)
            else:
                value = self._value(source, headers, peer, names, found)
                if value is not None:
                    return str(source), value
        return "client", self._client_value(headers, peer)

    def _value(
        self,
        source: Source,
        headers: Iterable[tuple[bytes, bytes]],
        peer: str | None,
        names: Iterable[tuple[str, str]],
        found: Mapping[Source, bytes] | None,
    ) -> bytes | None:
        """Return what a request has of one single *source*; None if it has nothing."""
        kind = source.kind
        if kind == "identified":
            return next((name.encode() for where, name in names if where != "org"), None)
        if source in self._verified:
            return next((name.encode() for where, name in names if where == str(source)), None)
        if kind == "client":
            return self._client_value(headers, peer)
        if kind == "everyone":
            return b""
        if kind in OF_REQUEST:
            value = b"" if found is None else found.get(source, b"")
        else:
            value = credential(source, headers, self.watched) if kind in OF_HEADERS else b""
        if source.lower:
            value = value.decode("utf-8", "surrogateescape").lower().encode("utf-8", "surrogateescape")
        return value or None

    def _client_value(self, headers: Iterable[tuple[bytes, bytes]], peer: str | None) -> bytes:
        return client_id(self.client(headers, peer), self._trust.ipv6_prefix).encode()

    def name(
        self,
        sources: Iterable[Source],
        headers: Iterable[tuple[bytes, bytes]],
        peer: str | None,
        names: Iterable[tuple[str, str]] = (),
        found: Mapping[Source, bytes] | None = None,
    ) -> str:
        """Return what `find` finds as people may be shown it: its first `NAME_CHARACTERS_MAX` characters.

        Empty for a token that is not verified, as its reader could use it.
        """
        source, value = self.find(sources, headers, peer, names, found)
        if source == "bearer" and all(verified != source for verified, _ in names):
            return ""
        return value.decode("utf-8", "backslashreplace")[:NAME_CHARACTERS_MAX]

    def client(self, headers: Iterable[tuple[bytes, bytes]], peer: str | None) -> Address | None:
        """Return the client's address, as far as the trusted proxies say; None on a unix socket."""
        lines = [value for name, value in headers if name.lower() == self._forwarding]
        nodes = forwarded_for((line.decode("latin-1") for line in lines), self._trust.header) if lines else []
        return resolve_client(peer, nodes, self._trust)

    def principal(self, source: str, value: bytes) -> Principal:
        """Return the principal that *source* calls *value*."""
        # The length before the source keeps ("a", "b:c") and ("a:b", "c") apart (7).
        text = b"%d:%s:%s" % (len(source), source.encode(), value)
        digest = blake2b(text, digest_size=DIGEST_BYTES, key=self._secret, person=b"principal").hexdigest()
        return Principal(source, digest)


def watched_for(sources: Iterable[Source]) -> dict[bytes, bytes]:
    """Return every spelling of the headers that *sources* are in, lower case, each with the name it means."""
    named = {source.name or "authorization" for source in sources if source.kind in ("header", "bearer")}
    return {twin.encode(): name.encode() for name in named for twin in underscore_twins(name)}


def credential(source: Source, headers: Iterable[tuple[bytes, bytes]], watched: Mapping[bytes, bytes]) -> bytes:
    """Return what *source*, a header or `bearer`, holds; empty when the request does not have it.

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
    """Return every spelling of *name* with some of its hyphens as underscores; itself first."""
    parts = name.split("-")
    if len(parts) > 7:  # 64 spellings are enough; the all-underscore one is what gateways produce
        return [name, name.replace("-", "_")]
    return [
        "".join(part + glue for part, glue in zip(parts, (*glues, ""), strict=True))
        for glues in product("-_", repeat=len(parts) - 1)
    ]
