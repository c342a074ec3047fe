"""The tokens of operators: names and tokens from a file that may change while it is in use."""

from __future__ import annotations

import hmac
import logging
import re
from hashlib import sha256
from typing import TYPE_CHECKING, NamedTuple

from ratelimiter.errors import ConfigError
from ratelimiter.parsing.document import shown_name

if TYPE_CHECKING:
    import os

BYTES_MAX = 65_536  # of the file
TOKEN_MIN = 16  # characters; what is shorter can be guessed
READ, OPERATE = "read", "operate"  # roles: to look, and to look and change
_LINE = re.compile(rf"(?:(read|operate)/)?([A-Za-z0-9._@-]{{1,64}}):([!-~]{{{TOKEN_MIN},256}})")

log = logging.getLogger("ratelimiter.operator")


class OperatorToken(NamedTuple):
    """One line of the file."""

    token: str
    role: str = OPERATE


def read_tokens(path: str | os.PathLike[str]) -> dict[str, OperatorToken]:
    """Read the tokens of a file, by name: a line `NAME:TOKEN` or `ROLE/NAME:TOKEN` for each.

    Empty lines and lines with # are skipped. Roles are `read` and `operate`, which is the default.

    Raises:
        ConfigError: the file cannot be read, or a line is something else. The message repeats no token.
    """
    name = shown_name(path)
    try:
        with open(path, "rb") as file:
            text = file.read(BYTES_MAX + 1).decode("utf-8")
    except (OSError, ValueError) as fault:
        reason = getattr(fault, "strerror", None) or "not UTF-8"
        msg = f"{name}: cannot be read ({reason}); name a file with a line NAME:TOKEN for each operator"
        raise ConfigError(msg) from None
    tokens: dict[str, OperatorToken] = {}
    problems = [f"{name}: is longer than {BYTES_MAX} bytes; write fewer tokens"] if len(text) > BYTES_MAX else []
    for number, line in enumerate(text.splitlines(), 1):
        if not line.strip() or line.startswith("#"):
            continue
        parts = _LINE.fullmatch(line.strip())
        if parts is None:
            what = (
                f"write a name, a colon and {TOKEN_MIN} to 256 visible characters, like alice:$(openssl rand -hex 16)"
            )
            problems.append(f"{name}:{number}: is not NAME:TOKEN; {what}")
        elif parts[2] in tokens:
            problems.append(f"{name}:{number}: {parts[2]} has a token already; write another name")
        else:
            tokens[parts[2]] = OperatorToken(parts[3], parts[1] or OPERATE)
    if not tokens and not problems:
        problems.append(f"{name}: holds no token; write a line NAME:TOKEN for each operator")
    if problems:
        raise ConfigError(*problems)
    return tokens


class Tokens:
    """The tokens of a file, as they are now: a token that was removed from it is refused from then on.

    Args:
        path: the file.

    Raises:
        ConfigError: the file cannot be used. If that happens later on, the last tokens stay in force.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self._path = path
        self._tokens = read_tokens(path)
        self._told = ""

    def refresh(self) -> None:
        """Read the file again; waits for the disk."""
        try:
            self._tokens = read_tokens(self._path)
        except ConfigError as fault:
            if str(fault) != self._told:
                self._told = str(fault)
                log.error("%s; the last tokens stay in force", "; ".join(fault.problems))
        else:
            self._told = ""

    def name(self, given: str) -> str:
        """Return the operator whose token *given* is, or an empty text, in the same time for every token."""
        digest = sha256(given.encode("utf-8", "surrogateescape")).digest()
        found = ""
        for name, (token, _) in self._tokens.items():
            if hmac.compare_digest(digest, sha256(token.encode()).digest()):
                found = name
        return found

    def may_change(self, name: str) -> bool:
        """Return True if the role of the operator *name* is `operate`, not `read`."""
        found = self._tokens.get(name)
        return found is not None and found.role == OPERATE
