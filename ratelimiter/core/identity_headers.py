"""The headers that tell the upstream the identity of a request's caller."""

from __future__ import annotations

from typing import TYPE_CHECKING
from urllib.parse import quote

from ratelimiter.core.principal import underscore_twins

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from ratelimiter.core.identity import Identity

# Of what a header may hold (RFC 9110 section 5.5) visible ASCII, less the percent sign that announces an escape.
SAFE = "".join(chr(code) for code in range(0x21, 0x7F) if chr(code) != "%")


class UpstreamIdentityHeaders:
    """Tells the upstream the identity of the caller, in headers that a client cannot send.

    Args:
        tell_upstream: for what of `TELLABLE`, the name of the header that tells it.

    Attributes:
        names: every spelling of those headers, in lower case: the underscored ones, too, as some frameworks read them
            as the same.
    """

    def __init__(self, tell_upstream: Sequence[tuple[str, str]]) -> None:
        self._told = [(what, name.lower().encode()) for what, name in tell_upstream]
        self.names = frozenset(twin.encode() for _, name in tell_upstream for twin in underscore_twins(name.lower()))

    def headers(self, identity: Identity) -> list[tuple[bytes, bytes]]:
        """Return the headers that tell of *identity*; none for what is not known.

        Values are UTF-8 in which all but visible ASCII is percent-encoded, so that none can end a line or begin
        another; scopes are sorted and parted by spaces.
        """
        headers = []
        for what, name in self._told:
            value = getattr(identity, what)
            words = sorted(value) if what == "scopes" else [value]
            text = " ".join(quote(word, safe=SAFE) for word in words)
            if text:
                headers.append((name, text.encode()))
        return headers

    def replaced(self, headers: Iterable[tuple[bytes, bytes]], identity: Identity) -> list[tuple[bytes, bytes]]:
        """Return *headers* of a request with ours in place of whatever it says of them."""
        names = self.names
        return [*(header for header in headers if header[0].lower() not in names), *self.headers(identity)]
