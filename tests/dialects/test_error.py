"""The exception by which an application sends an answer of its dialect."""

from __future__ import annotations

from ratelimiter.dialects import loader
from ratelimiter.dialects.error import DialectError


def test_an_error_carries_what_its_answer_needs() -> None:
    """The name of the answer, header fields of its own, and a value for each word; a log shows the name alone."""
    headers = {"X-Trace": "1"}
    error = DialectError("credit_exhausted", headers=headers, requested=50, shortfall=12)
    headers["X-Trace"] = "2"

    assert ("credit_exhausted", "credit_exhausted") == (str(error), error.answer)
    assert ({"X-Trace": "1"}, {"requested": 50, "shortfall": 12}) == (error.headers, error.facts)
    assert 402 == loader.load("trace").reply(error.answer, **error.facts).status


def test_headers_and_words_may_be_left_out() -> None:
    """Most answers need none; a word may have any name, that of the answer's place included."""
    assert ({}, {}) == (DialectError("not_found").headers, DialectError("not_found").facts)
    assert {"answer": 42} == DialectError("not_found", answer=42).facts
