"""A bound on failed verifications per client: invented tokens must not cost more than a plain refusal."""

from __future__ import annotations

FAILURES_MAX = 20  # of one client in a window; a page of an application whose tokens are stale needs fewer
WINDOW_MS = 10_000
CLIENTS_MAX = 50_000  # in one window; further clients are not counted


class FailureBudget:
    """Counts the failed verifications of each client in fixed windows.

    A client over its budget gets no further verification until the window ends: its unknown tokens are refused unread.
    Tokens that were verified before are found by their digest, and are not affected.
    """

    def __init__(self) -> None:
        self._begin_ms = 0
        self._failures: dict[str, int] = {}

    def exhausted(self, client: str, now_ms: int) -> bool:
        """Return True if *client* has used up its failures of the window at *now_ms*."""
        if not self._begin_ms <= now_ms < self._begin_ms + WINDOW_MS:
            self._begin_ms = now_ms - now_ms % WINDOW_MS
            self._failures = {}
        return self._failures.get(client, 0) >= FAILURES_MAX

    def failed(self, client: str) -> None:
        """Count a failure of *client* in the window of the last `exhausted`."""
        if client in self._failures or len(self._failures) < CLIENTS_MAX:
            self._failures[client] = self._failures.get(client, 0) + 1
