"""The facts of one request beyond its method and path: each is read when a rule asks for it, and once."""

from __future__ import annotations

from functools import lru_cache
from typing import TYPE_CHECKING

from ratelimiter.core.form import FormFields, read_cookies, read_multipart, read_urlencoded
from ratelimiter.core.json_body import JsonFields, read_document, read_fields, values_at
from ratelimiter.core.principal import underscore_twins
from ratelimiter.core.request import PRINCIPAL_BYTES_MAX, MalformedRequest

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from ratelimiter.core.client_address import Address
    from ratelimiter.core.principal import Source
    from ratelimiter.core.request import Request

URLENCODED = b"application/x-www-form-urlencoded"
MULTIPART = b"multipart/form-data"


class Facts:
    """Reads a request on demand.

    Args:
        request: with its body, as far as that was asked for.
        bytes_max: of a body that is looked into.
        client: resolves the client's address.
        plan: resolves the plan.
        identified: True if the caller's identity is known.
    """

    def __init__(
        self,
        request: Request,
        bytes_max: int,
        client: Callable[[], Address | None],
        plan: Callable[[], str],
        *,
        identified: bool,
    ) -> None:
        self.request = request
        self.client = client
        self.plan = plan
        self.identified = identified
        self._bytes_max = bytes_max
        self._headers: dict[bytes, list[bytes]] | None = None
        self._read: dict[str, FormFields] = {}
        self._json: list[object] = []  # the document, once it was read
        self._json_fields: dict[bool, JsonFields | None] = {}

    # --- For conditions: every value that some reader could take

    def values(self, kind: str, name: str) -> Sequence[bytes]:
        """Return the values of a host, a header, a query parameter or a cookie; each as often as it is there."""
        if kind == "host":
            return [host_of(value) for value in self._lines(b"host")]
        if kind == "header":
            return [value.strip() for spelling in _spellings(name) for value in self._lines(spelling)]
        try:
            return self._fields(kind).get(name.encode(), ())
        except MalformedRequest:
            return ()

    def json_fields(self, *, deep: bool) -> JsonFields | None:
        """Return the fields of the JSON body, none if it is empty; None if the application may read anything in it."""
        body = self.request.body
        if body is None or len(body) > self._bytes_max or (body and self._encoded()):
            return None
        if deep not in self._json_fields:
            self._json_fields[deep] = read_fields(body, deep=deep) if body else JsonFields()
        return self._json_fields[deep]

    # --- For keys: the one value that every reader takes

    def key(self, source: Source, captured: Sequence[dict[str, str]]) -> bytes:
        """Return the value of *source*, a cookie, a parameter or a field of the body; empty if it is absent.

        Args:
            source: of one of these kinds.
            captured: the path parameters, by each path that the request may be routed by.

        Raises:
            MalformedRequest: it can be read in two ways, is too long, or is neither text nor a number.
        """
        if source.kind == "path":
            found = {values.get(source.name, "").encode() for values in captured}
        elif source.kind == "json":
            found = set(self._json_values(source))
        else:
            values = self._fields(source.kind).get(source.name.encode(), [])
            if len(values) > 1:
                raise MalformedRequest(f"{source.kind}:{source.name}", "is there more than once")
            found = set(values)
        if len(found) > 1:
            raise MalformedRequest(f"{source.kind}:{source.name}", "can be read in two ways")
        value = found.pop() if found else b""
        if len(value) > PRINCIPAL_BYTES_MAX:
            raise MalformedRequest(f"{source.kind}:{source.name}", f"is longer than {PRINCIPAL_BYTES_MAX} bytes")
        return value

    def _json_values(self, source: Source) -> list[bytes]:
        body = self._body()
        if not body or self._content_type() in (URLENCODED, MULTIPART):
            return []
        if not self._json:
            self._json.append(read_document(body))
        return values_at(self._json[0], source.name)

    def _fields(self, kind: str) -> FormFields:
        fields = self._read.get(kind)
        if fields is None:
            if kind == "query":
                fields = read_urlencoded(self.request.target.partition(b"?")[2], "query")
            elif kind == "cookie":
                fields = read_cookies(self._lines(b"cookie"))
            else:
                fields = self._form()
            self._read[kind] = fields
        return fields

    def _form(self) -> FormFields:
        kind, body = self._content_type(), self._body()
        if not body or kind not in (URLENCODED, MULTIPART):
            return FormFields()
        if kind == URLENCODED:
            return read_urlencoded(body, "body")
        return read_multipart(body, self._lines(b"content-type")[0])

    def _body(self) -> bytes:
        """Return the body to find a key in. One that cannot be looked into is refused: it could hold any key."""
        body = self.request.body
        lengths = self._lines(b"content-length")
        stated = int(lengths[0][:20]) if lengths and lengths[0].isdigit() else 0
        if stated > self._bytes_max or (body is not None and len(body) > self._bytes_max):
            raise MalformedRequest("body", f"is longer than {self._bytes_max} bytes")
        if body and self._encoded():
            raise MalformedRequest("body", "must not be encoded")
        return body or b""

    def _content_type(self) -> bytes:
        lines = self._lines(b"content-type")
        if len(lines) > 1:
            raise MalformedRequest("content-type", "is there more than once")
        return lines[0].partition(b";")[0].strip().lower() if lines else b""

    def _encoded(self) -> bool:
        return bool(self._lines(b"content-encoding"))

    def _lines(self, name: bytes) -> list[bytes]:
        if self._headers is None:
            self._headers = {}
            for sent_as, value in self.request.headers:
                self._headers.setdefault(sent_as.lower(), []).append(value)
        return self._headers.get(name, [])


@lru_cache(256)  # names are the policy's
def _spellings(name: str) -> tuple[bytes, ...]:
    return tuple(twin.encode() for twin in underscore_twins(name))


def host_of(value: bytes) -> bytes:
    """Return the host that a Host header names, in lower case, without port and final dot."""
    host = value.strip().lower()
    host = host.partition(b"]")[0] + b"]" if host.startswith(b"[") else host.partition(b":")[0]
    return host.removesuffix(b".")
