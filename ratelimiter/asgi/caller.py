"""The caller of a request, as a function of the application says."""

from __future__ import annotations

import inspect
from typing import TYPE_CHECKING, Any, TypeAlias

from ratelimiter.core.caller import identity_of

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from ratelimiter.core.caller import Caller
    from ratelimiter.core.identity import Identity

    Who: TypeAlias = Caller | str | int | None
    Identify: TypeAlias = Callable[[Any], Who | Awaitable[Who]]  # of an ASGI scope

CALLERS_KEY = "ratelimiter.callers"  # where the scope holds what was said of its caller, by function


async def identified(identify: Identify, scope: Any) -> Identity | None:
    """Return the identity that *identify* gives for *scope*; asked once for each request, however many limiters ask.

    Raises:
        TypeError: it returns what is no caller.
        ValueError: the principal is empty or too long.
    """
    callers: dict[Identify, Identity | None] = scope.setdefault(CALLERS_KEY, {})
    if identify not in callers:
        who = identify(scope)
        callers[identify] = identity_of(await who if inspect.isawaitable(who) else who)
    return callers[identify]
