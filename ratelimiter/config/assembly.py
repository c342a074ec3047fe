"""From fields and drafts of rules, all of them sound, to the `Policy`."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

from ratelimiter.config import override_rows, overrides
from ratelimiter.core.client_address import Trust
from ratelimiter.core.policy import Policy
from ratelimiter.core.rule import Rule
from ratelimiter.errors import ConfigError
from ratelimiter.parsing.units import name_of

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from ratelimiter.config.layers import DraftRule

OF_RULES = ("principal", "mode", "on_store_error", "path_case")  # defaults that rules take over
OF_TRUST = {  # field -> attribute of `Trust`
    "trusted_proxies": "proxies",
    "trusted_hops": "hops",
    "client_header": "header",
    "ipv6_prefix": "ipv6_prefix",
}


def assemble(fields: Mapping[str, Any], drafts: Sequence[DraftRule], *, whole: bool = True) -> Policy:
    """Return the policy of *fields* and *drafts*; if not *whole*, without its overrides.

    Raises:
        ConfigError: an override does not fit rules that come from another source.
    """
    ignore_case = fields.get("path_case") == "insensitive"
    common = {name: fields[name] for name in OF_RULES if name in fields and name != "path_case"}
    rules = []
    for name, draft in zip(_names(drafts), drafts, strict=True):
        stated = common | draft.stated
        if ignore_case and "match" in stated:
            stated["match"] = replace(stated["match"], ignore_case=True)
        rules.append(Rule(name, draft.quota, **stated))
    others = policy_fields(fields)
    drafted, rows = others.pop("overrides", ()), others.pop("override_rows", None)
    if ignore_case and "requirements" in others:
        others["requirements"] = tuple(
            replace(requirement, match=replace(requirement.match, ignore_case=True))
            for requirement in others["requirements"]
        )
    policy = Policy(tuple(rules), **others)
    if not whole or not (drafted or rows):
        return policy
    try:
        table = None if rows is None else override_rows.table_of(rows, policy)
        return replace(policy, overrides=overrides.made(drafted, policy), override_table=table)
    except ValueError as fault:
        # Within one source `fields.read_layer` has found this already, with its place.
        msg = f"overrides: {fault}"
        raise ConfigError(msg) from None


def policy_fields(fields: Mapping[str, Any]) -> dict[str, Any]:
    """Return the arguments of `Policy` in *fields*, but for the rules."""
    trust = {OF_TRUST[name]: value for name, value in fields.items() if name in OF_TRUST}
    elsewhere = {*OF_TRUST, *OF_RULES, "proxy"}
    others = {name: value for name, value in fields.items() if name not in elsewhere}
    if "decision_timeout" in others:
        others["decision_timeout_ms"] = others.pop("decision_timeout")
    return others | ({"trust": Trust(**trust)} if trust else {})


def _names(drafts: Sequence[DraftRule]) -> list[str]:
    """Return a name for every rule: its own, or one made of its window; a number makes it unique."""
    taken = {draft.name for draft in drafts}
    names = []
    for draft in drafts:
        name = draft.name
        if not name:
            stem = name = name_of(draft.quota)
            number = 2
            while name in taken:
                name = f"{stem}-{number}"
                number += 1
            taken.add(name)
        names.append(name)
    return names
