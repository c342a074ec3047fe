"""The rules of endpoints: from limits as they are written in code to rules with names and keys of their own."""

from __future__ import annotations

from hashlib import blake2b
from typing import TYPE_CHECKING, Any

from ratelimiter.core.policy import with_quota
from ratelimiter.core.principal import CLIENT, IDENTIFIED
from ratelimiter.core.rule import NAME_CHARACTERS, NAME_CHARACTERS_MAX, Rule
from ratelimiter.errors import ConfigError
from ratelimiter.parsing.units import UNLIMITED, parse_limit
from ratelimiter.parsing.values import read_count

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from ratelimiter.core.quota import AnyQuota

    Limit = str | Mapping[str, str]  # one limit, or one for each plan


def draft_of(
    limit: Limit, *, count: int | str | Sequence[int | str], cost: int | Callable[..., Any]
) -> list[tuple[str, Rule | None]]:
    """Return the rule of *limit* for each plan, the default first; of a limit without plans for the plan "".

    Raises:
        ConfigError: it cannot be read.
    """
    stated = {"": limit} if isinstance(limit, str) else dict(limit)
    try:
        counted = read_count([count] if isinstance(count, (int, str)) else list(count)) if count != () else frozenset()
        quotas = {plan: None if text == UNLIMITED else parse_limit(text) for plan, text in stated.items()}
        first = next(quota for quota in quotas.values() if quota is not None)
        units = 1 if callable(cost) else cost
        rule = Rule(_unit_name(first), first, principal=(IDENTIFIED, CLIENT), cost=units, count=counted)
        return [(plan, None if quota is None else with_quota(rule, quota)) for plan, quota in quotas.items()]
    except StopIteration:
        msg = "limits: no plan has a limit; write one like 10/minute for one of them"
        raise ConfigError(msg) from None
    except ValueError as fault:
        msg = f"limits: {fault}"
        raise ConfigError(msg) from None


def chosen(draft: Sequence[tuple[str, Rule | None]], plan: str) -> Rule | None:
    """Return the rule of *draft* for *plan*, or for the default; None if the plan has no limit."""
    return dict(draft).get(plan, draft[0][1])


def _unit_name(quota: AnyQuota) -> str:
    """Return what tells the limits of one endpoint apart, and stays when only their number changes."""
    unit = getattr(quota, "unit", "")
    return f"{quota.kind}-{unit or quota.window_ms}" if unit or quota.window_ms else quota.kind


def named(rule: Rule, place: str) -> Rule:
    """Return *rule* under a name of *place*: readable, a rule's name, and another for each place (7)."""
    digest = blake2b(f"{place}\n{rule.name}".encode(), digest_size=4).hexdigest()
    readable = "".join(each if each in NAME_CHARACTERS else "-" for each in place.lower()).strip("-")
    room = NAME_CHARACTERS_MAX - len(rule.name) - len(digest) - 2
    parts = (readable[:room].strip("-"), rule.name, digest)
    named = with_quota(rule, rule.quota)
    object.__setattr__(named, "name", ".".join(part for part in parts if part))
    return named


def place_of(scope: Any) -> str:
    """Return the endpoint that *scope* was routed to, by its methods and its template, wherever it is mounted."""
    route = scope.get("route")
    mount = str(scope.get("root_path", "")).removeprefix(str(scope.get("app_root_path", "")))
    template = getattr(route, "path_format", None) or getattr(route, "path", None) or scope["path"]
    methods = ".".join(sorted(getattr(route, "methods", None) or ())) or scope["type"]
    return f"{methods} {mount}{template}"
