"""Who is charged: the first source that a request has, reduced to a keyed digest."""

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


class PrincipalReader:
    """Reads principals from a request's headers.

    Args:
        sources: every source that any rule names.
        trust: who may speak for another address.
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
        """Return the first of *sources* that the request has, else its client.

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
        """Return, like `read`, the source and the value, which no output may show (8)."""
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
        """Return what `find` finds as people may be shown it: its first `NAME_CHARACTERS_MAX` characters.

        Empty for a token that is not verified, as its reader could use it.
        """
        source, value = self.find(sources, headers, peer, names)
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
