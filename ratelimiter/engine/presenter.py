"""The look of a policy from outside: its dialect, header families, request ids and identity headers, as one value."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ratelimiter.core.decision import malformed
from ratelimiter.core.headers import renderer, replaced
from ratelimiter.core.identity_headers import UpstreamIdentityHeaders
from ratelimiter.dialects import loader, request_id
from ratelimiter.engine.refusals import Refusals

if TYPE_CHECKING:
    from collections.abc import Iterable

    from ratelimiter.core.decision import Decision
    from ratelimiter.core.identity import Identity
    from ratelimiter.core.policy import Policy
    from ratelimiter.core.reply import Reply

    Header = tuple[bytes, bytes]


class Presenter:
    """Words the answers of one policy. Made once for a policy, and swapped as a whole when another one takes effect.

    Args:
        policy: whose answers.

    Attributes:
        policy: the same.
        dialect: of its error bodies.
        headers: renders the rate limit headers of a decision.
        id_header: name of the header with the request's id; None if the dialect has none.
        identity_headers: tells the upstream the caller's identity.
        tells_identity: True if any identity header is configured.
        reserved_request: lower-case names of the request headers that a client cannot set, as they are ours to set.
        reserved_response: lower-case names of the response headers that are ours to set.
        cors: the pages of other origins that may read our answers; None: nothing is said of them.
        figures: those of them that say how much of a limit is left.

    Raises:
        ConfigError: the dialect cannot be used.
    """

    def __init__(self, policy: Policy) -> None:
        self.policy = policy
        self.dialect = loader.load(policy.dialect)
        self.headers = renderer(policy.headers, expose=policy.expose_headers)
        self._ids = self.dialect.request_ids
        self.id_header = None if self._ids is None else self._ids.header
        self.identity_headers = UpstreamIdentityHeaders(
            () if policy.identity is None else policy.identity.tell_upstream
        )
        self.tells_identity = bool(self.identity_headers.names)
        of_id = frozenset() if self.id_header is None else frozenset({self.id_header})
        self.reserved_request = of_id | self.identity_headers.names
        self.figures = replaced(policy.headers)
        self.reserved_response = self.figures | of_id
        self.cors = policy.cors
        self._exposed = self.figures | of_id | {b"retry-after"}
        self._refusals = Refusals(self.dialect, self.headers)

    def request_id(self, headers: Iterable[Header]) -> str:
        """Return the id of a request with *headers*: a valid one that it brings, else a new one; "" without ids."""
        return "" if self._ids is None else request_id.choose(self._ids, headers)

    def id_headers(self, identifier: str) -> list[Header]:
        """Return the header that carries the id of a request; none if the dialect has no ids."""
        return [] if self.id_header is None else [(self.id_header, identifier.encode())]

    def refused(self, decision: Decision, identifier: str = "") -> tuple[Reply, list[Header]]:
        """Return the reply to a request that *decision* refuses, and the rate limit headers that go with it.

        Args:
            decision: a refusal.
            identifier: id of the request; "" if the dialect has none.
        """
        if identifier:
            return self.dialect.refusal(decision, identifier), self.headers(decision)
        return self._refusals.get(decision)

    def refusal(self, decision: Decision, identifier: str = "") -> Reply:
        """Return the reply to a request that *decision* refuses, without rate limit headers."""
        return self.dialect.refusal(decision, identifier) if identifier else self._refusals.get(decision)[0]

    def error(self, status: int, identifier: str = "") -> Reply:
        """Return the reply that says *status*, of 400 to 599, for a fault that is not the client's rate."""
        return self.dialect.reply_for_status(status, request_id=identifier)

    def malformed(self, field: str, issue: str, identifier: str = "") -> Reply:
        """Return the 400 for a request that was never judged, as *field* of it has a fault, the predicate *issue*."""
        return self.dialect.refusal(malformed(0, field, issue), identifier)

    def cors_headers(self, headers: Iterable[Header]) -> list[Header]:
        """Return the headers by which pages of other origins may read our answer to a request with *headers*."""
        return [] if self.cors is None else self.cors.answer_headers(headers, self._exposed)

    def upstream_headers(self, identity: Identity) -> list[Header]:
        """Return the headers that tell the upstream the *identity* of an admitted request's caller."""
        return self.identity_headers.headers(identity) if self.identity_headers.names else []
