"""Issuing of API keys: a key that is shown once, and its entry in the key file."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from ratelimiter.errors import ConfigError
from ratelimiter.identity.api_keys import hash_key, key_file_schema, new_key
from ratelimiter.parsing import schema, values
from ratelimiter.parsing.document import Document

if TYPE_CHECKING:
    from collections.abc import Mapping

BYTES_MAX = 1024  # of a key in a request
FLAGS = {"scopes": "--scope"}  # field of an entry -> its flag, where the names differ


def give_out(said: Mapping[str, Any], *, secret: bytes = b"", prefix: str = "rl_") -> tuple[str, list[str]]:
    """Return a new key, and the lines of its entry in a key file.

    Args:
        said: the fields of the entry, but for the hash.
        secret: secret of the policies that accept the key.
        prefix: begin of the key, by which people recognize it.

    Raises:
        ConfigError: a field cannot be used; with every problem.
    """
    if not (prefix.isascii() and all(c.isalnum() or c in "_-" for c in prefix) and len(prefix) <= 32):
        msg = f"--prefix: {prefix!r} is not at most 32 of A-Z a-z 0-9 - _; write rl_"
        raise ConfigError(msg)
    key = new_key(prefix)
    entry = {"hash": hash_key(key.encode(), secret).hex(), **said}
    document = Document("arguments", {"keys": [entry]})
    problems = [
        f"{FLAGS.get(str(problem.path[2]), f'--{problem.path[2]}')}: {problem.text.partition(': ')[2]}"
        for problem in schema.differences(document, key_file_schema())
    ]
    if not problems and "expires" in said:
        try:
            values.read_instant_ms(said["expires"])
        except ValueError as fault:
            problems.append(f"--expires: {fault}")
    if problems:
        raise ConfigError(*problems)
    lines = [f"{name}: {_yaml(value)}" for name, value in entry.items()]
    return key, [f"  - {lines[0]}", *(f"    {line}" for line in lines[1:])]


def hash_line(text: bytes, secret: bytes = b"") -> str:
    """Return the hash of the key in *text*, without surrounding white space.

    Raises:
        ConfigError: a header cannot carry the key.
    """
    key = text.strip()
    if not 1 <= len(key) <= BYTES_MAX or any(byte < 0x21 or byte > 0x7E for byte in key):
        msg = f"stdin: is not a key: one line of 1 to {BYTES_MAX} visible characters"  # not repeated: it is a secret
        raise ConfigError(msg)
    return hash_key(key, secret).hex()


def _yaml(value: Any) -> str:
    """Return *value*, text or a list of texts, in quotes that every YAML reader reads alike."""
    if isinstance(value, list):
        return f"[{', '.join(map(_yaml, value))}]"
    return "'{}'".format(str(value).replace("'", "''"))
