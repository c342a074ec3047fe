"""The fields that tell the upstream where a request came from: X-Forwarded-*, Forwarded and Via."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from ratelimiter.proxy.header_policy import FORWARDED, FORWARDED_FOR, FORWARDED_HOST, FORWARDED_PROTO, PROVENANCE

if TYPE_CHECKING:
    from collections.abc import Sequence

    Header = tuple[bytes, bytes]

X_FORWARDED, RFC_7239 = "x-forwarded", "forwarded"


def via_line(name: bytes, *, http_1_0: bool) -> bytes:
    """Return the Via line of a message that came through *name* (RFC 9110 section 7.6.3)."""
    return b"Via: 1.%d %s\r\n" % (not http_1_0, name)


class Provenance(NamedTuple):
    """The provenance of a client connection, as the upstream is told of it."""

    peer: str | None  # address of the socket's other end; None on a unix socket
    scheme: bytes  # http or https
    trusted: bool  # True if the peer may speak for others
    families: Sequence[str] = (X_FORWARDED,)  # of X_FORWARDED and RFC_7239

    def lines(self, headers: Sequence[Header], host: bytes) -> list[bytes]:
        """Return the field lines about provenance that the upstream gets, in place of those among *headers*.

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
