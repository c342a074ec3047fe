"""The sections `identity` and `require` of a policy file: from plain values, which fit the schema, to the core's."""

from __future__ import annotations

import ipaddress
import os
import re
from dataclasses import replace
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from ratelimiter.config.match import read_match
from ratelimiter.core.identity import BEARER, TELLABLE, ApiKeys, IdentityPolicy, JwtPolicy
from ratelimiter.core.match import Match
from ratelimiter.core.principal import Source
from ratelimiter.core.requirement import Requirement
from ratelimiter.errors import ConfigError
from ratelimiter.identity.api_keys import read_key_file
from ratelimiter.parsing.document import shown, shown_name
from ratelimiter.parsing.units import read_duration_ms
from ratelimiter.parsing.yaml import BYTES_MAX

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from ratelimiter.config.layers import Layer
    from ratelimiter.parsing.document import Path

URL = re.compile("https?://", re.IGNORECASE)
# Headers with a meaning of their own: dropping them from requests would break applications.
TAKEN = frozenset(
    {
        *("accept", "authorization", "connection", "content-length", "content-type", "cookie", "date", "expect"),
        *("forwarded", "host", "te", "trailer", "transfer-encoding", "upgrade", "user-agent", "via", "x-forwarded-for"),
        *("x-forwarded-host", "x-forwarded-proto", "x-real-ip"),
    }
)
# Field of `jwt`, its argument of `JwtPolicy`, and its least and greatest value in milliseconds.
_DURATIONS = (
    ("leeway", "leeway_s", 0, 300_000),
    ("refresh", "refresh_ms", 1_000, 86_400_000),
    ("keep", "keep_ms", 1_000, 30 * 86_400_000),
    ("cooldown", "cooldown_ms", 1_000, 3_600_000),
    ("timeout", "timeout_ms", 100, 30_000),
)
_CLAIMS = ("principal", "plan", "scopes", "kind", "org", "email_verified")


class Reader:
    """Reader of both sections of one file.

    Args:
        layer: the file; takes the problems.
    """

    def __init__(self, layer: Layer) -> None:
        self._layer = layer
        self._folder = layer.folder
        self._refuse = layer.refuse
        self._foreign = layer.foreign

    def identity(self, value: Mapping[str, Any]) -> IdentityPolicy | None:
        """Return the section `identity`; None if any of it was refused."""
        path: Path = ("identity",)
        if not value.keys() & {"jwt", "api_keys"}:
            self._refuse(path, "has no way to identify a caller; write jwt: or api_keys:")
            return None
        tokens = keys = None
        if "jwt" in value:
            tokens = self._tokens((*path, "jwt"), value["jwt"])
        if "api_keys" in value:
            keys = self._api_keys((*path, "api_keys"), value["api_keys"])
        told = self._told((*path, "tell_upstream"), value.get("tell_upstream", {}), keys)
        if told is None or ("jwt" in value and tokens is None) or ("api_keys" in value and keys is None):
            return None
        return IdentityPolicy(tokens, keys, told)

    def requirements(self, value: Sequence[Mapping[str, Any]]) -> tuple[Requirement, ...] | None:
        """Return the section `require`; None if any of it was refused."""
        read = [self._requirement(("require", index), item) for index, item in enumerate(value)]
        return None if None in read else tuple(requirement for requirement in read if requirement is not None)

    def _tokens(self, path: Path, value: Mapping[str, Any]) -> JwtPolicy | None:
        stated: dict[str, Any] = {name: value[name] for name in _CLAIMS if name in value}
        for name, argument, least_ms, most_ms in _DURATIONS:
            if name in value:
                try:
                    duration_ms = read_duration_ms(value[name], least_ms, most_ms)
                except ValueError as fault:
                    self._refuse((*path, name), str(fault))
                    return None
                stated[argument] = duration_ms // 1000 if argument == "leeway_s" else duration_ms
        audience = value["audience"]
        if "algorithms" in value:
            stated["algorithms"] = tuple(value["algorithms"])
        field = self._key_field(path, value, stated.get("algorithms", ()))
        if field is None:
            return None
        place = value[field] if field == "keys" and URL.match(value[field]) else self._file(value[field])
        tokens = JwtPolicy(
            value["issuer"],
            (audience,) if isinstance(audience, str) else tuple(audience),
            place,
            **stated,
        )
        if tokens.keep_ms < tokens.refresh_ms:
            text = f"keys are kept less long than they are fresh ({tokens.refresh_ms} ms); write a longer keep"
            self._refuse((*path, "keep"), text)
            return None
        return self._with_keys(path, field, value[field], tokens)

    def _key_field(self, path: Path, value: Mapping[str, Any], algorithms: Sequence[str]) -> str | None:
        """Return the field that names the keys, `keys` or `secret_file`; None if it does not fit the algorithms."""
        symmetric = [name for name in algorithms if name.startswith("HS")]
        if ("keys" in value) == ("secret_file" in value):
            what = "has both keys and secret_file" if "keys" in value else "has neither keys nor secret_file"
            self._refuse(path, f"{what}; write keys for public keys, or secret_file for HS256, HS384 or HS512")
            return None
        if "keys" in value and symmetric:
            index = list(algorithms).index(symmetric[0])
            text = f"{symmetric[0]} needs a secret, and public keys are none; write secret_file in place of keys"
            self._refuse((*path, "algorithms", index), text)
            return None
        if "secret_file" in value and len(symmetric) < max(1, len(algorithms)):
            text = "needs algorithms of HS256, HS384 and HS512 only; write algorithms: [HS256]"
            self._refuse((*path, "secret_file"), text)
            return None
        return "keys" if "keys" in value else "secret_file"

    def _with_keys(self, path: Path, field: str, stated: str, tokens: JwtPolicy) -> JwtPolicy | None:
        """Return *tokens* with the keys of their file; unchanged if the keys come from a URL."""
        try:
            from ratelimiter.identity.jwt import key_set_of  # noqa: PLC0415 - the package that it needs is an extra
        except ImportError:
            text = "needs PyJWT and cryptography; run pip install '.[jwt]' in a clone of ratelimiter-service"
            self._refuse(path, text)
            return None
        try:
            if tokens.fetched:
                _check_url(stated)
                return tokens
            data = _content(tokens.keys, stated)
        except ValueError as fault:
            self._refuse((*path, field), str(fault))
            return None
        tokens = replace(tokens, key_set=data.strip() if tokens.symmetric else data)
        try:
            key_set_of(tokens)
        except ValueError as fault:
            self._foreign.append(f"{shown_name(tokens.keys)}: {fault}")
            return None
        return tokens

    def _api_keys(self, path: Path, value: Mapping[str, Any]) -> ApiKeys | None:
        header = value.get("header", "X-API-Key")
        source = BEARER if header.lower() == "authorization" else Source("header", header)
        file = self._file(value["file"])
        if not os.path.isfile(file):
            self._refuse((*path, "file"), f"{shown(value['file'])} is not a file; write a path relative to the policy")
            return None
        try:
            return ApiKeys(source, file, read_key_file(file, source))
        except ConfigError as fault:
            self._foreign += fault.problems
            return None

    def _told(self, path: Path, value: Mapping[str, str], keys: ApiKeys | None) -> tuple[tuple[str, str], ...] | None:
        taken = TAKEN if keys is None else TAKEN | {keys.source.name}
        seen: dict[str, str] = {}
        for what, name in value.items():
            if name.lower() in taken:
                text = f"{shown(name)} is a header of another meaning; write one of its own, like X-Auth-{what.title()}"
                self._refuse((*path, what), text)
                return None
            twin = name.lower().replace("_", "-")
            if twin in seen:
                self._refuse((*path, what), f"{shown(name)} tells the {seen[twin]}; write another header")
                return None
            seen[twin] = what
        return tuple((what, value[what]) for what in TELLABLE if what in value)

    def _file(self, stated: str) -> str:
        return os.path.normpath(os.path.join(self._folder, stated))

    def _requirement(self, path: Path, item: Mapping[str, Any]) -> Requirement | None:
        if not item.keys() - {"match", "format"}:
            self._refuse(path, "asks for nothing; write credentials: true, scopes, credential or header")
            return None
        if "format" in item and "header" not in item:
            self._refuse((*path, "format"), "is of no header; write header, too")
            return None
        match = read_match(self._layer, (*path, "match"), item["match"]) if "match" in item else Match()
        if match is None:
            return None
        kinds = item.get("credential", ())
        return Requirement(
            match,
            credentials=item.get("credentials", False),
            scopes=frozenset(item.get("scopes", ())),
            kinds=frozenset((kinds,) if isinstance(kinds, str) else kinds),
            org=item.get("org", False),
            email_verified=item.get("email_verified", False),
            header=item.get("header", ""),
            format=item.get("format", ""),
        )


def unsafe_url(tokens: JwtPolicy) -> bool:
    """Return True if the keys are fetched over plain HTTP from another host, where an attacker can replace them."""
    if not tokens.keys.startswith("http://"):
        return False
    host = urlsplit(tokens.keys).hostname or ""
    try:
        return not ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host != "localhost"


def _check_url(url: str) -> None:
    """Refuse a URL that cannot be fetched, or that would write a password to the log."""
    try:
        parts = urlsplit(url)
        sound = bool(parts.hostname) and parts.port != 0 and not parts.fragment and url.isascii() and url.isprintable()
    except ValueError:
        sound = False
    if not sound or " " in url or "@" in parts.netloc:
        # It is not repeated: there may be a password in it.
        msg = "not a URL of keys; write one like https://id.example/jwks.json, without a password"
        raise ValueError(msg)


def _content(file: str, stated: str) -> bytes:
    try:
        with open(file, "rb") as opened:
            data = opened.read(BYTES_MAX + 1)
    except (OSError, ValueError) as fault:
        reason = getattr(fault, "strerror", None) or str(fault)
        msg = f"{shown(stated)} cannot be read ({reason}); name a file of keys, or a URL that begins with https://"
        raise ValueError(msg) from None
    if len(data) > BYTES_MAX:
        msg = f"{shown(stated)} is longer than {BYTES_MAX} bytes; name a file of keys"
        raise ValueError(msg)
    return data
