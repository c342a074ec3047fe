"""Sample refusals of a dialect: the answers of a limiter with plausible numbers, for the author of one."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ratelimiter.core.decision import (
    CREDIT_EXHAUSTED,
    OVER_CAPACITY,
    OVER_LIMIT,
    STORE_ERROR,
    Decision,
    Outcome,
    blocked,
    malformed,
)
from ratelimiter.core.quota import Balance, Quota
from ratelimiter.core.rule import Rule
from ratelimiter.dialects.request_id import UUID

if TYPE_CHECKING:
    from collections.abc import Iterator

    from ratelimiter.core.reply import Reply
    from ratelimiter.dialects.dialect import Dialect

NOW_MS = 1_800_000_000_000
UUID_ID = "00000000-0000-4000-8000-000000000000"
TOKEN_ID = "0" * 15
_MINUTE = Rule("per-minute", Quota(60, 60_000))
_CREDITS = Rule("credits", Balance(1000), cost=50)


def samples(dialect: Dialect) -> Iterator[tuple[str, Reply]]:
    """Yield a title and the reply for each reason to refuse a request."""
    ids = dialect.request_ids
    request_id = "" if ids is None else UUID_ID if ids.form == UUID else ids.prefix + TOKEN_ID
    over = Outcome(_MINUTE, 0, 29_500, 29_500)
    large = Outcome(_MINUTE, 60, 0, None)
    poor = Outcome(_CREDITS, 38, 0, None)
    for title, decision in (
        ("over the limit", Decision(False, OVER_LIMIT, NOW_MS, [over], over)),
        ("cost above the limit", Decision(False, OVER_CAPACITY, NOW_MS, [large], large)),
        ("blocked by an operator", blocked(NOW_MS, NOW_MS + 29_500, _MINUTE)),
        ("out of credits", Decision(False, CREDIT_EXHAUSTED, NOW_MS, [poor], poor, missing=(50, 12))),
        ("malformed request", malformed(NOW_MS, "path", "has an encoded slash, backslash or control character")),
        ("store unavailable", Decision(False, STORE_ERROR, NOW_MS, (), None, "fail_closed")),
    ):
        yield title, dialect.refusal(decision, request_id)
