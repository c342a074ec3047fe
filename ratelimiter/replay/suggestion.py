"""A policy suggested by a log: each rule with a limit that few callers would notice, and the reason beside it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from ratelimiter.core.quota import Bucket, Period
from ratelimiter.parsing.units import spell_limit
from ratelimiter.replay.limits import round_up, with_limit

if TYPE_CHECKING:
    from collections.abc import Mapping

    from ratelimiter.core.policy import Policy
    from ratelimiter.core.quota import AnyQuota

HEADROOM = 1.2  # above what callers needed, as tomorrow is not yesterday
FEW = 100  # callers; one percent of fewer is less than one caller
ABUSE = 4  # times what 99 % of callers need: the callers above are left out of the measure


def suggestions(policy: Policy, answer: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Return for each judged rule a limit and the reason for it.

    The limit is what all callers needed, with headroom; or what 99 % of them needed, if the others used several times
    as much, as a limit is there for these.
    """
    found = []
    for rule, told in zip(policy.rules, answer["rules"], strict=True):
        smallest = told.get("smallest_limit")
        if not told["judged"] or not smallest or smallest["nobody"] is None:
            reason = told["not_judged"] or "no request of the log met it"
            found.append({"rule": rule.name, "limit": None, "now": told["limit"], "reason": reason})
            continue
        everybody, most = smallest["nobody"], smallest["1%"]
        few = told["callers"] < FEW
        outliers = not few and everybody > ABUSE * most
        base = most if outliers else everybody
        limit = round_up(max(1, int(base * HEADROOM + 0.999)))
        limit = min(limit, 1000) if rule.quota.kind == "slots" else limit
        reason = (
            f"99 % of {told['callers']} callers needed at most {most}, the heaviest {everybody}, "
            f"more than {ABUSE} times as much: they would be limited"
            if outliers
            else f"the heaviest of {told['callers']} callers needed {everybody}, so none would be refused"
        )
        if few:
            reason += f"; with fewer than {FEW} callers look at them one by one"
        found.append(
            {
                "rule": rule.name,
                "limit": written_limit(with_limit(rule.quota, limit)),
                "now": told["limit"],
                "reason": f"{reason}; {HEADROOM - 1:.0%} headroom, rounded up",
            }
        )
    return found


def written_limit(quota: AnyQuota) -> str:
    """Return *quota* as a policy file has it; of a bucket the capacity, as its rate stays."""
    if isinstance(quota, Bucket):
        return f"burst: {quota.limit}"
    if isinstance(quota, Period):
        return f"{quota.limit}{' credits' if quota.credits else ''}/{quota.unit}"
    return spell_limit(quota)


def policy_text(suggested: list[dict[str, Any]]) -> str:
    """Return the suggestions as rules of a policy file, with the reasons as comments."""
    lines = ["rules:"]
    for each in suggested:
        lines.append(f"  # {each['reason']}")
        if each["limit"] is None:
            lines.append(f"  # - name: {each['rule']}   # stays at {each['now']}")
        else:
            lines += [f"  - name: {each['rule']}", f"    {_setting(each['limit'])}   # now {each['now']}"]
    return "\n".join(lines)


def _setting(limit: str) -> str:
    return limit if limit.startswith("burst:") else f"limit: {limit}"
