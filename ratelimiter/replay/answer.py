"""The findings of a replay, as one object of plain values: the JSON of `ratelimiter replay --json`.

Its fields are documented in docs/reference/replay.md. Fields may be added under the same schema; none changes meaning.
"""

from __future__ import annotations

from collections import Counter
from datetime import UTC, datetime
from operator import attrgetter
from typing import TYPE_CHECKING, Any

from ratelimiter.parsing.units import spell_limit
from ratelimiter.replay.format import Stamp
from ratelimiter.replay.limits import SHARES, needs_of, quantile, smallest_limit, with_limit

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from ratelimiter.core.policy import Policy
    from ratelimiter.core.rule import Rule
    from ratelimiter.replay.entry import Caller
    from ratelimiter.replay.judge import Judge
    from ratelimiter.replay.run import Log, Replay
    from ratelimiter.replay.tracked import Tracked

SCHEMA = "ratelimiter.replay/1"
TOP = 10
SHARE_NAMES = dict(zip(SHARES, ("nobody", "0.1%", "1%", "5%"), strict=True))


def answer_of(replay: Replay, *, top: int = TOP) -> dict[str, Any]:
    """Return what *replay*, which has run, found.

    Args:
        replay: is asked.
        top: callers that are listed for each rule and in all.
    """
    judge, timeline = replay.judge, replay.timeline
    callers = judge.callers
    refused = sum(caller.refused > 0 for caller in callers.values())
    at_least, at_most = _bounds(replay)
    found = {
        "schema": SCHEMA,
        "requests": judge.requests,
        "refused": judge.refused,
        "share": _share(judge.refused, judge.requests),
        "unread": sum(each.lines for each in replay.unread.values()),
        "callers": len(callers),
        "callers_refused": refused,
        "at_least": at_least,
        "at_most": at_most,
        "from": spell_time(timeline.first_ms) if timeline.points else None,
        "to": spell_time(timeline.last_ms) if timeline.points else None,
        "first_refusal": _first_refusal(judge),
        "malformed": judge.malformed,
        "unmatched": judge.unmatched,
        "unattributed": judge.unattributed,
        "omitted": sum(log.omitted for log in replay.logs),
        "waits_ms": _waits(judge.waits),
        "logs": [_log(log) for log in replay.logs],
        "unread_kinds": [
            {"kind": kind, "lines": each.lines, "first": {"place": each.place, "text": each.text}}
            for kind, each in sorted(replay.unread.items(), key=lambda item: -item[1].lines)
        ],
        "rules": [_rule(replay, rule, top) for rule in replay.policy.rules],
        "top": _top_callers(callers, top),
        "timeline": {
            "step_ms": timeline.step_ms,
            "points": [
                {"at": spell_time(number * timeline.step_ms), "requests": requests, "refused": refused}
                for number, (requests, refused) in sorted(timeline.points.items())
            ],
        },
        "against": None if replay.other is None else _against(replay, replay.other, top),
    }
    if judge.comparisons:
        found["compare"] = {each.name: {"refused": each.refused} for each in judge.comparisons}
    found["notes"] = _notes(replay)
    return found


def spell_time(at_ms: int) -> str:
    """Return *at_ms* in ISO 8601, in UTC."""
    at = datetime.fromtimestamp(at_ms // 1000, UTC).replace(microsecond=at_ms % 1000 * 1000)
    return at.isoformat(timespec="milliseconds" if at_ms % 1000 else "seconds").replace("+00:00", "Z")


def _share(part: int, whole: int) -> float:
    return round(part / whole, 6) if whole else 0.0


def _bounds(replay: Replay) -> tuple[dict[str, int] | None, dict[str, int] | None]:
    """Return the fewest and the most requests that exact times could have had refused; None if the times are exact."""
    judge = replay.judge
    if not judge.bounds_refused:
        return None, None
    refused = [judge.refused] * (2 - len(judge.bounds_refused)) + judge.bounds_refused
    return {"refused": min(refused[0], judge.refused)}, {"refused": max(refused[1], judge.refused)}


def _first_refusal(judge: Judge) -> dict[str, Any] | None:
    if judge.first_refusal is None:
        return None
    at_ms, rule, caller = judge.first_refusal
    digest = next(digest for digest, each in judge.callers.items() if each is caller)
    return {"at": spell_time(at_ms), "rule": rule, "caller": caller.name or digest.hex()}


def _waits(waits: Counter[int | None]) -> dict[str, Any] | None:
    """Return how long refused requests were told to wait; `never` are those that no wait helps."""
    if not waits:
        return None
    known = sorted((wait, count) for wait, count in waits.items() if wait is not None)
    total = sum(count for _, count in known)
    found: dict[str, Any] = {"never": waits[None]}
    for name, share in (("p50", 0.5), ("p90", 0.9), ("p99", 0.99), ("max", 1.0)):
        rank, passed = max(1, -int(-share * total // 1)), 0
        found[name] = None
        for wait, count in known:
            passed += count
            if passed >= rank:
                found[name] = wait
                break
    return found


def _log(log: Log) -> dict[str, Any]:
    return {
        "log": log.source.place,
        "format": log.format.name,
        "lines": log.lines,
        "requests": log.read,
        "stamp": str(log.format.stamp),
        "resolution_ms": log.format.resolution_ms,
        "omitted": log.omitted,
        "out_of_order": log.disorder.sorted,
        "late": log.disorder.late,
        "fault": log.source.fault or None,
    }


def _top_callers(callers: Mapping[bytes, Caller], top: int) -> list[dict[str, Any]]:
    refused = [(digest, each) for digest, each in callers.items() if each.refused]
    refused.sort(key=lambda pair: (-pair[1].refused, pair[1].name or "", pair[0]))
    return [
        {"caller": each.name or digest.hex(), "refused": each.refused, "requests": each.requests}
        for digest, each in refused[:top]
    ]


def _rule(replay: Replay, rule: Rule, top: int) -> dict[str, Any]:
    """Return what was found for one rule."""
    judge = replay.judge
    reason = replay.told.unjudged.get(rule.name)
    found: dict[str, Any] = {
        "name": rule.name,
        "limit": spell_limit(rule.quota),
        "shadow": rule.shadow,
        "judged": reason is None,
        "not_judged": reason,
        "note": replay.told.notes.get(rule.name),
    }
    if reason is not None:
        return {**found, "requests": 0, "refused": 0, "callers": 0, "callers_refused": 0}
    tracked = [judge.tracked[key] for key in ((rule.name, 0), (rule.name, 1)) if key in judge.tracked]
    first = tracked[0] if tracked else {}
    requests = sum(each.requests for each in first.values())
    refused = judge.rule_refused[rule.name]
    by_caller = _refused_by_caller(tracked)
    needs = needs_of(rule, tracked)
    smallest = {name: smallest_limit(needs, share) for share, name in SHARE_NAMES.items()}
    found |= {
        "requests": requests,
        "refused": refused,
        "share": _share(refused, requests),
        "callers": len(first),
        "callers_refused": len(by_caller),
        "at_least": None,
        "at_most": None,
        "waits_ms": _waits(judge.rule_waits[rule.name]),
        "longest_refusal_ms": max((each.longest_ms for among in tracked for each in among.values()), default=0),
        "use": _use(first, by_caller),
        "smallest_limit": smallest,
        "smallest_limit_spelled": {
            name: None if limit is None else spell_limit(with_limit(rule.quota, min(limit, _most(rule))))
            for name, limit in smallest.items()
        },
        "top": _top_of_rule(first, by_caller, top),
    }
    if judge.bounds_refused:
        sums = [0] * len(judge.bounds_refused)
        touched = [0] * len(judge.bounds_refused)
        for each in first.values():
            for number, count in enumerate(each.bounds or ()):
                sums[number] += count
                touched[number] += count > 0
        least = (refused, len(by_caller)) if len(sums) == 1 else (sums[0], touched[0])
        found["at_least"] = {"refused": min(least[0], refused), "callers_refused": min(least[1], len(by_caller))}
        found["at_most"] = {"refused": max(sums[-1], refused), "callers_refused": max(touched[-1], len(by_caller))}
    if judge.comparisons:
        found["compare"] = {
            one.name: _compared(first.values(), number) for number, one in enumerate(judge.comparisons)
        }  # fmt: skip
    return found


def _most(rule: Rule) -> int:
    return 1000 if rule.quota.kind == "slots" else 10**9


def _refused_by_caller(tracked: Sequence[Mapping[bytes, Tracked]]) -> dict[bytes, int]:
    found: Counter[bytes] = Counter()
    for among in tracked:
        for digest, each in among.items():
            if each.refused:
                found[digest] += each.refused
    return dict(found)


def _use(first: Mapping[bytes, Tracked], by_caller: Mapping[bytes, int]) -> dict[str, float | None]:
    """Return how much of its limit each caller that was not refused used at most: 1 is all of it."""
    shares = sorted(each.most / each.quota.limit for digest, each in first.items() if digest not in by_caller)
    found = {name: quantile(shares, share) for name, share in (("p50", 0.5), ("p90", 0.9), ("p99", 0.99), ("max", 1.0))}
    return {name: None if share is None else round(share, 4) for name, share in found.items()}


def _top_of_rule(first: Mapping[bytes, Tracked], by_caller: Mapping[bytes, int], top: int) -> list[dict[str, Any]]:
    listed = sorted(by_caller.items(), key=lambda pair: (-pair[1], first[pair[0]].name or "", pair[0]))[:top]
    return [
        {
            "caller": first[digest].name or digest.hex(),
            "refused": count,
            "requests": first[digest].requests,
            "longest_refusal_ms": first[digest].longest_ms,
            "needs": first[digest].needed,
        }
        for digest, count in listed
    ]


def _compared(tracked: Iterable[Tracked], number: int) -> dict[str, int] | None:
    states = [each.compared[number] for each in tracked if each.compared and each.compared[number] is not None]
    if not states:
        return None
    return {
        "refused": sum(state.refused for state in states),
        "callers_refused": sum(state.refused > 0 for state in states),
        "most_in_a_window": max(map(attrgetter("most"), states)),
    }


def _against(replay: Replay, other: Judge, top: int) -> dict[str, Any]:
    """Return how the other policy judged the same requests."""
    callers = replay.judge.callers
    gained = {digest: each for digest, each in callers.items() if each.refused and not each.other_refused}
    lost = {digest: each for digest, each in callers.items() if each.other_refused and not each.refused}

    def listed(among: Mapping[bytes, Caller]) -> list[dict[str, Any]]:
        most = sorted(among.items(), key=lambda pair: (-max(pair[1].refused, pair[1].other_refused), pair[0]))[:top]
        return [
            {
                "caller": each.name or digest.hex(),
                "requests": each.requests,
                "refused": each.refused,
                "refused_by_other": each.other_refused,
            }
            for digest, each in most
        ]

    policy: Policy | None = replay.against
    told = replay.other_told
    return {
        "refused": other.refused,
        "share": _share(other.refused, other.requests),
        "callers_refused": sum(each.other_refused > 0 for each in callers.values()),
        "refused_by_both": replay.changes[False, False],
        "refused_by_this_only": replay.changes[False, True],
        "refused_by_other_only": replay.changes[True, False],
        "callers_refused_by_this_only": len(gained),
        "callers_refused_by_other_only": len(lost),
        "callers_by_this_only": listed(gained),
        "callers_by_other_only": listed(lost),
        "rules": [
            {
                "name": rule.name,
                "limit": spell_limit(rule.quota),
                "refused": other.rule_refused[rule.name],
                "not_judged": told.unjudged.get(rule.name) if told else None,
            }
            for rule in (policy.rules if policy else ())
        ],
    }


def _notes(replay: Replay) -> list[str]:
    """Return what a reader must know to take the numbers for what they are."""
    notes = []
    if replay.coarse:
        notes.append(
            "times are of whole seconds, so a request may be judged up to a second off: "
            "at_least and at_most are the bounds for each limit by itself"
        )
    unsure = sorted({log.format.name for log in replay.logs if log.format.stamp is Stamp.EITHER})
    if unsure:
        notes.append(f"{', '.join(unsure)}: Apache writes when a request began, nginx when it ended; taken as written")
    ends = sorted(
        {log.format.name for log in replay.logs if log.format.stamp is Stamp.END and not log.format.starts_known}
    )
    if ends:
        notes.append(
            f"{', '.join(ends)}: times are those of the end and durations are not logged, so starts are later than real"
        )
    late = sum(log.disorder.late for log in replay.logs)
    if late:
        notes.append(f"{late} lines came too late to be put in order; raise --reorder to wait longer for such lines")
    omitted = sum(log.omitted for log in replay.logs)
    if omitted:
        notes.append(f"{omitted} refusals were left out of the log when it was written, and cannot be judged")
    if replay.judge.unattributed:
        notes.append(
            f"{replay.judge.unattributed} requests have no client in their line, so rules by client left them out"
        )
    if any(log.format.name == "haproxy" for log in replay.logs):
        notes.append("haproxy: times have no zone; they were read as --timezone says, UTC by default")
    lists = [log for log in replay.logs if log.format.name in ("envoy", "traefik", "traefik-json")]
    if lists and not replay.policy.trust.anyone:
        notes.append("of a list of addresses the first is the client; set trusted_proxies to walk it from the right")
    notes.extend(log.source.fault for log in replay.logs if log.source.fault)
    return notes
