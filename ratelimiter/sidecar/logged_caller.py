"""The caller of an exchange, as the access log may name it: an address, or the digest that limits are charged to."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ratelimiter.core.planner import reader_for
from ratelimiter.core.request import MalformedRequest

if TYPE_CHECKING:
    from collections.abc import Callable

    from ratelimiter.core.policy import Policy
    from ratelimiter.core.principal import PrincipalReader
    from ratelimiter.proxy.exchange_record import ExchangeRecord

NONE, ADDRESS, DIGEST = "none", "address", "digest"


class LoggedCaller:
    """Finds the caller of exchanges as the limiter does: through trusted proxies, under the policy in force.

    Args:
        kind: `ADDRESS`, the client's address in a field `client`; or `DIGEST`, in a field `principal` the digest of
            the principal that the first rule charges.
        policy: return the policy in force.
    """

    def __init__(self, kind: str, policy: Callable[[], Policy]) -> None:
        self._kind = kind
        self._policy = policy
        self._known: Policy | None = None
        self._reader: PrincipalReader | None = None

    def __call__(self, exchange: ExchangeRecord) -> tuple[str, str] | None:
        """Return the name of a field and its value; None if the request names no caller without doubt."""
        policy = self._policy()
        if self._reader is None or policy is not self._known:
            self._known, self._reader = policy, reader_for(policy)
        reader = self._reader
        if self._kind == ADDRESS:
            address = reader.client(exchange.headers, exchange.peer)
            return None if address is None else ("client", str(address))
        if not policy.rules:
            return None
        try:
            return ("principal", reader.read(policy.rules[0].principal, exchange.headers, exchange.peer).digest)
        except MalformedRequest:
            return None
