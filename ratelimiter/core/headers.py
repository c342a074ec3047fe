"""A decision as header fields. Milliseconds become seconds here, and nowhere else in an answer."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from ratelimiter.core.decision import told_of
from ratelimiter.core.quota import Quota, Slots

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from ratelimiter.core.decision import Decision, Outcome
    from ratelimiter.core.rule import Rule

    Header = tuple[bytes, bytes]
    Renderer = Callable[[Decision], list[Header]]


def ceil_s(ms: int) -> int:
    """Return whole seconds that are no shorter than *ms*."""
    return -(-ms // 1000)


def exact_s(ms: int) -> int | float:
    """Return *ms* in seconds: a whole number if it is one, for texts that spell it."""
    seconds, rest = divmod(ms, 1000)
    return ms / 1000 if rest else seconds


class Seconds(NamedTuple):
    """The seconds that are told of one outcome: the only place where milliseconds are rounded, always upward."""

    # To wait (RFC 9110 section 10.2.3): at least 1 in a refusal, as 0 would invite a hot loop; None if no wait helps.
    retry_after: int | None
    reset: int  # until more remains; in a refusal until a retry is admitted, at least 1
    reset_at: int  # Unix time of that


def seconds_of(decision: Decision, outcome: Outcome) -> Seconds:
    """Return the seconds that are told of *outcome*, one of *decision*'s."""
    now_ms, reset_ms = decision.now_ms, outcome.reset_ms
    if decision.allowed:
        return Seconds(0, ceil_s(reset_ms), ceil_s(now_ms + reset_ms))
    wait_ms = outcome.retry_after_ms
    if wait_ms is None:
        return Seconds(None, ceil_s(reset_ms) or 1, ceil_s(now_ms + reset_ms))
    # With a cost above 1 the next unit to leave need not be enough: what a refused client is told must let it in.
    reset_ms = max(reset_ms, wait_ms)
    return Seconds(ceil_s(wait_ms) or 1, ceil_s(reset_ms) or 1, ceil_s(now_ms + reset_ms))


def retry_after_s(decision: Decision) -> int | None:
    """Return the Retry-After of a refusal; None when no wait helps."""
    return None if decision.binding is None else seconds_of(decision, decision.binding).retry_after


def x_ratelimit(decision: Decision) -> list[Header]:
    """`X-RateLimit-Limit`, `-Remaining` and `-Reset` (Unix time in seconds) of the binding rule."""
    outcome = decision.binding
    if outcome is None:
        return []
    if outcome.rule.quiet:
        outcome = _on_behalf_of(decision, outcome)
    rule, remaining, reset_ms, _ = outcome
    # `Seconds.reset_at` written out for admissions, which are most.
    reset_s = -(-(decision.now_ms + reset_ms) // 1000) if decision.allowed else seconds_of(decision, outcome).reset_at
    return [
        (b"x-ratelimit-limit", b"%d" % rule.quota.limit),
        (b"x-ratelimit-remaining", b"%d" % remaining),
        (b"x-ratelimit-reset", b"%d" % reset_s),
    ]


def draft_11(decision: Decision) -> list[Header]:
    """`RateLimit-Policy` and `RateLimit`, lists of the rules (draft-ietf-httpapi-ratelimit-headers-11)."""
    outcomes = _told(decision)
    if not outcomes:
        return []
    policies = b", ".join(_policy_item(outcome.rule) for outcome in outcomes)
    limits = b", ".join(
        b'"%s";r=%d;t=%d' % (outcome.rule.name.encode(), outcome.remaining, seconds_of(decision, outcome).reset)
        for outcome in outcomes
    )
    return [(b"ratelimit-policy", policies), (b"ratelimit", limits)]


def draft_06(decision: Decision) -> list[Header]:
    """`RateLimit-Limit`, `-Remaining`, `-Reset` (seconds from now) of the binding rule; `RateLimit-Policy` of all."""
    binding = decision.binding
    if binding is None:
        return []
    if binding.rule.quiet:
        binding = _on_behalf_of(decision, binding)
    policies = b", ".join(b"%d%s" % (o.rule.quota.limit, _window_parameter(o.rule)) for o in _told(decision))
    return [
        (b"ratelimit-limit", b"%d" % binding.rule.quota.limit),
        (b"ratelimit-remaining", b"%d" % binding.remaining),
        (b"ratelimit-reset", b"%d" % seconds_of(decision, binding).reset),
        (b"ratelimit-policy", policies),
    ]


def openai(decision: Decision) -> list[Header]:
    """`x-ratelimit-{limit,remaining,reset}-{requests,tokens}`, the reset as a duration like `59.874s` or `6m0s`."""
    return [
        field
        for unit, outcome in _by_unit(decision, {REQUESTS: REQUESTS}).items()
        for field in (
            (b"x-ratelimit-limit-%s" % unit, b"%d" % outcome.rule.quota.limit),
            (b"x-ratelimit-remaining-%s" % unit, b"%d" % outcome.remaining),
            (b"x-ratelimit-reset-%s" % unit, _duration(_reset_ms(decision, outcome))),
        )
    ]


def anthropic(decision: Decision) -> list[Header]:
    """`anthropic-ratelimit-{requests,tokens,input-tokens,output-tokens}-{limit,remaining,reset}`, RFC 3339 in UTC."""
    return [
        field
        for unit, outcome in _by_unit(decision, {INPUT: INPUT, OUTPUT: OUTPUT, REQUESTS: REQUESTS}).items()
        for field in (
            (b"anthropic-ratelimit-%s-limit" % unit, b"%d" % outcome.rule.quota.limit),
            (b"anthropic-ratelimit-%s-remaining" % unit, b"%d" % outcome.remaining),
            (b"anthropic-ratelimit-%s-reset" % unit, _moment(decision.now_ms + _reset_ms(decision, outcome))),
        )
    ]


REQUESTS, TOKENS, INPUT, OUTPUT = b"requests", b"tokens", b"input-tokens", b"output-tokens"


def _by_unit(decision: Decision, names: Mapping[bytes, bytes]) -> dict[bytes, Outcome]:
    """Return the outcome with the least room of each unit; a unit that *names* lacks is one of tokens.

    Limits of concurrent requests have no unit here, and neither have credits: no such API tells them so.
    """
    found: dict[bytes, Outcome] = {}
    for outcome in _told(decision):
        rule = outcome.rule
        if rule.quota.kind == Slots.kind or rule.quota.credits or (rule.tokens and rule.tokens.prices):
            continue
        unit = names.get(_unit(rule), TOKENS)
        other = found.get(unit)
        if other is None or outcome.remaining < other.remaining:
            found[unit] = outcome
    return found


def _unit(rule: Rule) -> bytes:
    if rule.tokens is None:
        return REQUESTS
    weights = rule.tokens.weights
    if not weights.of_output_max:
        return INPUT
    return TOKENS if weights.of_input_max else OUTPUT


def _reset_ms(decision: Decision, outcome: Outcome) -> int:
    # As in `seconds_of`: what a refused client is told must let it in.
    return outcome.reset_ms if decision.allowed else max(outcome.reset_ms, outcome.retry_after_ms or 0)


def _duration(ms: int) -> bytes:
    """Return *ms* as Go writes durations: `0s`, `12ms`, `59.874s`, `6m0s`, `1h0m0s`."""
    if 0 < ms < 1000:
        return b"%dms" % ms
    minutes, rest_ms = divmod(ms, 60_000)
    seconds, part_ms = divmod(rest_ms, 1000)
    text = b"%d.%03d" % (seconds, part_ms) if part_ms else b"%d" % seconds
    text = (text.rstrip(b"0") if part_ms else text) + b"s"
    if not minutes:
        return text
    hours, minutes = divmod(minutes, 60)
    return b"%dh%dm%s" % (hours, minutes, text) if hours else b"%dm%s" % (minutes, text)


def _moment(ms: int) -> bytes:
    """Return Unix time *ms* as RFC 3339 in UTC, in whole seconds, no earlier than it is."""
    days, second = divmod(ceil_s(ms), 86_400)
    # Days to a date of the Gregorian calendar, by years that begin in March, so that a leap day ends its year.
    era, day_of_era = divmod(days + 719_468, 146_097)
    year_of_era = (day_of_era - day_of_era // 1_460 + day_of_era // 36_524 - day_of_era // 146_096) // 365
    day_of_year = day_of_era - (365 * year_of_era + year_of_era // 4 - year_of_era // 100)
    month_from_march = (5 * day_of_year + 2) // 153
    day = day_of_year - (153 * month_from_march + 2) // 5 + 1
    month = month_from_march + 3 if month_from_march < 10 else month_from_march - 9
    year = year_of_era + era * 400 + (month <= 2)
    hours, rest = divmod(second, 3600)
    return b"%04d-%02d-%02dT%02d:%02d:%02dZ" % (year, month, day, hours, *divmod(rest, 60))


FAMILIES: dict[str, Renderer] = {
    "x-ratelimit": x_ratelimit,
    "draft-11": draft_11,
    "draft-06": draft_06,
    "openai": openai,
    "anthropic": anthropic,
}
_OPENAI = [f"x-ratelimit-{what}-{unit}" for what in ("limit", "remaining", "reset") for unit in ("requests", "tokens")]
_ANTHROPIC = [
    f"anthropic-ratelimit-{unit}-{what}"
    for unit in ("requests", "tokens", "input-tokens", "output-tokens")
    for what in ("limit", "remaining", "reset")
]

# What a browser may read of a cross-origin response only if it is named (Fetch standard, CORS protocol).
EXPOSED: dict[str, tuple[bytes, ...]] = {
    "x-ratelimit": (b"X-RateLimit-Limit", b"X-RateLimit-Remaining", b"X-RateLimit-Reset"),
    "draft-11": (b"RateLimit-Policy", b"RateLimit"),
    "draft-06": (b"RateLimit-Limit", b"RateLimit-Remaining", b"RateLimit-Reset", b"RateLimit-Policy"),
    "openai": tuple(name.encode() for name in _OPENAI),
    "anthropic": tuple(name.encode() for name in _ANTHROPIC),
}

# Fields that a response has once: ours replace the application's. Those of draft-11 are lists, to which ours are added
# (section 7.3: an intermediary does not make another's quota look more permissive).
SINGLE: dict[str, frozenset[bytes]] = {
    "x-ratelimit": frozenset({b"x-ratelimit-limit", b"x-ratelimit-remaining", b"x-ratelimit-reset"}),
    "draft-11": frozenset(),
    "draft-06": frozenset({b"ratelimit-limit", b"ratelimit-remaining", b"ratelimit-reset", b"ratelimit-policy"}),
    "openai": frozenset(name.encode() for name in _OPENAI),
    "anthropic": frozenset(name.encode() for name in _ANTHROPIC),
}


def renderer(families: Sequence[str], *, expose: bool) -> Renderer:
    """Return one function from a decision to all headers of *families*; with *expose*, browsers may read them."""
    renderers = [FAMILIES[name] for name in families]
    if len(renderers) == 1 and not expose:
        return renderers[0]
    exposed = [name for family in families for name in EXPOSED[family]]
    exposing = (b"access-control-expose-headers", b", ".join([*exposed, b"Retry-After"]))

    def render(decision: Decision) -> list[Header]:
        headers = [header for family in renderers for header in family(decision)]
        return [*headers, exposing] if expose else headers

    return render


def replaced(families: Sequence[str]) -> frozenset[bytes]:
    """Lower-case names of the fields that only we say."""
    return frozenset(name for family in families for name in SINGLE[family])


def _told(decision: Decision) -> Sequence[Outcome]:
    """Return the outcomes that the client is told of; on a refusal those of quiet rules, too, if they refuse."""
    if decision.allowed:
        return told_of(decision.outcomes)
    return [o for o in decision.outcomes if not o.rule.silent or (o.refuses and not o.rule.shadow)]


def _on_behalf_of(decision: Decision, refusing: Outcome) -> Outcome:
    """Return the outcome to tell where the binding rule is a quiet one.

    It is that of the rule that the fields always speak of, with nothing remaining until *refusing* lets go. Where no
    wait helps, that rule's own figures are told, and where only quiet rules apply, *refusing* itself.
    """
    others = [outcome for outcome in decision.outcomes if not outcome.rule.silent]
    if not others:
        return refusing
    other = min(others, key=_remaining)
    if refusing.retry_after_ms is None:
        return other
    return refusing._replace(rule=other.rule, remaining=0)


def _remaining(outcome: Outcome) -> int:
    return outcome.remaining


def _policy_item(rule: Rule) -> bytes:
    return b'"%s";q=%d%s%s' % (rule.name.encode(), rule.quota.limit, _unit_parameter(rule), _window_parameter(rule))


def _unit_parameter(rule: Rule) -> bytes:
    # Section 3.1.2: what is counted, if it is not requests.
    return b';qu="concurrent-requests"' if rule.quota.kind == Slots.kind else b""


def _window_parameter(rule: Rule) -> bytes:
    # Section 3.1.3 has whole seconds only: a window of 500 ms cannot be told, and rounding it would be another policy.
    # And what counts by other than a window has none: a month has no length, and a bucket grants its limit at once.
    if rule.quota.kind != Quota.kind:
        return b""
    seconds = exact_s(rule.quota.window_ms)
    return b";w=%d" % seconds if isinstance(seconds, int) else b""
