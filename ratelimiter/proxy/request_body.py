"""The body of one request on its way to the upstream: taken out of its framing, shown to the judge, framed anew."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ratelimiter.proxy.body import BodyError, ChunkedBody, SizedBody, chunk, last_chunk
from ratelimiter.proxy.header_policy import trailer_lines

if TYPE_CHECKING:
    from ratelimiter.proxy.head import Fields
    from ratelimiter.proxy.settings import ProxySettings


class RequestBodyError(ValueError):
    """A body that is not forwarded.

    Attributes:
        status: what the client is told; the message is a predicate, in words fit for it.
    """

    def __init__(self, status: int, issue: str) -> None:
        super().__init__(issue)
        self.status = status


class RequestBody:
    """A body, from its first byte to its last.

    Args:
        fields: of its request.
        settings: on its length and rate.

    Attributes:
        received: bytes of content that have come.
        preview: content that was read for the judge and has not been sent on; None once that is over, or never began.
    """

    __slots__ = ("_body", "_read_s", "_settings", "_wanted", "preview", "received")

    def __init__(self, fields: Fields, settings: ProxySettings) -> None:
        self._settings = settings
        self._body = ChunkedBody() if fields.chunked else SizedBody(fields.length or 0)
        self._read_s = 0.0  # for how long it has been read
        self._wanted = 0
        self.received = 0
        self.preview: bytearray | None = None

    @property
    def done(self) -> bool:
        """True once all of it has come."""
        return self._body.done

    @property
    def rest(self) -> bytes:
        """The bytes that came behind its end."""
        return self._body.rest

    def feed(self, data: bytes) -> bytes:
        """Return the content that *data* holds.

        Raises:
            RequestBodyError: its framing is broken, or it is too long.
        """
        try:
            content = self._body.feed(data)
        except BodyError as fault:
            raise RequestBodyError(400, str(fault)) from None
        self.received += len(content)
        if 0 < self._settings.body_max < self.received:
            raise RequestBodyError(413, "has too long a body")
        return content

    def drop(self, data: bytes) -> bytes:
        """Read *data* of a body that is not forwarded, as far as it can be; return the bytes behind its end."""
        try:
            self._body.feed(data)
        except BodyError:
            return b""
        return self._body.rest

    def begin_preview(self, wanted: int) -> None:
        """Keep what is read, so that the judge can see the first *wanted* bytes."""
        self.preview = bytearray()
        self._wanted = wanted

    def seen(self, content: bytes) -> bytes | None:
        """Return the preview for the judge, *content* being the latest part; None if more of it must come first."""
        preview: bytearray = self.preview  # type: ignore[assignment]  # it has begun
        preview += content
        return bytes(preview[: self._wanted]) if self._body.done or len(preview) >= self._wanted else None

    def framed(self, content: bytes, dropped: frozenset[bytes]) -> bytes:
        """Return *content*, the latest part, as it is sent on.

        Args:
            content: as `feed` gave it.
            dropped: lower-case names of trailer fields that are not sent on.
        """
        body = self._body
        if isinstance(body, ChunkedBody):
            content = chunk(content) if content else b""
            if body.done:
                content += last_chunk(trailer_lines(body.trailers, dropped))
        return content

    def too_slow(self, passed_s: float) -> bool:
        """Return True if the body comes too slowly, after *passed_s* more seconds of reading."""
        self._read_s += passed_s
        counted_s = self._read_s - self._settings.body_grace_ms / 1000
        return counted_s > 0 and self.received < counted_s * self._settings.body_rate_min
