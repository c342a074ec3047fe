"""Charts as SVG, drawn on the server: no script, no style of their own, colours by class names.

The report of a replay and the web console draw with these. `STYLE` gives the classes their colours, light and dark.
"""

from __future__ import annotations

from html import escape
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Sequence

WIDTH, HEIGHT = 720, 180
LEFT, BOTTOM, TOP = 52, 22, 8  # room for the axes
ROW = 24
BARS_MAX = 180  # bars of a timeline; more points are added up

# Contrast with the background is at least 4.5 for text and 3 for marks (WCAG 2.2, 1.4.3 and 1.4.11).
STYLE = """
:root{--paper:#fff;--ink:#1b1f24;--dim:#57606a;--line:#d0d7de;--admitted:#3a6ea5;--refused:#b3431e;--panel:#f6f8fa}
@media (prefers-color-scheme:dark){:root{--paper:#14181d;--ink:#e6eaef;--dim:#9aa5b1;--line:#39424d;--admitted:#6ca0d8;
--refused:#f08a5d;--panel:#1c2229}}
@media print{:root{--paper:#fff;--ink:#000;--dim:#444;--line:#999;--admitted:#3a6ea5;--refused:#b3431e;--panel:#fff}}
svg{display:block;width:100%;height:auto}
svg text{fill:var(--dim);font:12px system-ui,sans-serif}
svg .admitted{fill:var(--admitted)}svg .refused{fill:var(--refused)}svg .axis{stroke:var(--line);stroke-width:1}
svg .value{fill:var(--ink)}svg .limit{stroke:var(--refused);stroke-width:1.5;stroke-dasharray:4 3}
"""


class Point(NamedTuple):
    """One step of a timeline."""

    label: str
    requests: int
    refused: int


class Row(NamedTuple):
    """One bar of a ranking."""

    label: str
    value: int
    whole: int = 0  # drawn behind it, if larger


def timeline(points: Sequence[Point], *, title: str) -> str:
    """Return requests over time as bars, the refused ones at their foot."""
    if not points:
        return ""
    points = _gathered(points)
    most = max(1, *(point.requests for point in points))
    step = (WIDTH - LEFT) / len(points)
    room = HEIGHT - BOTTOM - TOP
    bars = []
    for index, point in enumerate(points):
        x, width = LEFT + index * step, max(0.5, step - (1 if step > 3 else 0))
        whole, refused = room * point.requests / most, room * point.refused / most
        if point.refused:
            refused = max(1.5, refused)  # one refusal among thousands is seen, too
        whole = max(whole, refused)
        told = escape(f"{point.label}: {point.requests:,} requests, {point.refused:,} refused")
        bars.append(
            f'<g><title>{told}</title><rect class="admitted" x="{x:.1f}" y="{HEIGHT - BOTTOM - whole:.1f}" '
            f'width="{width:.1f}" height="{whole - refused:.1f}"/><rect class="refused" x="{x:.1f}" '
            f'y="{HEIGHT - BOTTOM - refused:.1f}" width="{width:.1f}" height="{refused:.1f}"/></g>'
        )
    total = sum(point.requests for point in points)
    of_these = sum(point.refused for point in points)
    summary = f"{total:,} requests from {points[0].label} to {points[-1].label}, {of_these:,} of them refused."
    return _svg(
        HEIGHT,
        title,
        summary,
        f'<line class="axis" x1="{LEFT}" x2="{WIDTH}" y1="{HEIGHT - BOTTOM}" y2="{HEIGHT - BOTTOM}"/>'
        f'<line class="axis" x1="{LEFT}" x2="{WIDTH}" y1="{TOP}" y2="{TOP}"/>'
        f'<text x="{LEFT - 6}" y="{TOP + 10}" text-anchor="end">{most:,}</text>'
        f'<text x="{LEFT - 6}" y="{HEIGHT - BOTTOM}" text-anchor="end">0</text>'
        f'<text x="{LEFT}" y="{HEIGHT - 6}">{escape(points[0].label)}</text>'
        f'<text x="{WIDTH}" y="{HEIGHT - 6}" text-anchor="end">{escape(points[-1].label)}</text>' + "".join(bars),
    )


def ranking(rows: Sequence[Row], *, title: str, unit: str) -> str:
    """Return *rows* as horizontal bars with their values."""
    if not rows:
        return ""
    most = max(1, *(max(row.value, row.whole) for row in rows))
    left, right = 250, 110
    scale = (WIDTH - left - right) / most
    bars = []
    for index, row in enumerate(rows):
        y = index * ROW
        shown = row.label if len(row.label) <= 34 else f"{row.label[:33]}\N{HORIZONTAL ELLIPSIS}"
        longest = max(row.whole, row.value) * scale
        told = f"{row.value:,} of {row.whole:,}" if row.whole else f"{row.value:,}"
        bars.append(
            f"<g><title>{escape(row.label)}: {told} {escape(unit)}</title>"
            f'<text class="value" x="{left - 8}" y="{y + 16}" text-anchor="end">{escape(shown)}</text>'
            f'<rect class="admitted" x="{left}" y="{y + 5}" width="{longest:.1f}" height="14"/>'
            f'<rect class="refused" x="{left}" y="{y + 5}" width="{row.value * scale:.1f}" height="14"/>'
            f'<text x="{left + longest + 6:.1f}" y="{y + 16}">{told}</text></g>'
        )
    summary = "; ".join(f"{row.label}: {row.value:,} {unit}" for row in rows)
    return _svg(len(rows) * ROW + 4, title, summary, "".join(bars))


def _gathered(points: Sequence[Point]) -> list[Point]:
    each = -(-len(points) // BARS_MAX)
    return [
        Point(
            points[at].label,
            sum(point.requests for point in points[at : at + each]),
            sum(point.refused for point in points[at : at + each]),
        )
        for at in range(0, len(points), each)
    ]


def _svg(height: int, title: str, summary: str, content: str) -> str:
    """Return an image with a name and a description for screen readers."""
    return (
        f'<svg viewBox="0 0 {WIDTH} {height}" role="img" aria-label="{escape(f"{title}. {summary}")}" '
        f'xmlns="http://www.w3.org/2000/svg">{content}</svg>'
    )
