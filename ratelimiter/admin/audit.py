"""The audit log: one line for each command of an operator."""

from __future__ import annotations

import logging

audit = logging.getLogger("ratelimiter.audit")
if audit.level == logging.NOTSET:
    audit.setLevel(logging.INFO)  # a root logger at WARNING must not drop these lines


def audit_to_stderr() -> None:
    """Write audit lines to standard error if the process has no handler for them."""
    if not audit.hasHandlers():
        handler = logging.StreamHandler()
        handler.setFormatter(logging.Formatter("audit %(message)s"))
        audit.addHandler(handler)
