"""What a forwarded message may carry: tables and functions from values to values."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from ratelimiter.core.reply import REASON_PHRASES

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    Header = tuple[bytes, bytes]

# RFC 9110 section 7.6.1: meant for one connection, so never forwarded. The last three: credentials for a proxy are not
# the upstream's; `Proxy` would become an environment variable of CGI programs that HTTP clients obey.
HOP_BY_HOP = frozenset(
    {
        b"connection",
        b"proxy-connection",
        b"keep-alive",
        b"te",
        b"transfer-encoding",
        b"upgrade",
        b"http2-settings",
        b"proxy-authenticate",
        b"proxy-authorization",
        b"proxy",
    }
)

# Who a request came from and through. Everybody can write them, so only a trusted peer's are passed on.
FORWARDED_FOR, FORWARDED_PROTO, FORWARDED_HOST = b"x-forwarded-for", b"x-forwarded-proto", b"x-forwarded-host"
FORWARDED = b"forwarded"
PROVENANCE = frozenset({FORWARDED_FOR, FORWARDED_PROTO, FORWARDED_HOST, FORWARDED, b"x-real-ip", b"x-forwarded-port"})

# RFC 9112 section 7.1.2, RFC 9110 section 6.5.1: what a message is, where it goes and who sent it is not for trailers.
NOT_IN_TRAILERS = (
    HOP_BY_HOP
    | PROVENANCE
    | {
        b"host",
        b"content-length",
        b"content-type",
        b"content-encoding",
        b"content-range",
        b"trailer",
        b"authorization",
        b"cookie",
        b"set-cookie",
        b"expect",
        b"cache-control",
        b"max-forwards",
        b"range",
        b"location",
        b"retry-after",
        b"vary",
        b"date",
        b"age",
        b"expires",
        b"warning",
        b"www-authenticate",
    }
)

UPGRADES = frozenset({b"websocket"})  # h2c would be a tunnel past every check (rows 92, 123 of the input table)

BODILESS = frozenset({204, 304})  # RFC 9112 section 6.3, beside every 1xx and every answer to HEAD

X_FORWARDED, RFC_7239 = "x-forwarded", "forwarded"


def has_body(method: str, status: int) -> bool:
    """Whether the final response with *status* to *method* carries a body (RFC 9112 section 6.3)."""
    return method != "HEAD" and status not in BODILESS


def status_line(status: int) -> bytes:
    """The first line of a response of our own."""
    return b"HTTP/1.1 %d %s\r\n" % (status, REASON_PHRASES.get(status, "").encode())


def field_lines(headers: Iterable[Header]) -> bytes:
    """*headers* as they are written, each with its line end."""
    return b"".join([b"%s: %s\r\n" % header for header in headers])


def via_line(name: bytes, *, http_1_0: bool) -> bytes:
    """That a message came through *name*, and in which version of HTTP it came there (RFC 9110 section 7.6.3)."""
    return b"Via: 1.%d %s\r\n" % (not http_1_0, name)


def trailer_lines(lines: Sequence[bytes], ours: frozenset[bytes] = frozenset()) -> list[bytes]:
    """Of the field *lines* of a trailer section those that may be passed on; *ours* are names that are ours to say."""
    kept = []
    for line in lines:
        name = line.partition(b":")[0].lower()
        if name not in NOT_IN_TRAILERS and name not in ours and b"_" not in name:
            kept.append(line)
    return kept


class Provenance(NamedTuple):
    """How a request's way here is told to the upstream, for one client connection."""

    peer: str | None  # address of the socket's other end; None on a unix socket
    scheme: bytes  # http or https
    trusted: bool  # whether the peer may speak for others
    families: Sequence[str] = (X_FORWARDED,)  # of X_FORWARDED and RFC_7239

    def lines(self, headers: Sequence[Header], host: bytes) -> list[bytes]:
        """The field lines about provenance that the upstream gets, in place of those among *headers*.

        An untrusted peer's are replaced. A trusted peer's are kept, and the peer appended to the list of addresses.
        """
        said = [header for header in headers if header[0] in PROVENANCE] if self.trusted else []
        lines = [b"%s: %s" % (name, value) for name, value in said if name not in (FORWARDED_FOR, FORWARDED)]
        before = {
            name: b", ".join(value for said_name, value in said if said_name == name and value)
            for name in (FORWARDED_FOR, FORWARDED)
        }
        told = {name for name, _ in said}
        if X_FORWARDED in self.families:
            hops = [before[FORWARDED_FOR], (self.peer or "unknown").encode()]
            lines.append(b"%s: %s" % (FORWARDED_FOR, b", ".join(filter(None, hops))))
            if FORWARDED_PROTO not in told:
                lines.append(b"%s: %s" % (FORWARDED_PROTO, self.scheme))
            if FORWARDED_HOST not in told and host:
                lines.append(b"%s: %s" % (FORWARDED_HOST, host))
        elif before[FORWARDED_FOR]:
            lines.append(b"%s: %s" % (FORWARDED_FOR, before[FORWARDED_FOR]))
        if RFC_7239 in self.families:
            lines.append(b"%s: %s" % (FORWARDED, b", ".join(filter(None, [before[FORWARDED], self._element(host)]))))
        elif before[FORWARDED]:
            lines.append(b"%s: %s" % (FORWARDED, before[FORWARDED]))
        return lines

    def _element(self, host: bytes) -> bytes:
        """One hop, ours, in the words of RFC 7239 section 4; an IPv6 address is bracketed and quoted (section 6)."""
        node = (self.peer or "unknown").encode()
        if b":" in node:
            node = b'"[%s]"' % node
        element = b"for=%s;proto=%s" % (node, self.scheme)
        return b'%s;host="%s"' % (element, host) if host else element
