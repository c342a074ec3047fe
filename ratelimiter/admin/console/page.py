"""The HTML of the console. All text that is not ours is escaped, whatever it holds."""

from __future__ import annotations

from html import escape
from typing import TYPE_CHECKING, Any

from ratelimiter import __version__
from ratelimiter.charts import Point, timeline
from ratelimiter.config.lint import outage
from ratelimiter.config.redact import fingerprint, without_secrets
from ratelimiter.core.overrides import FOR_EVER
from ratelimiter.parsing.units import UNLIMITED, spell_limit, spell_moment

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from ratelimiter.admin.app import State
    from ratelimiter.admin.console.recorder import ConsoleRecorder, Refusal
    from ratelimiter.core.policy import Policy

SHOWN = 10  # principals that are refused most
SECTIONS = (
    ("requests", "Requests"),
    ("rules", "Rules"),
    ("most", "Refused most"),
    ("store", "Store"),
    ("orders", "Overrides in force"),
    ("policy", "Policy"),
    ("refusals", "Last refusals"),
)
VERBS = (
    ("peek", "peek", "show what is counted of a principal"),
    ("block", "block", "refuse a principal whatever it asks for"),
    ("unblock", "unblock", "let a blocked principal in again"),
    ("overrides", "override", "give a principal another limit"),
    ("overrides/remove", "take an override back", "take back what was set"),
    ("reset", "reset", "forget what is counted of a principal"),
    ("shadow", "shadow", "have no rule refuse any request, or have them refuse again"),
)


def page(live: str, *, operated: bool) -> str:
    """Return the whole page around *live*, the sections of `sections`."""
    links = "".join(f'<li><a href="#{name}">{title}</a></li>' for name, title in SECTIONS)
    return (
        '<!doctype html><html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width,initial-scale=1"><title>ratelimiter console</title>'
        '<link rel="stylesheet" href="console/console.css"><script src="console/console.js" defer></script>'
        "</head><body>"
        '<a class="skip" href="#live">Skip to the numbers</a>'
        f'<header><h1>ratelimiter <span class="dim">{escape(__version__)}</span></h1>'
        '<p><button type="button" id="pause" aria-pressed="false" hidden>Pause updates</button> '
        '<span id="freshness" class="dim" role="status"></span></p>'
        f'<nav aria-label="Sections"><ul>{links}</ul></nav></header>'
        f'<main><div id="live">{live}</div>{_operator() if operated else _unoperated()}</main>'
        "<noscript><p>Without JavaScript the page is as it was when it was loaded.</p></noscript></body></html>\n"
    )


def _unoperated() -> str:
    return (
        '<section aria-labelledby="operate"><h2 id="operate">Operate</h2><p class="dim">Orders can be given here when '
        "the process was started with <code>--operator</code> and <code>--operator-token-file</code>.</p></section>"
    )


def _operator() -> str:
    """Return the forms of the operator. The token goes from its field into a request header, and nowhere else."""
    options = "".join(f'<option value="{path}">{name}: {about}</option>' for path, name, about in VERBS)
    return (
        '<section aria-labelledby="operate"><h2 id="operate">Operate</h2>'
        '<p class="dim">The token stays in this page until it is closed. Every order is written to the audit log.</p>'
        '<form id="operator" autocomplete="off"><div class="fields">'
        '<label>Token of an operator<input id="token" type="password" autocomplete="off" required></label>'
        f'<label>Order<select id="verb">{options}</select></label>'
        '<label>Principal<input id="principal" placeholder="client=192.0.2.1, header:X-API-Key=..."></label>'
        '<label>Rule (empty: all)<input id="rule"></label>'
        '<label>Limit of an override<input id="limit" placeholder="600/minute, or unlimited"></label>'
        '<label>For how long (empty: until further notice)<input id="for" placeholder="10m"></label>'
        '<label class="check"><input id="on" type="checkbox">shadow: on</label></div>'
        '<p><button type="submit">Give the order</button></p></form>'
        '<dialog id="confirm" aria-labelledby="confirm-title"><h2 id="confirm-title">Give this order?</h2>'
        '<p id="confirm-text"></p><p><button type="button" id="confirm-yes">Yes, do it</button> '
        '<button type="button" id="confirm-no">No</button></p></dialog>'
        '<h3 id="result-title">Answer</h3><pre id="result" role="status" aria-labelledby="result-title">-</pre>'
        '<h3>Explain a request</h3><form id="explain" autocomplete="off"><div class="fields">'
        '<label>Method<input id="x-method" value="GET" required></label>'
        '<label>URL or path<input id="x-url" value="/" required></label>'
        '<label>Address of the peer<input id="x-peer" value="127.0.0.1"></label>'
        '<label>Headers, one a line<textarea id="x-headers" rows="3"></textarea></label></div>'
        '<p><button type="submit">Explain</button></p></form></section>'
    )


def sections(
    recorder: ConsoleRecorder,
    *,
    policy: Policy | None,
    state: State,
    top: Mapping[str, Any] | None,
    places: Mapping[str, str],
    now_ms: int,
    operated: bool,
) -> str:
    """Return the sections that the script replaces, as they are now."""
    recorder.catch_up()
    return "".join(
        (
            _requests(recorder, state, now_ms),
            _rules(recorder, policy, places),
            _most(top, operated=operated),
            _store(recorder, policy, state),
            _orders(recorder),
            _policy(recorder, policy, now_ms),
            _refusals(recorder.refusals()),
        )
    )


def _section(name: str, content: str) -> str:
    title = dict(SECTIONS)[name]
    return f'<section id="{name}" aria-labelledby="{name}-title"><h2 id="{name}-title">{title}</h2>{content}</section>'


def _table(caption: str, heads: Sequence[str], rows: Iterable[Sequence[str]], empty: str) -> str:
    """Return a table whose cells are HTML already; *empty* in the place of one without rows."""
    body = "".join("<tr>" + "".join(f"<td>{cell}</td>" for cell in row) + "</tr>" for row in rows)
    if not body:
        return f'<p class="dim">{escape(empty)}</p>'
    head = "".join(f'<th scope="col">{escape(name)}</th>' for name in heads)
    return (
        f'<div class="wide" role="region" tabindex="0" aria-label="{escape(caption)}"><table><caption class="hidden">'
        f"{escape(caption)}</caption><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table></div>"
    )


def _figure(name: str, told: str) -> str:
    return f"<div><dt>{escape(name)}</dt><dd>{escape(told)}</dd></div>"


def clock_time(at_ms: int) -> str:
    """Return the time of day of *at_ms* in UTC."""
    return spell_moment(at_ms)[11:19]


def _requests(recorder: ConsoleRecorder, state: State, now_ms: int) -> str:
    steps = recorder.steps()
    requests = sum(step[1] for step in steps[-13:-1])
    refused = sum(step[2] for step in steps[-13:-1])
    outcomes = "".join(
        _figure(reason.replace("_", " "), f"{count:,}") for reason, count in sorted(recorder.outcomes.items())
    )
    ready = "ready" if not state.unready else ", ".join(state.unready)
    share = f" ({refused / requests:.1%})" if requests else ""
    chart = timeline([Point(clock_time(at), all_, no) for at, all_, no in steps], title="Requests in ten minutes")
    return _section(
        "requests",
        f"<dl>{_figure('In a minute', f'{requests:,}')}{_figure('Refused of them', f'{refused:,}{share}')}"
        f"{_figure('Store', 'ok' if state.store == 'ok' else 'out')}{_figure('This process is', ready)}"
        f"{_figure('Time', spell_moment(now_ms))}</dl>"
        '<p class="key dim"><span class="a"></span>admitted<span class="r"></span>refused</p>'
        f"{chart}<h3>Since the start, by outcome</h3><dl>{outcomes or _figure('none', '0')}</dl>",
    )


def _rules(recorder: ConsoleRecorder, policy: Policy | None, places: Mapping[str, str]) -> str:
    rows = recorder.rows()
    table = []
    for rule in () if policy is None else policy.rules:
        row = rows.get(rule.name)
        used = ""
        if row is not None:
            share = 1 - min(row.least_remaining, rule.quota.limit) / rule.quota.limit
            used = f'<meter min="0" max="1" value="{share:.3f}" aria-label="use">{share:.0%}</meter> {share:.0%}'
        refusals = 0 if row is None else row.refused
        table.append(
            (
                escape(rule.name) + (" <em>shadow</em>" if rule.shadow else ""),
                escape(spell_limit(rule.quota)),
                f"{0 if row is None else row.admitted:,}",
                f"<strong>{refusals:,}</strong>" if refusals else "0",
                f"{0 if row is None else row.shadow_refused:,}",
                used or "-",
                escape(places.get(rule.name, "-")),
            )
        )
    heads = ("Rule", "Limit", "Admitted", "Refused", "In shadow", "Most used by one", "From")
    return _section("rules", _table("Rules, in this minute and the last", heads, table, "There are no rules."))


def _most(top: Mapping[str, Any] | None, *, operated: bool) -> str:
    sums: dict[tuple[str, str], int] = {}
    names: dict[str, str] = {}
    for span in ("now", "before"):
        for each in (top or {}).get(span, {}).get("refused", ()):
            who = (each["principal"], each["rule"])
            sums[who] = sums.get(who, 0) + each["refusals"]
            names[each["principal"]] = each.get("name", "")
    rows = []
    for (principal, rule), count in sorted(sums.items(), key=lambda item: (-item[1], item[0]))[:SHOWN]:
        act = ""
        if operated:
            told = escape(principal)
            act = " ".join(
                f'<button type="button" data-verb="{verb}" data-principal="digest={told}" data-rule="{escape(rule)}">'
                f'{name}<span class="hidden"> {told}</span></button>'
                for verb, name in (("peek", "peek"), ("block", "block"), ("overrides", "override"))
            )
        rows.append((_principal(principal, names[principal]), escape(rule), f"{count:,}", act or "-"))
    advice = (
        '<p class="dim">A few principals far above the others: look at them (peek), then block or override them. '
        "Many with a few refusals each: the limit is too low for them, or a client retries without waiting for "
        "Retry-After.</p>"
    )
    heads = ("Principal", "Rule", "Refusals", "Act")
    return _section(
        "most", advice + _table("Refused most, this minute and the last", heads, rows, "No caller is refused.")
    )


def _principal(digest: str, name: str) -> str:
    told = f"<code>{escape(digest)}</code>" if digest else "-"
    return f"{escape(name)} {told}" if name else told


def _store(recorder: ConsoleRecorder, policy: Policy | None, state: State) -> str:
    out = state.store != "ok"
    since_ms = recorder.degraded_since_ms
    lasted = f", since {spell_moment(since_ms)}" if out and since_ms else ""
    told = f"Out{lasted}: decisions are made without it." if out else "Answers."
    url = "" if policy is None else f" <code>{escape(without_secrets(policy.store))}</code>"
    lines = "" if policy is None else "".join(f"<li>{escape(line)}</li>" for line in outage(policy))
    does = (
        f"<h3>{'What the outage does now' if out else 'What an outage would do'}</h3><ul>{lines}</ul>" if lines else ""
    )
    failures = "".join(_figure(kind, f"{count:,}") for kind, count in sorted(recorder.failures.items()))
    failed = f"<h3>Failures since the start</h3><dl>{failures}</dl>" if failures else ""
    kind = ' class="alarm" role="alert"' if out else ""
    return _section("store", f"<p{kind}>{told}{url}</p>{does}{failed}")


def _orders(recorder: ConsoleRecorder) -> str:
    orders = recorder.overrides
    rows = []
    if orders is not None:
        if orders.shadow:
            rows.append(("shadow", "every principal", "no rule refuses any request", _until(orders.shadow_until_ms)))
        rows += [
            ("block", f"<code>{escape(each.digest)}</code>", "refused", _until(each.until_ms)) for each in orders.blocks
        ]
        for each in orders.overrides:
            digests = ", ".join(sorted(each.digests))
            what = f"plan {each.plan}" if each.plan else UNLIMITED if each.quota is None else spell_limit(each.quota)
            rule = f"{each.rule}: " if each.rule else ""
            pattern = " (pattern)" if each.pattern is not None else ""
            rows.append(
                ("override", f"<code>{escape(digests)}</code>{pattern}", escape(rule + what), _until(each.until_ms))
            )
    return _section("orders", _table("Overrides in force", ("Kind", "Principal", "What", "Until"), rows, "None."))


def _until(until_ms: int) -> str:
    return "further notice" if until_ms == FOR_EVER else spell_moment(until_ms)


def _policy(recorder: ConsoleRecorder, policy: Policy | None, now_ms: int) -> str:
    if policy is None:
        return _section("policy", '<p class="alarm" role="alert">No policy is loaded.</p>')
    reload = ""
    if recorder.reload is not None:
        result, at_ms = recorder.reload
        reload = _figure("Last look at the file", f"{result}, {spell_moment(at_ms)}")
    changes = "".join(f"<li>{escape(line)}</li>" for line in recorder.changes)
    changed = f"<h3>What changed with it</h3><ul>{changes}</ul>" if changes else ""
    return _section(
        "policy",
        f"<dl>{_figure('Hash', fingerprint(policy))}{_figure('Name', policy.name)}{_figure('Dialect', policy.dialect)}"
        f"{_figure('In force since', spell_moment(recorder.loaded_ms or now_ms))}{reload}</dl>{changed}"
        '<p><a href="policy">The whole policy, with every default</a></p>',
    )


def _refusals(refusals: Sequence[Refusal]) -> str:
    rows = [
        (
            f"<time>{spell_moment(each.at_ms)}</time>",
            escape(each.reason.replace("_", " ")),
            escape(each.rule or "-"),
            "-" if each.limit is None else f"{each.remaining or 0:,} left of {each.limit:,}",
            "never" if each.retry_after_ms is None else f"{each.retry_after_ms:,} ms",
            _principal(each.principal, each.name),
            escape(each.method or "-"),
            f"<code>{escape(each.request_id)}</code>" if each.request_id else "-",
        )
        for each in reversed(refusals)
    ]
    search = (
        '<p><label>Find in them <input id="find" type="search" placeholder="10:15, a rule, a request id" '
        'autocomplete="off"></label> <span id="found" class="dim" role="status"></span></p>'
    )
    heads = ("Time", "Reason", "Rule", "Figures", "Retry after", "Principal", "Method", "Request id")
    return _section("refusals", search + _table("Last refusals, the latest first", heads, rows, "None so far."))
