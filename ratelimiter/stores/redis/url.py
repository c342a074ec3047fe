"""Addresses and credentials of Redis servers, read from URLs."""

from __future__ import annotations

import importlib
import ssl
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import parse_qsl, unquote, urlsplit

from ratelimiter.errors import Kind, StoreMisconfigured
from ratelimiter.stores.redis import control

if TYPE_CHECKING:
    from urllib.parse import SplitResult

PORT = 6379
CLIENT_NAME = "ratelimiter"  # what CLIENT LIST shows

# The query of a URL: what each word means. Those of TLS are spelled as redis-py spells them.
OPTIONS = {
    "db": "number of the database, also the path of the URL",
    "client_name": "what CLIENT LIST shows",
    "password_file": "file that holds the password, read at every connect, so that it can be rotated",
    "credential_provider": "module:name of a redis-py CredentialProvider, or of a function that makes one",
}
TLS_OPTIONS = {
    "ssl_ca_certs": "file with the CA certificates; default: the system's",
    "ssl_certfile": "file with our own certificate",
    "ssl_keyfile": "file with its key",
    "ssl_check_hostname": "true (default): the certificate must name the host; or false",
    "ssl_cert_reqs": "required (default): verify the certificate of the server; or none",
}


@dataclass(frozen=True, slots=True)
class Address:
    """The address of one server, and the credentials.

    Args:
        host: name or IP address.
        port: 1 to 65535.
        path: of a unix socket; host and port do not count then.
        db: number of the database, at least 0.
        username: of an ACL user; empty for the default user.
        password: empty for none.
        password_file: read at every connect, instead of *password*.
        provider: redis-py's `CredentialProvider`, asked at every connect, instead of user name and password.
        client_name: what CLIENT LIST shows.
        tls: how to speak TLS; None for plain TCP.
    """

    host: str = "localhost"
    port: int = PORT
    path: str = ""
    db: int = 0
    username: str = ""
    password: str = field(default="", repr=False)
    password_file: str = ""
    provider: Any = field(default=None, repr=False)
    client_name: str = CLIENT_NAME
    tls: ssl.SSLContext | None = None

    def __str__(self) -> str:
        """Return host and port, or the path, for messages; never credentials."""
        host = f"[{self.host}]" if ":" in self.host else self.host
        return self.path or f"{host}:{self.port}"

    @property
    def authenticates(self) -> bool:
        """True if a connection has to authenticate."""
        return bool(self.username or self.password or self.password_file or self.provider is not None)

    async def credentials(self) -> tuple[str, str]:
        """Return the user name (empty for the default user) and the password that are valid now.

        Raises:
            StoreMisconfigured: the file that holds the password cannot be read, or the provider failed.
        """
        if self.provider is not None:
            return await control.credentials_of(self.provider)
        if not self.password_file:
            return self.username, self.password
        try:
            return self.username, _contents(self.password_file)
        except (OSError, UnicodeDecodeError) as error:
            msg = f"password_file: {error}"
            raise StoreMisconfigured(msg, Kind.AUTHENTICATION) from error

    async def locate(self) -> Address:
        """Return this address. `ratelimiter.stores.redis.sentinel` asks the Sentinels instead."""
        return self

    def placed(self, host: str, port: int, path: str = "", db: int = 0) -> Address:
        """Return the address of another server with the same credentials."""
        return replace(self, host=host, port=port, path=path, db=db)


def address_of(parts: SplitResult) -> Address:
    """Return the address that a `redis://`, `rediss://` (TLS) or `unix://` URL means.

    `redis://user:password@host:port/db?option=value`; everything but the scheme may be left out. User and password are
    percent-decoded. `unix:///path/of/the.sock?db=1`.

    Raises:
        ValueError: an unknown option, or a value that cannot be used. Never repeats a password.
    """
    unix = parts.scheme == "unix"
    options = options_of(parts, OPTIONS)
    if unix and not parts.path:
        msg = "'unix://' is not the path of a socket; write unix:///run/redis.sock"
        raise ValueError(msg)
    return entry_of(parts, options).placed(
        host=parts.hostname or "localhost",
        port=port_of(parts),
        path=unquote(parts.path) if unix else "",
        db=db_of(options.get("db", "") or ("" if unix else parts.path.strip("/"))),
    )


def entry_of(parts: SplitResult, options: dict[str, str]) -> Address:
    """Return an address with the credentials and the TLS options of a URL.

    Raises:
        ValueError: a value that cannot be used.
    """
    if options.get("credential_provider") and (parts.username or parts.password or options.get("password_file")):
        msg = "credential_provider: says user name and password by itself; leave out those of the URL and password_file"
        raise ValueError(msg)
    return Address(
        username=unquote(parts.username or ""),
        password=unquote(parts.password or ""),
        password_file=options.get("password_file", ""),
        provider=_provider(options["credential_provider"]) if options.get("credential_provider") else None,
        client_name=options.get("client_name", CLIENT_NAME),
        tls=_tls(options) if parts.scheme.startswith("rediss") else None,
    )


def options_of(parts: SplitResult, known: dict[str, str]) -> dict[str, str]:
    """Return the options of a URL; a scheme with TLS knows those of TLS, too.

    Raises:
        ValueError: an option that is not *known*.
    """
    if parts.scheme.startswith("rediss"):
        known = known | TLS_OPTIONS
    options = dict(parse_qsl(parts.query, keep_blank_values=True))
    for name in options:
        if name not in known:
            msg = f"{name[:40]!r} is not an option of {parts.scheme}://; write one of {', '.join(known)}"
            raise ValueError(msg)
    return options


def hosts_of(parts: SplitResult, port: int) -> list[tuple[str, int]]:
    """Return the hosts of a URL that names several, `host1:1,host2,[::1]:3`; *port* where none is given.

    Raises:
        ValueError: no host, or something that is not a port.
    """
    hosts = [urlsplit("//" + word) for word in parts.netloc.rpartition("@")[2].split(",") if word]
    if not hosts:
        msg = f"'{parts.scheme}://' is not followed by hosts; write {parts.scheme}://host1:{port},host2:{port}"
        raise ValueError(msg)
    return [(host.hostname or "localhost", port_of(host, port)) for host in hosts]


def port_of(parts: SplitResult, default: int = PORT) -> int:
    """Return the port of a URL.

    Raises:
        ValueError: it is not a port.
    """
    try:
        port = default if parts.port is None else parts.port
    except ValueError:
        port = 0
    if not port:
        msg = "what follows the host is not a port from 1 to 65535; write redis://host:6379"
        raise ValueError(msg)
    return port


def db_of(word: str) -> int:
    """Return the number of a database; 0 for an empty word.

    Raises:
        ValueError: it is not a number.
    """
    if word and not (word.isascii() and word.isdigit() and len(word) <= 9):
        msg = f"{word[:40]!r} is not the number of a database; write redis://host:6379/0"
        raise ValueError(msg)
    return int(word or 0)


def _contents(path: str) -> str:
    return Path(path).read_text(encoding="utf-8").strip()


def _provider(word: str) -> object:
    """Import the credential provider that *word* names, `package.module:name`.

    Raises:
        ValueError: there is no such provider.
    """
    module, _, name = word.partition(":")
    try:
        found: Any = importlib.import_module(module)
        for part in name.split("."):
            found = getattr(found, part)
        provider = found if control.is_provider(found) else found()
    except Exception as error:  # whatever the module does
        msg = f"credential_provider: {word[:80]!r} cannot be used ({error}); write package.module:name"
        raise ValueError(msg) from error
    if not control.is_provider(provider):
        msg = f"credential_provider: {word[:80]!r} is not a CredentialProvider of redis-py; write module:name of one"
        raise ValueError(msg)
    return provider


def _tls(options: dict[str, str]) -> ssl.SSLContext:
    checks_hostname = _chosen(options, "ssl_check_hostname", ("true", "false")) == "true"
    requires = _chosen(options, "ssl_cert_reqs", ("required", "none")) == "required"
    try:
        context = ssl.create_default_context(cafile=options.get("ssl_ca_certs"))
        if "ssl_certfile" in options:
            context.load_cert_chain(options["ssl_certfile"], options.get("ssl_keyfile"))
    except OSError as error:
        named = [value for name in ("ssl_ca_certs", "ssl_certfile", "ssl_keyfile") if (value := options.get(name))]
        msg = f"{', '.join(named)} is not what TLS needs ({error.strerror or error}); write the path of a PEM file"
        raise ValueError(msg) from error
    context.check_hostname = checks_hostname and requires
    if not requires:
        context.verify_mode = ssl.CERT_NONE
    return context


def _chosen(options: dict[str, str], name: str, words: tuple[str, str]) -> str:
    word = options.get(name, words[0]).lower()
    if word not in words:
        msg = f"{word[:40]!r} is not a value of {name}; write {words[0]} or {words[1]}"
        raise ValueError(msg)
    return word
