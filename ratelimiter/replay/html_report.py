"""The answer of a replay as one HTML file: no network, no script, SVG charts, made to be printed."""

from __future__ import annotations

from datetime import datetime, timedelta
from html import escape
from typing import TYPE_CHECKING, Any

from ratelimiter.charts import STYLE, Point, Row, ranking, timeline
from ratelimiter.replay.text_report import percent, spell_wait

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping, Sequence

_STYLE = """
*{box-sizing:border-box}
body{margin:0 auto;max-width:60rem;padding:1.5rem 1rem 4rem;background:var(--paper);color:var(--ink);
font:16px/1.5 system-ui,sans-serif}
h1{font-size:1.6rem;line-height:1.25;margin:0 0 .3rem}h2{font-size:1.2rem;margin:2.2rem 0 .4rem}
h3{font-size:1rem;margin:1.2rem 0 .3rem}
p{margin:.4rem 0}.dim{color:var(--dim)}.verdict{font-size:1.1rem}
dl{display:grid;grid-template-columns:repeat(auto-fit,minmax(9rem,1fr));gap:.6rem;margin:1rem 0}
dl div{background:var(--panel);border:1px solid var(--line);border-radius:6px;padding:.5rem .7rem}
dt{color:var(--dim);font-size:.85rem}dd{margin:0;font-size:1.25rem;font-variant-numeric:tabular-nums}
table{border-collapse:collapse;width:100%;font-variant-numeric:tabular-nums;font-size:.95rem}
caption{text-align:left;color:var(--dim);padding:.3rem 0}
th,td{text-align:left;padding:.3rem .6rem .3rem 0;border-bottom:1px solid var(--line);vertical-align:top;
overflow-wrap:anywhere}
td.n,th.n{text-align:right}section{break-inside:avoid}code{font:.92em ui-monospace,monospace;overflow-wrap:anywhere}
.key span{display:inline-block;width:.8em;height:.8em;margin:0 .3em 0 .8em;border-radius:2px}
.key .a{background:var(--admitted)}.key .r{background:var(--refused)}
@media print{body{max-width:none;padding:0;font-size:11pt}h2{break-after:avoid}}
"""
_POLICY = "default-src 'none'; style-src 'unsafe-inline'"
STEPS_MAX = 20_000  # of a timeline with its quiet steps; beyond them those are left out
_SHARES = ("nobody", "0.1%", "1%", "5%")


def html_report(answer: Mapping[str, Any], policy: str) -> str:
    """Return the report on *answer*, of the policy called *policy*."""
    return "".join(
        [
            '<!doctype html><html lang="en"><head><meta charset="utf-8">',
            '<meta name="viewport" content="width=device-width,initial-scale=1">',
            f'<meta http-equiv="Content-Security-Policy" content="{escape(_POLICY)}">',
            f"<title>Replay of {escape(policy)}</title><style>{STYLE}{_STYLE}</style></head><body><main>",
            *_body(answer, policy),
            "</main></body></html>\n",
        ]
    )


def _body(answer: Mapping[str, Any], policy: str) -> Iterator[str]:
    yield f"<h1>What {escape(policy)} would have refused</h1>"
    yield f'<p class="dim">{escape(answer["from"] or "-")} to {escape(answer["to"] or "-")}</p>'
    yield f'<p class="verdict">{escape(verdict(answer))}</p>'
    yield _figures(
        [
            ("Requests", f"{answer['requests']:,}"),
            ("Refused", f"{answer['refused']:,} ({percent(answer['share'])})"),
            ("Callers", f"{answer['callers']:,}"),
            ("Callers refused", f"{answer['callers_refused']:,}"),
            ("Lines unread", f"{answer['unread']:,}"),
        ]
    )
    points = _points(answer["timeline"])
    if points:
        yield "<section><h2>When</h2>"
        yield '<p class="key dim"><span class="a"></span>admitted<span class="r"></span>refused</p>'
        yield timeline(points, title="Requests over time")
        yield "</section>"
    if answer["top"]:
        yield "<section><h2>Callers refused most</h2>"
        rows = [Row(each["caller"], each["refused"], each["requests"]) for each in answer["top"]]
        yield ranking(rows, title="Callers by refused requests", unit="requests refused")
        yield "</section>"
    for rule in answer["rules"]:
        yield from _rule(rule)
    if answer["against"]:
        yield from _against(answer["against"], answer)
    if answer.get("suggestions"):
        yield "<section><h2>Suggested limits</h2>"
        yield _table(
            ("Rule", "Now", "Suggested", "Reason"),
            [
                (each["rule"], each["now"], each["limit"] or "no change", each["reason"])
                for each in answer["suggestions"]
            ],
        )
        yield "</section>"
    yield from _about(answer)


def _points(told: Mapping[str, Any]) -> list[Point]:
    """Return the steps of a timeline, quiet ones included."""
    counted = {point["at"]: point for point in told["points"]}
    if not counted:
        return []
    step = timedelta(milliseconds=told["step_ms"])
    at, last = (datetime.fromisoformat(told["points"][end]["at"]) for end in (0, -1))
    found = []
    while at <= last:
        label = at.isoformat().replace("+00:00", "Z")
        point = counted.get(label, {"requests": 0, "refused": 0})
        found.append(Point(label, point["requests"], point["refused"]))
        at += step
    return found if len(found) <= STEPS_MAX else [Point(*point.values()) for point in told["points"]]


def verdict(answer: Mapping[str, Any]) -> str:
    """Return the result in a sentence."""
    if not answer["requests"]:
        return "The log holds no request that could be judged."
    if not answer["refused"]:
        return f"None of the {answer['requests']:,} requests of {answer['callers']:,} callers would have been refused."
    return (
        f"{answer['refused']:,} of {answer['requests']:,} requests ({percent(answer['share'])}) would have been "
        f"refused. They come from {answer['callers_refused']:,} of {answer['callers']:,} callers; the others would "
        "have noticed nothing."
    )


def _figures(figures: Iterable[tuple[str, str]]) -> str:
    return f"<dl>{''.join(f'<div><dt>{escape(name)}</dt><dd>{escape(told)}</dd></div>' for name, told in figures)}</dl>"


def _table(heads: Sequence[str], rows: Iterable[Sequence[object]], caption: str = "") -> str:
    """Return a table; numbers are aligned to the right."""
    rows = list(rows)
    numeric = [bool(rows) and all(isinstance(row[at], int | float) for row in rows) for at in range(len(heads))]

    def cell(tag: str, at: int, value: object, scope: str = "") -> str:
        kind = ' class="n"' if numeric[at] else ""
        told = f"{value:,}" if isinstance(value, int) else str(value)
        return f"<{tag}{kind}{scope}>{escape(told)}</{tag}>"

    head = "".join(cell("th", at, name, ' scope="col"') for at, name in enumerate(heads))
    body = "".join("<tr>" + "".join(cell("td", at, value) for at, value in enumerate(row)) + "</tr>" for row in rows)
    told = f"<caption>{escape(caption)}</caption>" if caption else ""
    return f"<table>{told}<thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>"


def _rule(rule: Mapping[str, Any]) -> Iterator[str]:
    shadow = " (in shadow: nothing is refused)" if rule["shadow"] else ""
    yield f"<section><h2>{escape(rule['name'])}: {escape(rule['limit'])}{shadow}</h2>"
    if not rule["judged"]:
        yield f"<p>Not judged: {escape(rule['not_judged'])}.</p></section>"
        return
    if rule["note"]:
        yield f'<p class="dim">{escape(rule["note"])}.</p>'
    waits, use = rule["waits_ms"], rule["use"]
    figures = [
        ("Requests", f"{rule['requests']:,}"),
        ("Refused", f"{rule['refused']:,} ({percent(rule['share'])})"),
        ("Callers refused", f"{rule['callers_refused']:,} of {rule['callers']:,}"),
    ]
    least, most = rule["at_least"], rule["at_most"]
    if least and most and least["refused"] != most["refused"]:
        figures.append(("At least, at most", f"{least['refused']:,} to {most['refused']:,}"))
    if waits:
        figures.append(("Median wait, longest", f"{spell_wait(waits['p50'])}, {spell_wait(waits['max'])}"))
        figures.append(("Longest refusal", spell_wait(rule["longest_refusal_ms"])))
    if use["p99"] is not None:
        figures.append(
            ("Use of the others, p50 / p99 / max", f"{use['p50']:.0%} / {use['p99']:.0%} / {use['max']:.0%}")
        )
    yield _figures(figures)
    smallest = rule["smallest_limit_spelled"]
    if smallest["nobody"] is not None:
        yield _table(
            ("Callers that may be touched", "Smallest limit"),
            [(share if share != "nobody" else "none", smallest[share]) for share in _SHARES],
        )
    if rule["top"]:
        rows = [Row(each["caller"], each["refused"], each["requests"]) for each in rule["top"]]
        yield ranking(rows, title=f"Callers refused most by {rule['name']}", unit="requests refused")
    compared = {name: told for name, told in (rule.get("compare") or {}).items() if told}
    if compared:
        yield _table(
            ("Algorithm", "Refused", "Callers refused", "Most let through in one window"),
            [
                (name, told["refused"], told["callers_refused"], told["most_in_a_window"])
                for name, told in compared.items()
            ],
            "The same limit by other algorithms",
        )
    yield "</section>"


def _against(against: Mapping[str, Any], answer: Mapping[str, Any]) -> Iterator[str]:
    yield "<section><h2>Against the other policy</h2>"
    yield _table(
        ("", "This policy", "The other policy"),
        [
            ("Requests refused", answer["refused"], against["refused"]),
            ("Callers refused", answer["callers_refused"], against["callers_refused"]),
            ("Requests refused by it alone", against["refused_by_this_only"], against["refused_by_other_only"]),
            (
                "Callers refused by it alone",
                against["callers_refused_by_this_only"],
                against["callers_refused_by_other_only"],
            ),
        ],
    )
    for key, what in (("this", "this policy"), ("other", "the other policy")):
        callers = against[f"callers_by_{key}_only"]
        if callers:
            rows = [
                Row(each["caller"], max(each["refused"], each["refused_by_other"]), each["requests"])
                for each in callers
            ]
            yield f"<h3>Refused by {what} only</h3>"
            yield ranking(rows, title=f"Callers refused by {what} only", unit="requests refused")
    yield "</section>"


def _about(answer: Mapping[str, Any]) -> Iterator[str]:
    yield "<section><h2>About the numbers</h2>"
    if answer["notes"]:
        yield "<ul>" + "".join(f"<li>{escape(note)}</li>" for note in answer["notes"]) + "</ul>"
    yield _table(
        ("Log", "Format", "Lines", "Requests"),
        [(log["log"], log["format"], log["lines"], log["requests"]) for log in answer["logs"]],
    )
    if answer["unread_kinds"]:
        yield _table(
            ("Unread lines", "Why", "First"),
            [
                (each["lines"], each["kind"], f"{each['first']['place']}: {each['first']['text']}")
                for each in answer["unread_kinds"]
            ],
        )
    yield "</section>"
