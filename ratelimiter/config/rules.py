"""The section `rules` of a policy file: from plain values, which fit the schema, to drafts of rules."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Any

from ratelimiter.config import descriptors, tokens
from ratelimiter.config.layers import DraftRule
from ratelimiter.config.match import read_match
from ratelimiter.config.principal import read_principal
from ratelimiter.core.match import Match
from ratelimiter.core.principal import EVERYONE
from ratelimiter.core.quota import LEASE_TTL_MS, WINDOW_MS_MAX, Balance, Bucket, Period, Quota, Slots
from ratelimiter.core.rule import LONG_WINDOWS, REQUEST_HEADER, Mode, OnStoreError, Rule
from ratelimiter.parsing import values
from ratelimiter.parsing.document import Path, shown
from ratelimiter.parsing.units import CALENDAR, TOKEN_BUCKET, UNLIMITED, LimitOptions, parse_limit, spell_limit

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping

    from ratelimiter.config.layers import Layer
    from ratelimiter.core.quota import AnyQuota
    from ratelimiter.core.rule import CostFrom

    Reader = Callable[[Layer, Path, Any], Any]  # raises ValueError, or notes the problem itself and returns None
    Limits = tuple[AnyQuota, tuple[tuple[str, AnyQuota | None], ...]]  # the rule's own, and those of its plans


PLANS_TOLD = 10  # missing plans of one rule that problems name


def _by(convert: Callable[[Any], Any]) -> Reader:
    return lambda _layer, _path, value: convert(value)


# Field of a rule -> its reader. What `limit` is read with stands in `_limit_options`.
READERS: dict[str, Reader] = {
    "burst": _by(int),
    "cost": _by(int),
    "cost_from": _by(values.read_cost_from),
    "count": _by(values.read_count),
    "warn_at": _by(float),
    "mode": _by(Mode),
    "quiet": _by(bool),
    "announce": _by(bool),
    "lease": _by(values.read_lease),
    "on_store_error": _by(OnStoreError),
    "principal": read_principal,
    "match": read_match,
    "instead": _by(bool),
    "always": _by(bool),
}


def read_rules(layer: Layer, rules: list[Any]) -> Iterator[DraftRule]:
    """Yield a draft of each rule whose limit is sound, and note every problem of all rules."""
    seen: dict[str, int] = {}
    for index, rule in enumerate(rules):
        path: Path = ("rules", index)
        if not isinstance(rule, dict):
            continue
        draft = _read_rule(layer, path, rule)
        name = rule.get("name")
        if isinstance(name, str) and layer.sound((*path, "name")):
            if name in seen:
                text = f"{shown(name)} is also the name of rules[{seen[name]}]; write another"
                layer.refuse((*path, "name"), text)
            seen.setdefault(name, index)
        if draft is not None:
            yield draft


def check_plans(layer: Layer) -> None:
    """Refuse limits by plan that lack a plan: the default, or one that another rule has."""
    stated = layer.document.value.get("rules") if isinstance(layer.document.value, dict) else None
    limits = [rule.get("limit") for rule in stated if isinstance(rule, dict)] if isinstance(stated, list) else []
    known = {
        plan: index for index, limit in reversed(list(enumerate(limits))) if isinstance(limit, dict) for plan in limit
    }
    choice = layer.fields.get("plan")
    for index, limit in enumerate(limits):
        path: Path = ("rules", index, "limit")
        if not isinstance(limit, dict) or not layer.sound(path):
            continue
        if "plan" not in layer.document.value:
            what = f"write plan: {{default: {next(iter(limit))}}}, too"
            layer.refuse(path, f"is by plan, and nothing says which plan a request is on; {what}")
            continue
        if choice is None:
            continue
        missing = [plan for plan in {choice.default: -1} | known if plan not in limit]
        for plan in missing[:PLANS_TOLD]:
            why = "is the default" if plan == choice.default else f"has one in rules[{known[plan]}]"
            text = f"has no limit for plan {shown(plan)}, which {why}; write it, or {plan}: {UNLIMITED}"
            layer.refuse(path, text)
        if len(missing) > PLANS_TOLD:
            layer.refuse(path, f"has no limit for {len(missing) - PLANS_TOLD} more plans; write these, too")
            return  # each further rule would lack as many


def _read_rule(layer: Layer, path: Path, rule: Mapping[str, Any]) -> DraftRule | None:
    part = partial(_read_part, layer, path, rule)
    options = _limit_options(part, rule)
    if descriptors.FIELD in rule:
        return _read_rule_of_descriptors(layer, path, rule, options)
    descriptors.refuse_strangers(path, rule, layer.refuse)
    terms = tokens.read_terms(layer, path, rule)
    limits: Limits | None = part("limit", partial(_read_limits, options=options))
    stated = {name: read for name, reader in READERS.items() if (read := part(name, reader)) is not None}
    if terms is not None:
        stated["tokens"] = terms
    _check_names(layer, path, stated)
    return _draft(layer, path, rule, limits, stated)


def _check_names(layer: Layer, path: Path, stated: Mapping[str, Any]) -> None:
    """Refuse a principal from a path parameter that a path of the rule does not have."""
    match = stated.get("match", Match())
    for source in stated.get("principal", ()):
        for each in source.each:
            if each.kind == "path" and each.name not in match.names:
                text = f"{each} needs a path with {{{each.name}}} in it; write match: {{path: /orders/{{{each.name}}}}}"
                layer.refuse((*path, "principal"), text)


def _read_rule_of_descriptors(
    layer: Layer, path: Path, rule: Mapping[str, Any], options: LimitOptions
) -> DraftRule | None:
    if tokens.FIELD not in rule:
        tokens.read_terms(layer, path, rule)  # refuses the fields that would need it
    sound = "limit" in rule and layer.sound((*path, descriptors.FIELD)) and layer.sound((*path, "limit"))
    meant = descriptors.read_match(path, rule, layer.refuse) if sound else None
    part = partial(_read_part, layer, path, rule)
    limits: Limits | None = (descriptors.PLACEHOLDER, ())
    if meant is None or not meant.answer:
        limits = part("limit", partial(_read_limits, options=options))
    others = {name: reader for name, reader in READERS.items() if name not in ("principal", *descriptors.NEVER_HERE)}
    stated = {name: read for name, reader in others.items() if (read := part(name, reader)) is not None}
    if meant is None:
        return None
    stated |= {"descriptors": meant, "principal": (EVERYONE,)}
    if meant.refunds:  # a refund is taken from where its charge is, which no lease knows
        stated["lease"] = 0
    return _draft(layer, path, rule, limits, stated)


def _draft(
    layer: Layer, path: Path, rule: Mapping[str, Any], limits: Limits | None, stated: dict[str, Any]
) -> DraftRule | None:
    if limits is None:
        return None
    quota, plans = limits
    if plans:
        stated["plans"] = plans
    _refuse_strangers(layer, path, quota, rule)
    if isinstance(quota, Bucket):
        stated.pop("burst", None)  # the bucket's capacity
    if layer.sound((*path, "burst")) and layer.sound((*path, "cost")):
        for each in {quota, *(other for _, other in plans if other is not None)}:
            _check_numbers(layer, path, each, stated)
    if isinstance(quota, Slots):
        _refuse_settling(layer, path, stated)
    return DraftRule(rule.get("name", ""), quota, stated)


def _read_part(layer: Layer, path: Path, rule: Mapping[str, Any], name: str, reader: Reader) -> Any:
    """Return the field *name* of *rule* as *reader* reads it; None if it is missing or was refused."""
    at = (*path, name)
    if name not in rule or not layer.sound(at):
        return None
    return layer.read(at, rule[name], partial(reader, layer, at))


def _limit_options(part: Callable[[str, Reader], Any], rule: Mapping[str, Any]) -> LimitOptions:
    capacity = part("burst", _by(int)) if rule.get("algorithm") == TOKEN_BUCKET else None
    return LimitOptions(
        part("algorithm", _by(str)) or "",
        capacity or 0,
        part("timezone", _by(values.read_timezone)) or "UTC",
        part("lease_ttl", _by(values.read_lease_ttl_ms)) or LEASE_TTL_MS,
    )


def _read_limits(layer: Layer, path: Path, value: Any, *, options: LimitOptions) -> Limits | None:
    """Return the limit and those of the plans; None if one of them was refused."""
    if not isinstance(value, dict):
        return parse_limit(value, options), ()
    plans: dict[str, AnyQuota | None] = {}
    for plan, text in value.items():
        try:
            plans[plan] = None if text == UNLIMITED else parse_limit(text, options)
        except ValueError as fault:
            layer.refuse((*path, plan), str(fault))
    limited = [quota for quota in plans.values() if quota is not None]
    if len(plans) < len(value):
        return None
    if not limited:
        msg = "no plan has a limit here; leave the rule out, or write one like 60/minute"
        raise ValueError(msg)
    if len({quota.kind for quota in limited}) > 1:
        msg = "the plans have limits of different kinds; write limits of one kind, and a rule for each"
        raise ValueError(msg)
    choice = layer.fields.get("plan")
    default = None if choice is None else plans.get(choice.default)
    return default or limited[0], tuple(plans.items())


def _refuse_settling(layer: Layer, path: Path, stated: Mapping[str, Any]) -> None:
    """Refuse settings by which a response changes the charge, where the whole charge is released anyway."""
    source: CostFrom | None = stated.get("cost_from")
    for name in ("count", "tokens", "cost_from"):
        if name in stated and (name != "cost_from" or (source is not None and source.where != REQUEST_HEADER)):
            text = "has no effect on a limit of concurrent requests, as each releases its slots; leave it out"
            layer.refuse((*path, name), text, at_key=True)


def _refuse_strangers(layer: Layer, path: Path, quota: AnyQuota, rule: Mapping[str, Any]) -> None:
    """Refuse fields that have no meaning for the kind of limit beside them."""
    limit = shown(rule["limit"]) if isinstance(rule["limit"], str) else spell_limit(quota)
    strangers = {
        "algorithm": isinstance(quota, Slots | Balance)
        or (isinstance(quota, Period) and quota.credits and rule.get("algorithm") != CALENDAR),
        "burst": bool(rule.get("burst")) and not isinstance(quota, Quota | Bucket),
        "timezone": not isinstance(quota, Period),
        "lease_ttl": not quota.lease_ttl_ms,
    }
    for name, strange in strangers.items():
        if name in rule and strange and layer.sound((*path, name)):
            layer.refuse((*path, name), f"has no meaning for {limit}; leave it out", at_key=True)
    if quota.credits and rule.get("on_store_error") == OnStoreError.LOCAL:
        text = "'local' is not for credits, as each process would grant its share again; write deny or allow"
        layer.refuse((*path, "on_store_error"), text)


def _check_numbers(layer: Layer, path: Path, quota: AnyQuota, stated: Mapping[str, Any]) -> None:
    burst, cost = stated.get("burst", 0), stated.get("cost", 1)
    if burst and quota.window_ms * LONG_WINDOWS > WINDOW_MS_MAX:
        spans = f"a burst spans {LONG_WINDOWS} windows, and that is over 366 days"
        layer.refuse((*path, "burst"), f"{spans}; write a window of at most 36 days, or no burst")
        return
    try:
        Rule("any", quota, burst=burst)
    except ValueError:
        text = f"{burst} and ten times the limit exceed 1000000000; write a smaller burst or limit"
        layer.refuse((*path, "burst"), text)
        return
    if cost > quota.limit + burst and not isinstance(quota, Balance):  # a balance may be topped up
        text = f"{cost} never fits a limit of {quota.limit + burst}; write at most {quota.limit + burst}"
        layer.refuse((*path, "cost"), text)
