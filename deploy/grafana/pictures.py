"""Draws the dashboard's panels, from a real Prometheus that watches a real run, into docs/pictures.

    pip install -e '.[test,dashboard]'
    python -m deploy.grafana.pictures [--seconds 120]

Needs `redis-server` and `prometheus`. docs/howto/dashboard.md says what happens in the run.
"""

from __future__ import annotations

import argparse
import math
import re
import time
from io import BytesIO
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter
from PIL import Image

from deploy.grafana.panels import BARS, HEATMAP, LENGTHS, LINES, NUMBER, ROWS, STACKED, TABLE
from tests.deploy.scene import JOBS, Callers, Scene

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from matplotlib.axes import Axes

    from deploy.grafana.panels import Query, View
    from tests.deploy.prometheus_server import Series

FOLDER = Path(__file__).parents[2] / "docs" / "pictures"
COLUMNS = 24  # of the dashboard's grid
INCHES = 13.0  # width of a picture
TITLE_INCHES = 0.35
DPI = 95
LETTERS_PER_INCH = 12  # of a legend
COLOURS = 96
SHADES = ("#4c9fd8", "#f2a33c", "#5cb85c", "#d9534f", "#9b7cc8", "#a98467", "#e38ac0", "#8c8c8c", "#c2c04a", "#3bb9c4")
SIGNS = {"reqps": "req/s", "cps": "/s", "s": "s", "bytes": "B", "Bps": "B/s", "short": ""}
LIMIT = " limit"  # what a line's name ends with that is to be dashed
SCRAPE_S = 1.0

# When what happens, as a share of the run.
BLOCK, MORE_TRAFFIC, BAD_POLICY, GOOD_POLICY, OUT, BACK, SHADOW = 0.083, 0.25, 0.375, 0.5, 0.583, 0.79, 0.875


class Line(NamedTuple):
    """What a panel draws for one series."""

    name: str
    rule: str
    seconds: list[float]  # since the beginning
    values: list[float]


def watch(scene: Scene, callers: Callers, seconds: float) -> float:
    """Let everything happen; gives when it ended."""
    blocked, suspended = (f"{round(share * seconds * 1000)}ms" for share in (0.125, 0.083))
    events: tuple[tuple[float, Callable[[], None]], ...] = (
        (BLOCK, lambda: scene.order("block", "header:X-API-Key=key-1", "--for", blocked)),
        (MORE_TRAFFIC, lambda: setattr(callers, "pause_s", callers.pause_s / 3)),
        (BAD_POLICY, scene.spoil_policy),
        (GOOD_POLICY, lambda: scene.write_policy("12/second")),
        (OUT, scene.stop_redis),
        (BACK, scene.start_redis),
        (SHADOW, lambda: scene.order("shadow", "on", "--for", suspended)),
        (1.0, lambda: None),
    )
    begun_s = time.monotonic()
    for share, happen in events:
        time.sleep(max(0.0, begun_s + share * seconds - time.monotonic()))
        happen()
    return time.time()


class Drawing:
    """Draws what a scene's Prometheus has seen until *ended_s*."""

    def __init__(self, scene: Scene, ended_s: float) -> None:
        self._scene = scene
        self._ended_s = ended_s
        # Ports mean nothing to a reader, so an instance is called by what it is.
        self._names = {way.metrics: job.removeprefix("ratelimiter-") for job, way in scene.ways.items()}

    def draw(self, title: str, views: Sequence[View]) -> None:
        """One row of the dashboard as one picture."""
        heights = _heights(views)
        whole = sum(heights)
        figure = Figure(figsize=(INCHES, whole), dpi=DPI)
        left, top = 0, whole
        for view in views:
            if left >= COLUMNS:
                left, top = 0, top - heights.pop(0)
            self._draw_view(figure, view, (left / COLUMNS * INCHES, top - heights[0], heights[0]), whole)
            left += view.width
        name = re.sub(r"\W+", "-", title.lower())
        _save(figure, FOLDER / f"{name}.png")

    def _draw_view(self, figure: Figure, view: View, at: tuple[float, float, float], whole: float) -> None:
        """One panel; *at* are its left, its bottom and its height in inches."""
        x, y, height = at
        width = view.width / COLUMNS * INCHES
        margins = _MARGINS[view.kind]
        axes = figure.add_axes(
            (
                (x + margins.left) / INCHES,
                (y + margins.bottom) / whole,
                (width - margins.left - 0.2) / INCHES,
                (height - margins.bottom - TITLE_INCHES) / whole,
            )
        )
        figure.text(
            (x + 0.1) / INCHES, (y + height - TITLE_INCHES / 2) / whole, view.title, fontweight="bold", va="center"
        )
        _DRAWN[view.kind](axes, view, [line for query in view.queries for line in self._lines(view, query)])
        if not view.instant and view.kind != NUMBER:
            axes.set_xlim(0, self._ended_s - self._scene.begun_s)

    def _lines(self, view: View, query: Query) -> list[Line]:
        found = self._scene.shown(query.expr, self._ended_s, instant=view.instant)
        return [self._line(query.legend or view.title, series) for series in found]

    def _line(self, legend: str, series: Series) -> Line:
        """Return a line under the name that Grafana would give it."""
        labels = dict(series.labels)
        labels["instance"] = self._names.get(labels.get("instance", ""), "")
        name = re.sub(r"\{\{(\w+)\}\}", lambda found: labels.get(found[1], ""), legend)
        seconds = [at - self._scene.begun_s for at, _ in series.points]
        return Line(name, labels.get("rule", ""), seconds, [value for _, value in series.points])


def _heights(views: Sequence[View]) -> list[float]:
    """Of each line of panels, in inches."""
    heights, width = [], 0
    for view in views:
        if width % COLUMNS == 0:
            small = view.kind == NUMBER and view.width * 4 == COLUMNS
            heights.append(1.1 if small else 1.9 if view.kind == TABLE else 2.9)
        width += view.width
    return heights


def _save(figure: Figure, path: Path) -> None:
    drawn = BytesIO()
    figure.savefig(drawn, format="png")
    # Few colours are a third of the bytes, and all that a drawing needs.
    Image.open(drawn).convert("RGB").quantize(COLOURS, dither=Image.Dither.NONE).save(path, optimize=True)


def _draw_lines(axes: Axes, view: View, lines: Sequence[Line]) -> None:
    lines = sorted(lines, key=lambda line: line.name)
    colours = _colours(lines)
    if view.kind == STACKED:
        _stack(axes, lines)
    for number, line in enumerate(lines if view.kind != STACKED else []):
        if view.kind == BARS:
            axes.bar([at + 0.8 * number for at in line.seconds], line.values, width=0.8, label=line.name)
        elif line.name.endswith(LIMIT):
            axes.plot(line.seconds, line.values, "--", color=colours[line.name], linewidth=1.2, label=line.name)
        else:
            axes.plot(*_broken(line), color=colours[line.name], linewidth=1.6, label=line.name)
    axes.set_ylim(bottom=0)
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: readable(value, view.unit)))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g} s"))
    axes.tick_params(labelsize=8)
    axes.grid(alpha=0.25)
    if lines:
        letters = max(len(line.name) for line in lines) + 7  # with what stands between two of them
        columns = max(1, int(view.width / COLUMNS * INCHES * LETTERS_PER_INCH) // letters)
        axes.legend(
            fontsize=7.5, ncols=columns, loc="upper left", bbox_to_anchor=(0, -0.1), frameon=False, columnspacing=1
        )


def _broken(line: Line) -> tuple[list[float], list[float]]:
    """Return the points of *line*, with a break where it has none for a while, as Grafana draws it."""
    seconds, values = line.seconds[:1], line.values[:1]
    for before, at, value in zip(line.seconds, line.seconds[1:], line.values[1:], strict=False):
        if at - before > 1.5 * SCRAPE_S:
            seconds.append(before)
            values.append(math.nan)
        seconds.append(at)
        values.append(value)
    return seconds, values


def _colours(lines: Sequence[Line]) -> dict[str, str]:
    """Of each line; a limit has that of the rule whose limit it is."""
    names = list(dict.fromkeys(line.name.removesuffix(LIMIT) for line in lines))
    return {line.name: f"C{names.index(line.name.removesuffix(LIMIT)) % 10}" for line in lines}


def _stack(axes: Axes, lines: Sequence[Line]) -> None:
    moments = sorted({at for line in lines for at in line.seconds})
    axes.stackplot(
        moments, [_at(line, moments) for line in lines], labels=[line.name for line in lines], colors=SHADES, alpha=0.8
    )


def _at(line: Line, moments: Sequence[float]) -> list[float]:
    """Return the values of *line* at *moments*, 0 where it has none."""
    known = dict(zip(line.seconds, line.values, strict=True))
    return [known.get(at, 0.0) for at in moments]


def _draw_number(axes: Axes, view: View, lines: Sequence[Line]) -> None:
    axes.axis("off")
    value = lines[0].values[-1]
    axes.text(0.0, 0.4, readable(value, view.unit), fontsize=24, color="#2a7d2a", va="center")


def _draw_heatmap(axes: Axes, _: View, lines: Sequence[Line]) -> None:
    lines = sorted(lines, key=lambda line: float(line.name))
    moments = sorted({at for line in lines for at in line.seconds})
    below = [0.0] * len(moments)
    rows = []
    for line in lines:
        upto = _at(line, moments)  # a bucket holds what the ones below it hold, too
        rows.append([max(0.0, more - less) ** 0.5 for more, less in zip(upto, below, strict=True)])
        below = upto
    axes.pcolormesh(moments, range(len(rows)), rows, cmap="Oranges", shading="nearest")
    axes.set_yticks(range(0, len(rows), 2), [readable(float(line.name), "s") for line in lines][::2], fontsize=8)
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g} s"))
    axes.tick_params(labelsize=8)


def _draw_lengths(axes: Axes, view: View, lines: Sequence[Line]) -> None:
    bars = sorted((line.values[0], line.name) for line in lines)
    drawn = axes.barh([name for _, name in bars], [value for value, _ in bars], color="C0", height=0.6)
    axes.bar_label(drawn, [f" {readable(value, view.unit)}" for value, _ in bars], fontsize=8)
    axes.margins(x=0.2)
    axes.xaxis.set_visible(False)
    axes.tick_params(labelsize=9)
    for side in ("top", "right", "bottom"):
        axes.spines[side].set_visible(False)


def _draw_table(axes: Axes, view: View, lines: Sequence[Line]) -> None:
    axes.axis("off")
    names = list(dict.fromkeys(line.name for line in lines))
    cells = {(line.rule, line.name): readable(line.values[0], view.unit) for line in lines}
    rows = [[rule, *(cells.get((rule, name), "") for name in names)] for rule in sorted({line.rule for line in lines})]
    table = axes.table(rows, colLabels=["rule", *names], loc="upper left", cellLoc="left", edges="horizontal")
    table.auto_set_font_size(False)
    table.set_fontsize(9)
    table.scale(1, 1.3)


class Margins(NamedTuple):
    """What stands beside a panel, in inches."""

    left: float
    bottom: float


_OF_LINES = Margins(0.75, 0.75)
_MARGINS = {
    **dict.fromkeys((LINES, STACKED, BARS), _OF_LINES),
    NUMBER: Margins(0.1, 0.0),
    HEATMAP: Margins(0.75, 0.3),
    LENGTHS: Margins(0.9, 0.1),
    TABLE: Margins(0.1, 0.1),
}
_DRAWN: dict[str, Callable[[Axes, View, Sequence[Line]], None]] = {
    **dict.fromkeys((LINES, STACKED, BARS), _draw_lines),
    NUMBER: _draw_number,
    HEATMAP: _draw_heatmap,
    LENGTHS: _draw_lengths,
    TABLE: _draw_table,
}


def readable(value: float, unit: str) -> str:
    """Return a value with its unit, short enough for an axis."""
    if unit == "percentunit":
        return f"{100 * value:.3g} %"
    if unit == "s" and 0 < abs(value) < 1:
        return f"{value * 1e3:.3g} ms" if abs(value) >= 0.001 else f"{value * 1e6:.3g} µs"
    for factor, letter in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if abs(value) >= factor:
            return f"{value / factor:.3g} {letter}{SIGNS[unit]}"
    return f"{value:.3g} {SIGNS[unit]}".rstrip()


def main() -> None:
    """Run, watch, draw."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=120.0)
    seconds = parser.parse_args().seconds
    FOLDER.mkdir(exist_ok=True)
    with Scene(scrape_s=SCRAPE_S, jobs=JOBS) as scene:
        with Callers(scene, keys=3, pause_s=0.09) as callers:
            ended_s = watch(scene, callers, seconds)
        drawing = Drawing(scene, ended_s)
        for _, title, views in ROWS:
            drawing.draw(title, views)


if __name__ == "__main__":
    main()
