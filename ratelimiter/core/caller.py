"""The caller as the application knows it: its user, the plan that it pays for, its scopes."""

from __future__ import annotations

from dataclasses import dataclass

from ratelimiter.core.identity import Identity
from ratelimiter.core.request import PRINCIPAL_BYTES_MAX

APPLICATION = "application"  # the source of an identity that the application has established


@dataclass(frozen=True, slots=True)
class Caller:
    """The caller of a request, as the application identifies it.

    Args:
        principal: the name that is charged, at most 1,024 bytes in UTF-8; never shown.
        plan: the plan that the caller pays for; empty where plans make no difference.
        scopes: the permissions of the caller.

    Raises:
        ValueError: the principal is empty or too long.
    """

    principal: str
    plan: str = ""
    scopes: frozenset[str] = frozenset()

    def __post_init__(self) -> None:
        object.__setattr__(self, "scopes", frozenset(self.scopes))
        length = len(self.principal.encode("utf-8", "surrogatepass"))
        if not 1 <= length <= PRINCIPAL_BYTES_MAX:
            msg = f"the principal of a caller must have 1 to {PRINCIPAL_BYTES_MAX} bytes, not {length}"
            raise ValueError(msg)


def identity_of(caller: Caller | str | int | None) -> Identity | None:
    """Return the identity of *caller*: text or a number is a principal; None for one that is not known.

    Raises:
        TypeError: it is something else.
        ValueError: the principal is empty or too long.
    """
    match caller:
        case None:
            return None
        case str() | int() if not isinstance(caller, bool):
            caller = Caller(str(caller))
        case Caller():
            pass
        case _:
            msg = f"a caller is text, a number, a Caller or None, not a {type(caller).__name__}; give the user's id"
            raise TypeError(msg)
    verified = ((APPLICATION, caller.principal),)
    return Identity(APPLICATION, caller.principal, caller.plan, caller.scopes, method=APPLICATION, verified=verified)
