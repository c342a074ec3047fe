"""The exception by which an application sends an answer of its dialect."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Mapping


class DialectError(Exception):
    """Raised by an application to send a documented answer; `install_error_handlers` renders it.

    Args:
        answer: name of an answer of the dialect, as `ratelimiter dialects NAME` lists them.
        headers: further header fields of the response.
        facts: values of the words that the answer uses, like `requested=50`; `message` and `details` replace its
            own. An answer or a word that the dialect does not have is an unhandled error.

    Example:
        >>> raise DialectError("credit_exhausted", requested=50, shortfall=12)
        Traceback (most recent call last):
        ratelimiter.dialects.error.DialectError: credit_exhausted
    """

    def __init__(self, answer: str, /, *, headers: Mapping[str, str] | None = None, **facts: Any) -> None:
        super().__init__(answer)
        self.answer = answer
        self.headers = dict(headers or {})
        self.facts = facts
