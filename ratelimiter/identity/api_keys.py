"""API keys: a file of hashes with the identity of each key, and the hash function."""

from __future__ import annotations

import json
import secrets
from functools import cache
from hashlib import blake2b
from hmac import compare_digest
from importlib import resources
from typing import TYPE_CHECKING, Any

from ratelimiter.core.identity import API_KEY, KEY_INVALID, Identity, KeyEntry, named
from ratelimiter.errors import ConfigError
from ratelimiter.parsing import schema, values, yaml
from ratelimiter.parsing.document import problem_lines, shown, shown_path

if TYPE_CHECKING:
    import os
    from collections.abc import Mapping

    from ratelimiter.core.principal import Source
    from ratelimiter.parsing.document import Document, Path, Problem

HASH_BYTES = 32
KEY_BYTES = 32  # random bytes of a new key: too many to guess, so a fast hash is safe

UNKNOWN = KeyEntry(
    bytes(HASH_BYTES), Identity(fault=KEY_INVALID), 0, revoked=True
)  # entry of a key that is not in the file


def new_key(prefix: str = "rl_") -> str:
    """Return a new random key: *prefix* and 43 characters of `A-Z a-z 0-9 - _`; without a dot, so it is never a JWT."""
    return prefix + secrets.token_urlsafe(KEY_BYTES)


def hash_key(key: bytes, secret: bytes = b"") -> bytes:
    """Return the hash of *key* in a key file: BLAKE2b, keyed with the policy's *secret* of at most 64 bytes."""
    return blake2b(key, digest_size=HASH_BYTES, key=secret, person=b"api-key").digest()


def identify(key: bytes, entries: Mapping[bytes, KeyEntry], secret: bytes, now_ms: int) -> Identity:
    """Return the identity that *key* proves at *now_ms*, Unix time.

    The look-up is by hash, which a caller cannot predict, so its duration reveals nothing about the keys.
    """
    digest = hash_key(key, secret)
    entry = entries.get(digest, UNKNOWN)
    known = compare_digest(entry.digest, digest)
    expired = entry.expires_ms and now_ms >= entry.expires_ms
    return entry.identity if known and not entry.revoked and not expired else UNKNOWN.identity


def read_key_file(path: str | os.PathLike[str], source: Source) -> dict[bytes, KeyEntry]:
    """Return the keys of the file at *path*, by their hashes.

    Args:
        path: path of a file that fits `keys.schema.json`.
        source: source of these keys in requests.

    Raises:
        ConfigError: the file cannot be used; with every problem.
    """
    document = yaml.examine_file(path)
    problems = list(document.problems)
    entries: dict[bytes, KeyEntry] = {}
    if document.readable:
        problems += schema.differences(document, key_file_schema())
        if not problems:
            for index, item in enumerate(document.value["keys"]):
                problems += _read(document, ("keys", index), item, source, entries)
    if problems:
        raise ConfigError(*problem_lines(document, problems))
    return entries


@cache
def key_file_schema() -> dict[str, Any]:
    """Return the JSON Schema of a key file."""
    text = resources.files(__package__).joinpath("keys.schema.json").read_text(encoding="utf-8")
    parsed: dict[str, Any] = json.loads(text)
    return parsed


def _read(
    document: Document, path: Path, item: Mapping[str, Any], source: Source, entries: dict[bytes, KeyEntry]
) -> list[Problem]:
    """Add the key *item* to *entries*; return its problems."""
    digest = bytes.fromhex(item["hash"])
    if digest in entries:
        text = f"{shown(item['hash'])} is the hash of an earlier key, too; leave one out"
        return [_problem(document, (*path, "hash"), text)]
    expires_ms = 0
    if "expires" in item:
        try:
            expires_ms = values.read_instant_ms(item["expires"])
        except ValueError as fault:
            return [_problem(document, (*path, "expires"), str(fault))]
    name, org = item["principal"], item.get("org", "")
    identity = Identity(
        source=str(source),
        principal=name,
        plan=item.get("plan", ""),
        scopes=frozenset(item.get("scopes", ())),
        kind=item.get("kind", ""),
        method=API_KEY,
        org=org,
        email_verified=item.get("email_verified", False),
        verified=named(str(source), name, org),
    )
    entries[digest] = KeyEntry(digest, identity, expires_ms, item.get("revoked", False))
    return []


def _problem(document: Document, path: Path, text: str) -> Problem:
    return document.problem(path, f"{shown_path(path)}: {text}")
