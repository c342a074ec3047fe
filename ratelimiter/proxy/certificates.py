"""TLS on both sides of the proxy: certificates that are loaded again when their files change, private authorities."""

from __future__ import annotations

import asyncio
import base64
import logging
import os
import re
import ssl
from datetime import UTC, datetime
from typing import TYPE_CHECKING

from ratelimiter.errors import ConfigError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

log = logging.getLogger(__name__)

POLL_S = 2.0  # between two looks at the files
_PEM = re.compile(rb"-----BEGIN CERTIFICATE-----(.+?)-----END CERTIFICATE-----", re.DOTALL)


def upstream_context(
    ca: str | None = None, cert: str | None = None, key: str | None = None, *, flags: str = "--upstream"
) -> ssl.SSLContext:
    """Return the TLS of connections to the upstream.

    Args:
        ca: path of the authorities that vouch for the upstream; by default those of the system.
        cert: path of the certificate that the proxy shows.
        key: path of its key; None if it is in the same file.
        flags: beginning of the flags by which they were given.

    Raises:
        ConfigError: a file cannot be used.
    """
    try:
        context = ssl.create_default_context(cafile=ca)
    except (OSError, ssl.SSLError) as fault:
        raise _unusable(f"{flags}-ca", ca, fault) from None
    context.set_alpn_protocols(["http/1.1"])
    if cert is not None:
        try:
            context.load_cert_chain(cert, key)
        except (OSError, ssl.SSLError) as fault:
            raise _unusable(f"{flags}-cert", cert, fault) from None
    return context


def listener_context(cert: str, key: str | None, client_ca: str | None = None) -> ssl.SSLContext:
    """Return the TLS of a listener.

    Args:
        cert: path of the certificate, followed by those that vouch for it.
        key: path of its key; None if it is in the same file.
        client_ca: path of the authorities that vouch for clients; then only clients with a certificate are served.

    Raises:
        ConfigError: a file cannot be used.
    """
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.set_alpn_protocols(["http/1.1"])
    try:
        context.load_cert_chain(cert, key)
    except (OSError, ssl.SSLError) as fault:
        raise _unusable("--tls-cert", cert, fault) from None
    if client_ca is not None:
        try:
            context.load_verify_locations(client_ca)
        except (OSError, ssl.SSLError) as fault:
            raise _unusable("--tls-client-ca", client_ca, fault) from None
        context.verify_mode = ssl.CERT_REQUIRED
    return context


def _unusable(flag: str, path: str | None, fault: OSError) -> ConfigError:
    return ConfigError(f"{flag}: {path!r} cannot be used ({getattr(fault, 'strerror', None) or fault})")


class Credentials:
    """The TLS of one side, made of files.

    Args:
        side: `listener` or `upstream`, for logs and metrics.
        files: that it is made of.
        make: makes it; raises a ConfigError.
        cert: the file among them with the certificate that this side shows; None if it shows none.

    Attributes:
        context: for a listener, which keeps it: new connections get what was loaded last.
        current: what was loaded last.
    """

    def __init__(
        self, side: str, files: Iterable[str | None], make: Callable[[], ssl.SSLContext], cert: str | None
    ) -> None:
        self.side = side
        self._files = [file for file in files if file is not None]
        self._make = make
        self._cert = cert
        self._state = self._look()
        self._seen = self._state
        self.current = make()
        self.expires_s = self._expiry()
        self.context = make()
        self.context.sni_callback = self._switch

    def _switch(self, connection: ssl.SSLObject, name: str | None, context: ssl.SSLContext) -> None:  # noqa: ARG002
        connection.context = self.current

    def _look(self) -> tuple[object, ...]:
        found: list[object] = []
        for file in self._files:
            try:
                told = os.stat(file)
                found.append((told.st_mtime_ns, told.st_ino, told.st_size))
            except OSError as fault:
                found.append(fault.errno)
        return tuple(found)

    def _expiry(self) -> float:
        if self._cert is None:
            return 0.0
        try:
            with open(self._cert, "rb") as file:
                return not_after_s(file.read())
        except (OSError, ValueError):
            return 0.0

    def poll(self) -> None:
        """Load the files again if they have changed since they were loaded, and not since the last look."""
        state = self._look()
        settled, self._seen = state == self._seen, state
        if settled and state != self._state:  # else one of a pair may be replaced, and the other not yet
            self.reload()

    def reload(self) -> None:
        """Load the files; if they cannot be used, keep what was loaded last and log the reason."""
        self._state = self._seen = self._look()
        try:
            self.current = self._make()
        except ConfigError as fault:
            log.error("%s; the certificate that was loaded before stays in use", fault)
            return
        self.expires_s = self._expiry()
        until = datetime.fromtimestamp(self.expires_s, UTC).isoformat() if self.expires_s else "unknown"
        log.warning("the certificate of the %s is loaded again; it is valid until %s", self.side, until)


async def watch(
    credentials: Sequence[Credentials], polled: Callable[[], None] = lambda: None, poll_s: float = POLL_S
) -> None:
    """Load files again when they change, for ever, in a thread; call *polled* after each look."""
    while True:
        await asyncio.sleep(poll_s)
        for each in credentials:
            await asyncio.to_thread(each.poll)
        polled()


def not_after_s(pem: bytes) -> float:
    """Return the Unix time until which the first certificate in *pem* is valid (RFC 5280 section 4.1.2.5).

    Raises:
        ValueError: there is no certificate in it.
    """
    match = _PEM.search(pem)
    if match is None:
        msg = "there is no certificate in it"
        raise ValueError(msg)
    certificate = _parts(_parts(base64.b64decode(match[1]))[0][1])[0][1]  # the signed part
    fields = _parts(certificate)
    if fields[0][0] == 0xA0:  # an explicit version
        del fields[0]
    tag, value = _parts(fields[3][1])[1]  # behind serial number, algorithm and issuer stands the validity
    text = value.decode("ascii")
    if tag == 0x17:  # UTCTime, whose years are of 1950 to 2049
        text = ("19" if text[:2] >= "50" else "20") + text
    return datetime.strptime(text, "%Y%m%d%H%M%SZ").replace(tzinfo=UTC).timestamp()


def _parts(der: bytes) -> list[tuple[int, bytes]]:
    """Return tags and contents of the elements that *der* consists of (X.690 section 8.1)."""
    found, at = [], 0
    while at < len(der):
        tag, size, at = der[at], der[at + 1], at + 2
        if size & 0x80:
            count = size & 0x7F
            size, at = int.from_bytes(der[at : at + count], "big"), at + count
        if at + size > len(der):
            msg = "it is cut off"
            raise ValueError(msg)
        found.append((tag, der[at : at + size]))
        at += size
    return found
