"""The answer of a replay for a terminal."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from ratelimiter.parsing.units import spell_duration
from ratelimiter.replay.suggestion import policy_text

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

BARS = " ▁▂▃▄▅▆▇█"
WIDTH = 60  # columns of the timeline


def text_report(answer: Mapping[str, Any]) -> str:
    """Return the report on *answer*."""
    return "\n".join(_lines(answer)) + "\n"


def percent(share: float) -> str:
    """Return *share* in percent, with as many digits as tell something."""
    if share and share < 0.001:
        return f"{share * 100:.3f} %"
    return f"{share * 100:.2f} %" if share < 0.1 else f"{share * 100:.1f} %"


def spell_wait(wait_ms: int | None) -> str:
    """Return a duration for people, to two digits or more; a dash for none."""
    if wait_ms is None:
        return "-"
    for unit, unit_ms in (("h", 3_600_000), ("m", 60_000), ("s", 1000)):
        if wait_ms >= 2 * unit_ms:
            return f"{wait_ms / unit_ms:.1f}".removesuffix(".0") + unit
    return f"{wait_ms}ms"


def _lines(answer: Mapping[str, Any]) -> Iterator[str]:
    requests, refused = answer["requests"], answer["refused"]
    yield f"{requests:,} requests of {answer['callers']:,} callers, {answer['from'] or '-'} to {answer['to'] or '-'}"
    yield (
        f"{refused:,} refused ({percent(answer['share'])}), of {answer['callers_refused']:,} callers"
        f"{_bounds(answer)}{_first(answer)}"
    )
    for log in answer["logs"]:
        yield f"  {log['log']}: {log['format']}, {log['lines']:,} lines, {log['requests']:,} requests"
    for kind in answer["unread_kinds"]:
        first = kind["first"]
        yield f"  {kind['lines']:,} lines unread: {kind['kind']}; the first is {first['place']}: {first['text']}"
    for name, what in (
        ("malformed", "requests with a path or a header that can be read in two ways (400)"),
        ("unmatched", "requests that no rule matches"),
    ):
        if answer[name]:
            yield f"  {answer[name]:,} {what}"
    yield from (f"  note: {note}" for note in answer["notes"])
    yield from _timeline(answer["timeline"]["points"], answer["timeline"]["step_ms"])
    for rule in answer["rules"]:
        yield ""
        yield from _rule(rule)
    if len(answer["rules"]) > 1 and answer["top"]:
        yield ""
        yield "refused most, by all rules"
        yield from _callers(answer["top"])
    if answer["against"]:
        yield ""
        yield from _against(answer["against"])
    if answer.get("suggestions"):
        yield ""
        yield "suggested"
        yield from ("  " + line for line in policy_text(answer["suggestions"]).split("\n"))


def _bounds(told: Mapping[str, Any]) -> str:
    least, most = told.get("at_least"), told.get("at_most")
    if not least or not most or least["refused"] == most["refused"]:
        return ""
    return f"; at least {least['refused']:,}, at most {most['refused']:,}"


def _first(answer: Mapping[str, Any]) -> str:
    first = answer["first_refusal"]
    return f"; the first at {first['at']} by {first['rule']}" if first else ""


def _rule(rule: Mapping[str, Any]) -> Iterator[str]:
    shadow = ", in shadow" if rule["shadow"] else ""
    yield f"{rule['name']}: {rule['limit']}{shadow}"
    if not rule["judged"]:
        yield f"  not judged: {rule['not_judged']}"
        return
    if rule["note"]:
        yield f"  {rule['note']}"
    yield (
        f"  {rule['refused']:,} of {rule['requests']:,} requests refused ({percent(rule['share'])}), "
        f"{rule['callers_refused']:,} of {rule['callers']:,} callers{_bounds(rule)}"
    )
    waits = rule["waits_ms"]
    if waits:
        told = ", ".join(f"{name} {spell_wait(waits[name])}" for name in ("p50", "p90", "p99", "max"))
        never = f", {waits['never']:,} that no wait helps" if waits["never"] else ""
        yield f"  told to wait: {told}{never}; longest refusal {spell_wait(rule['longest_refusal_ms'])}"
    use = rule["use"]
    if use["max"] is not None:
        told = ", ".join(f"{name} {use[name]:.0%}" for name in ("p50", "p90", "p99", "max"))
        yield f"  use of callers that were not refused: {told}"
    smallest = rule["smallest_limit_spelled"]
    if smallest["nobody"] is not None:
        told = ", ".join(f"{share} {smallest[share]}" for share in ("0.1%", "1%", "5%"))
        yield f"  smallest limit that refuses no caller: {smallest['nobody']}; that touches at most {told} of callers"
    yield from _callers(rule["top"][:5])
    for name, compared in (rule.get("compare") or {}).items():
        if compared:
            yield (
                f"  {name}: {compared['refused']:,} refused, {compared['callers_refused']:,} callers; "
                f"most in a window {compared['most_in_a_window']:,}"
            )


def _callers(callers: Sequence[Mapping[str, Any]]) -> Iterator[str]:
    width = max((len(each["caller"]) for each in callers), default=0)
    for each in callers:
        yield f"    {each['caller']:<{width}}  {each['refused']:>8,} of {each['requests']:,} refused"


def _timeline(points: Sequence[Mapping[str, Any]], step_ms: int) -> Iterator[str]:
    """Yield the refusals over time as one row of bars."""
    if len(points) < 2 or not any(point["refused"] for point in points):
        return
    each = -(-len(points) // WIDTH)
    sums = [sum(point["refused"] for point in points[at : at + each]) for at in range(0, len(points), each)]
    most = max(sums)
    row = "".join(BARS[-(-value * (len(BARS) - 1) // most)] for value in sums)
    yield f"  refused over time, at most {most:,} in {spell_duration(step_ms * each)}: [{row}]"


def _against(against: Mapping[str, Any]) -> Iterator[str]:
    yield (
        f"against the other policy: {against['refused']:,} refused ({percent(against['share'])}), "
        f"of {against['callers_refused']:,} callers"
    )
    yield (
        f"  refused by both {against['refused_by_both']:,}, by this policy only {against['refused_by_this_only']:,}, "
        f"by the other only {against['refused_by_other_only']:,}"
    )
    for rule in against["rules"]:
        told = f"not judged: {rule['not_judged']}" if rule["not_judged"] else f"{rule['refused']:,} refused"
        yield f"  {rule['name']}: {rule['limit']}, {told}"
    for key, what in (("this", "this policy"), ("other", "the other policy")):
        count = against[f"callers_refused_by_{key}_only"]
        if count:
            yield f"  {count:,} callers are refused by {what} only:"
            for each in against[f"callers_by_{key}_only"][:5]:
                refused = max(each["refused"], each["refused_by_other"])
                yield f"    {each['caller']}  {refused:,} of {each['requests']:,}"
