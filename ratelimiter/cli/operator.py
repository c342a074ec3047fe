"""The operator's commands: flags in, a table or JSON out."""

from __future__ import annotations

import json
import sys
from typing import TYPE_CHECKING, Any

from ratelimiter.cli.parser import whole_number
from ratelimiter.cli.table import print_table
from ratelimiter.core.headers import ceil_s
from ratelimiter.errors import ConfigError

if TYPE_CHECKING:
    import argparse
    from collections.abc import Awaitable, Callable, Mapping

    from ratelimiter.admin.expiry import Expiry
    from ratelimiter.admin.operator import Operator
    from ratelimiter.cli.parser import Commands

    Verb = Callable[[Operator], Awaitable[Any]]

# Each command imports its modules when it runs, so that `--help` is fast.
# ruff: noqa: PLC0415

TIMEOUT_MS = 3000  # a person waits longer than a request
STDIN_MAX = 4096
AUDIT_MAX = 1000  # lines that are searched for the author of an order
WHO = "name it by header:NAME=VALUE, client=ADDRESS, bearer=NAME, org=NAME or digest=HEX; - reads it from stdin"


def add_commands(commands: Commands) -> None:  # noqa: PLR0915 - a list of flags
    """Add the operator's commands."""

    def command(name: str, run: Any, text: str) -> argparse.ArgumentParser:
        return commands.add("operate", name, run, text)

    peek = command("peek", _peek, "show a principal's counters and overrides")
    _add_principal(peek)
    peek.add_argument("--plan", metavar="PLAN", default="", help="show the limits of this plan; default: the default")

    reset = command("reset", _reset, "forget the counters of a principal")
    _add_principal(reset)
    reset.add_argument("--rule", metavar="NAME", default="", help="reset this rule; default: all but balances")
    _add_author(reset)
    reset.add_argument("--balances", action="store_true", help="refill balances, too, less the units topped up")

    block = command("block", _block, "refuse every request of a principal")
    _add_principal(block)
    _add_until(block)
    _add_author(block)

    unblock = command("unblock", _unblock, "admit a blocked principal again")
    _add_principal(unblock)
    _add_author(unblock)

    override = command("override", _override_list, "give a principal another limit or plan than the policy")
    verbs = override.add_subparsers(required=True, metavar="VERB", title="verbs")
    set_ = verbs.add_parser("set", help="set or replace an override", description="Set or replace an override.")
    set_.set_defaults(run=_override_set)
    set_.add_argument("principal", metavar="PRINCIPAL", help=f"{WHO}; * in VALUE makes it a pattern")
    what = set_.add_mutually_exclusive_group(required=True)
    what.add_argument("--limit", metavar="LIMIT", default="", help="apply this limit, like 600/minute, or unlimited")
    what.add_argument("--plan", metavar="PLAN", default="", help="apply this plan of the policy")
    set_.add_argument("--rule", metavar="NAME", default="", help="replace the limit of this rule; default: of all")
    _add_until(set_)
    _add_common(set_)
    _add_author(set_)
    remove = verbs.add_parser("remove", help="remove an override", description="Remove an override.")
    remove.set_defaults(run=_override_remove)
    remove.add_argument("principal", metavar="PRINCIPAL", help="remove the override of this principal, as it was set")
    remove.add_argument("--rule", metavar="NAME", default="", help="remove the override of this rule, as it was set")
    _add_common(remove)
    _add_author(remove)
    list_ = verbs.add_parser(
        "list", help="list overrides, blocks and the kill switch", description="List overrides, blocks and the switch."
    )
    list_.set_defaults(run=_override_list)
    _add_common(list_)

    shadow = command("shadow", _shadow, "kill switch: put all rules in shadow mode (on or off)")
    shadow.add_argument("switch", metavar="on|off", choices=["on", "off"], help="turn shadow mode on or off")
    _add_until(shadow)
    _add_common(shadow)
    _add_author(shadow)

    topup = command("topup", _topup, "add credits to a principal's balance")
    _add_principal(topup)
    _add_author(topup)
    topup.add_argument("units", metavar="UNITS", type=int, help="add 1 to 1000000000 units")
    topup.add_argument("--rule", metavar="NAME", default="", help="credit this rule's balance, if there are several")

    audit = command("audit", _audit, "list the operators' actions, the latest first")
    audit.add_argument(
        "--number", metavar="N", type=whole_number, default=20, help="list at most this many; default: %(default)s"
    )
    _add_common(audit)


def _add_common(command: argparse.ArgumentParser) -> None:
    command.add_argument("--config", metavar="FILE", required=True, help="read this policy file")
    command.add_argument("--store", metavar="URL", help="use this store; default: the policy's")
    command.add_argument("--json", action="store_true", help="print JSON")


def _add_principal(command: argparse.ArgumentParser) -> None:
    command.add_argument("principal", metavar="PRINCIPAL", help=WHO)
    _add_common(command)


def _add_author(command: argparse.ArgumentParser) -> None:
    command.add_argument(
        "--as", metavar="NAME", dest="as_", default="", help="sign as this operator; default: the user"
    )
    command.add_argument("--reason", metavar="TEXT", default="", help="write this reason into the audit log")


def _add_until(command: argparse.ArgumentParser) -> None:
    until = command.add_mutually_exclusive_group()
    until.add_argument("--for", metavar="DURATION", dest="for_", default="", help="end after this time, like 30s")
    until.add_argument(
        "--until", metavar="MOMENT", default="", help="end at this time, like 2027-01-01T00:00:00Z; default: never"
    )


def _peek(*, principal: str, plan: str, **common: Any) -> None:
    told = _done(lambda operator: operator.peek(_given(principal), plan=plan), common)
    if common["json"]:
        return
    standing = ", ".join(
        [
            *(["blocked" + _until(told["blocked"]["until_ms"])] if told["blocked"] else []),
            *(["all rules are in shadow"] if told["shadow"] else []),
            *([f"plan {told['plan']}"] if told["plan"] else []),
        ]
    )
    print(told["digest"] + (f": {standing}" if standing else ""))
    rows = [
        (
            rule["rule"],
            rule["limit"],
            str(rule["used"]),
            "" if rule["remaining"] is None else str(rule["remaining"]),
            f"{ceil_s(rule['reset_ms'])} s" if rule["reset_ms"] else "",
            _shown_override(rule["override"]),
        )
        for rule in told["rules"]
    ]
    print_table(("RULE", "LIMIT", "USED", "REMAINING", "RESET", "OVERRIDE"), rows)


def _reset(*, principal: str, rule: str, balances: bool, **common: Any) -> None:
    told = _done(lambda operator: operator.reset(_given(principal), rule=rule, balances=balances), common)
    _say(common, f"{told['digest']}: reset {', '.join(told['rules']) or 'nothing, as no rule charges it'}")


def _block(*, principal: str, for_: str, until: str, **common: Any) -> None:
    wanted = _wanted(for_, until)
    given = _given(principal)

    async def block(operator: Operator) -> dict[str, Any]:
        told = await operator.block(given, wanted)
        return told | {"counted": await _counted(operator, given)}

    told = _done(block, common)
    unknown = "" if told["counted"] else "; nothing has been counted of it, so check its name"
    _say(common, f"{told['digest']}: blocked{_until(told['until_ms'])}{unknown}")


async def _counted(operator: Operator, principal: str) -> bool:
    """Return False if no rule has counted a request of *principal*; True for networks and patterns."""
    try:
        seen = await operator.peek(principal)
    except ConfigError:
        return True
    return any(rule["used"] for rule in seen["rules"]) or not seen["rules"]


def _unblock(*, principal: str, **common: Any) -> None:
    told = _done(lambda operator: operator.unblock(_given(principal)), common)
    _say(common, f"{told['digest']}: {'unblocked' if told['was_blocked'] else 'was not blocked'}")


def _override_set(*, principal: str, rule: str, limit: str, plan: str, for_: str, until: str, **common: Any) -> None:
    wanted = _wanted(for_, until)
    told = _done(
        lambda operator: operator.set_override(_given(principal), rule=rule, limit=limit, plan=plan, expiry=wanted),
        common,
    )
    _say(common, f"{told['digest']}: {_shown_override(told | {'plan': plan or None})}")


def _override_remove(*, principal: str, rule: str, **common: Any) -> None:
    told = _done(lambda operator: operator.remove_override(_given(principal), rule=rule), common)
    _say(common, f"{told['digest']}: {'removed' if told['was_set'] else 'nothing was set'}")


def _override_list(**common: Any) -> None:
    told = _done(_signed_orders, common)
    if common["json"]:
        return
    rows = [
        (
            override["pattern"] or override.get("network") or override["digest"],
            override["rule"] or "all",
            override["limit"] or f"plan {override['plan']}",
            _until(override["until_ms"]).strip(),
            override["from"],
            *_signature(override),
        )
        for override in told["overrides"]
    ]
    rows += [
        (
            block.get("network") or block["digest"],
            "all",
            "blocked",
            _until(block["until_ms"]).strip(),
            "store",
            *_signature(block),
        )
        for block in told["blocks"]
    ]
    if told["shadow"]["on"]:
        rows.append(
            ("all", "all", "shadow", _until(told["shadow"]["until_ms"]).strip(), "store", *_signature(told["shadow"]))
        )
    print_table(("PRINCIPAL", "RULE", "ORDER", "END", "FROM", "WHO", "REASON"), rows)


async def _signed_orders(operator: Operator) -> dict[str, Any]:
    """Return all orders, each with the operator that gave it and the reason, as far as the audit log goes back."""
    orders = await operator.orders()
    latest: dict[tuple[str, str, str], dict[str, Any]] = {}
    for line in await operator.told(AUDIT_MAX):
        latest.setdefault((line["verb"], line.get("digest") or "", line.get("rule") or ""), line)

    def sign(order: dict[str, Any], verb: str) -> None:
        line = latest.get((verb, order.get("digest") or "", order.get("rule") or ""), {})
        order |= {"who": line.get("who"), "reason": line.get("reason")}

    for override in orders["overrides"]:
        if override["from"] != "file":
            sign(override, "override set")
    for block in orders["blocks"]:
        sign(block, "block")
    sign(orders["shadow"], "shadow")
    return orders


def _signature(order: Mapping[str, Any]) -> tuple[str, str]:
    return order.get("who") or "", order.get("reason") or ""


def _shadow(*, switch: str, for_: str, until: str, **common: Any) -> None:
    wanted = _wanted(for_, until)
    told = _done(lambda operator: operator.shadow(on=switch == "on", expiry=wanted), common)
    on = f"no rule refuses any request{_until(told['until_ms'])}; all requests are counted as before"
    _say(common, on if told["on"] else "rules refuse again")


def _topup(*, principal: str, units: int, rule: str, **common: Any) -> None:
    told = _done(lambda operator: operator.topup(_given(principal), units, rule=rule), common)
    _say(common, f"{told['digest']}: {told['rule']} has {told['available']} available")


def _audit(*, number: int, **common: Any) -> None:
    told = _done(lambda operator: operator.told(number), common)
    if not common["json"]:
        from ratelimiter.parsing.units import spell_moment

        rows = [
            (
                spell_moment(line["at_ms"]),
                *(line["who"], line["verb"], line.get("digest") or "", line.get("rule") or ""),
                *(json.dumps(line.get(name)) for name in ("old", "new")),
                line.get("reason") or "",
            )
            for line in told
        ]
        print_table(("WHEN", "WHO", "VERB", "PRINCIPAL", "RULE", "OLD", "NEW", "REASON"), rows)


def _done(verb: Verb, common: Mapping[str, Any]) -> Any:
    """Return the result of *verb*; print it if the command has --json.

    Raises:
        ConfigError: the policy, or an argument, cannot be used.
        StoreError: the store gave no answer.
    """
    import asyncio

    from ratelimiter.admin.operator import Operator
    from ratelimiter.config.loader import build
    from ratelimiter.stores.factory import open_store

    policy = build(config=common["config"], store=common["store"])
    name, reason = _line("--as", common.get("as_", ""), 64), _line("--reason", common.get("reason", ""), 256)

    async def once() -> Any:
        store = open_store(policy.store, timeout_ms=TIMEOUT_MS)
        if store.embedded:
            msg = (
                "store: memory:// is within the process that counts; use its operator listener, or write a redis:// URL"
            )
            raise ConfigError(msg)
        try:
            return await verb(Operator(lambda: policy, store, f"user:{name or _user()}", reason=reason))
        finally:
            await store.close()

    told = asyncio.run(once())
    if common["json"]:
        print(json.dumps(told, indent=2))
    return told


def _line(flag: str, text: str, most: int) -> str:
    """Return *text* if it fits into the audit log."""
    if len(text) > most or not text.isprintable():
        msg = f"{flag}: is not one line of at most {most} characters; write a shorter one"
        raise ConfigError(msg)
    return text


def _user() -> str:
    import getpass

    try:
        return getpass.getuser()
    except (KeyError, OSError):  # a user without a name, as in containers
        return "unknown"


def _given(principal: str) -> str:
    """Return *principal*, read from standard input if it is `-`: other users of the machine can see arguments."""
    source, separator, value = principal.partition("=")
    if principal == "-":
        return _read_line()
    return f"{source}={_read_line()}" if separator and value == "-" else principal


def _read_line() -> str:
    line = sys.stdin.readline(STDIN_MAX).strip()
    if not line:
        msg = "principal: there is nothing on standard input; write it there, as one line"
        raise ConfigError(msg)
    return line


def _wanted(for_: str, until: str) -> Expiry:
    from ratelimiter.admin.expiry import read_expiry

    return read_expiry(for_, until)


def _until(until_ms: int | None) -> str:
    from ratelimiter.parsing.units import spell_moment

    return "" if until_ms is None else f" until {spell_moment(until_ms)}"


def _shown_override(override: Mapping[str, Any] | None) -> str:
    if override is None:
        return ""
    what = f"plan {override['plan']}" if override.get("plan") else override["limit"]
    return f"{what}{_until(override['until_ms'])}"


def _say(common: Mapping[str, Any], text: str) -> None:
    if not common["json"]:
        print(text)
