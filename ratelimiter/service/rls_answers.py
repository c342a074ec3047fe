"""Answers of the rate limit service: a decision and its tallies as a RateLimitResponse, in remembered parts."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from ratelimiter.core.decision import SUSPENDED
from ratelimiter.core.descriptors import BLOCKED
from ratelimiter.core.headers import ceil_s
from ratelimiter.core.receipt import NEVER
from ratelimiter.service import rls_messages as messages
from ratelimiter.service.grpc.protobuf import delimited, whole

if TYPE_CHECKING:
    from collections.abc import Sequence

    from ratelimiter.core.decision import Decision
    from ratelimiter.core.receipt import Tally
    from ratelimiter.core.rule import Hit, Rule
    from ratelimiter.service.decider import Decider

KEPT_MAX = 8192  # templates of statuses, or headers, that are remembered as they are written
BLOCKED_RESET_S = 60  # told of a rule that blocks, which no wait helps against
OVERALL = {True: whole(1, messages.OK), False: whole(1, messages.OVER_LIMIT)}


class Part(NamedTuple):
    """One descriptor of a call."""

    indices: tuple[int, ...]  # of its hits in those of the call
    answers: tuple[Rule, ...]  # rules that count nothing
    asks_only: bool  # it charges nothing, and is over its limit if not one unit more would fit


class AnswerWriter:
    """Writes answers.

    Args:
        engine: words refusals and headers.
    """

    def __init__(self, engine: Decider) -> None:
        self._engine = engine
        self._templates: dict[tuple[object, ...], messages.StatusTemplate] = {}
        self._headers: dict[tuple[bytes, bytes], bytes] = {}

    def write(self, parts: Sequence[Part], hits: Sequence[Hit], decision: Decision, tallies: Sequence[Tally]) -> bytes:
        """Return a RateLimitResponse.

        Args:
            parts: the descriptors of the call, in order.
            hits: of the call.
            decision: about them.
            tallies: of the hits, in order; none if nothing was charged.
        """
        engine, allowed = self._engine, decision.allowed
        written = [OVERALL[allowed]]
        figures: dict[str, bytes] = {}
        for part in parts:
            if len(part.indices) == 1 and not part.answers and tallies:  # most are of one rule
                index = part.indices[0]
                written.append(self._of_hit(hits[index], tallies[index], part, decision, figures))
            else:
                written.append(self._of_part(part, hits, decision, tallies, figures))
        if allowed:
            headers = engine.headers(decision)
        else:
            reply, figured = engine.refusal(decision)
            headers = [header for header in (*reply.headers, *figured) if header[0] != b"content-length"]
            written.append(delimited(5, reply.body))
        kept = self._headers
        for header in headers:
            text = kept.get(header)
            if text is None:
                if len(kept) >= KEPT_MAX:
                    kept.clear()
                text = kept[header] = messages.header(*header)
            written.append(text)
        if figures:
            written.append(messages.metadata(decision.reason, b"".join(figures.values())))
        return b"".join(written)

    def _of_part(
        self,
        part: Part,
        hits: Sequence[Hit],
        decision: Decision,
        tallies: Sequence[Tally],
        figures: dict[str, bytes],
    ) -> bytes:
        """Return the status of a descriptor, that of its tightest rule; the figures of all go to *figures*."""
        for rule in part.answers:
            blocks = is_blocking(rule)
            code = messages.OVER_LIMIT if blocks and not decision.allowed else messages.OK
            if code == messages.OVER_LIMIT or not part.indices:
                remaining = 0 if blocks else messages.REMAINING_MAX
                return self._status(rule, code, (remaining, BLOCKED_RESET_S if blocks else 0), figures)
        if not part.indices or not tallies:
            return messages.UNMATCHED
        ranked = []
        for index in part.indices:
            hit, tally = hits[index], tallies[index]
            told = self._of_hit(hit, tally, part, decision, figures)
            ranked.append((tally.retry_after_ms == 0, hit.quota.limit - tally.used, -tally.retry_after_ms, told))
        return min(ranked)[-1]

    def _of_hit(self, hit: Hit, tally: Tally, part: Part, decision: Decision, figures: dict[str, bytes]) -> bytes:
        rule, quota = hit.rule, hit.quota
        used, reset_ms, wait_ms = tally
        remaining = quota.limit - used
        if rule.burst and quota is rule.quotas[0]:
            remaining -= rule.burst
        remaining = max(remaining, 0)
        code = messages.OK
        if (wait_ms or (part.asks_only and not remaining)) and decision.reason != SUSPENDED:
            match = rule.descriptors
            if not rule.shadow or (match is not None and match.candidate):
                code = messages.OVER_LIMIT
        if wait_ms:
            reset_ms = max(reset_ms, quota.window_ms if wait_ms == NEVER else wait_ms)
        return self._status(rule, code, (remaining, ceil_s(reset_ms)), figures)

    def _status(self, rule: Rule, code: int, numbers: tuple[int, int], figures: dict[str, bytes]) -> bytes:
        """Return a status with *numbers*, what remains and the seconds; the same go to *figures*."""
        quota = rule.quota
        # By name and numbers: a rule takes long to hash, and those of overrides share a name.
        key = (rule.name, quota.limit, quota.window_ms, code)
        template = self._templates.get(key)
        if template is None:
            if len(self._templates) >= KEPT_MAX:
                self._templates.clear()
            counts = rule.descriptors is None or not rule.descriptors.answer
            unit = messages.UNITS.get(quota.window_ms, 0)
            template = messages.StatusTemplate(code, rule.name, quota.limit if counts else None, unit)
            self._templates[key] = template
        figures[template.name] = template.figures(*numbers)
        return template.status(*numbers)


def is_blocking(rule: Rule) -> bool:
    """Return True if *rule* refuses every call that meets it."""
    return rule.descriptors is not None and rule.descriptors.answer == BLOCKED and not rule.shadow
