"""The Grafana dashboard as code: `python -m deploy.grafana.dashboard` writes the dashboard.json that Grafana loads.

Change the tables in panels.py, never the JSON: a test compares the two, and another runs every query against a
Prometheus that has watched a limiter at work. docs/howto/dashboard.md says how to read each panel.
"""

from __future__ import annotations

import json
import warnings
from pathlib import Path
from typing import TYPE_CHECKING, Any

from deploy.grafana.panels import ANNOTATIONS, BARS, HEATMAP, LENGTHS, LINES, NUMBER, ROWS, STACKED, TABLE, VARIABLES

with warnings.catch_warnings():
    # Only the classic model is loaded by file provisioning everywhere, so it is meant.
    warnings.filterwarnings("ignore", "Prefer using dashboardv2", DeprecationWarning)
    from grafana_foundation_sdk.builders import (
        bargauge,
        common,
        dashboard,
        heatmap,
        prometheus,
        stat,
        table,
        timeseries,
    )
    from grafana_foundation_sdk.cog.encoder import JSONEncoder
    from grafana_foundation_sdk.models.common import (
        BigValueGraphMode,
        DataSourceRef,
        GraphDrawStyle,
        LegendDisplayMode,
        LegendPlacement,
        SortOrder,
        StackingMode,
        TooltipDisplayMode,
        VisibilityMode,
        VizOrientation,
    )
    from grafana_foundation_sdk.models.dashboard import (
        DataTransformerConfig,
        DynamicConfigValue,
        Threshold,
        ThresholdsMode,
        VariableOption,
        VariableRefresh,
        VariableSort,
    )
    from grafana_foundation_sdk.models.heatmap import HeatmapColorMode, HeatmapColorScale
    from grafana_foundation_sdk.models.prometheus import PromQueryFormat

if TYPE_CHECKING:
    from deploy.grafana.panels import Query, View

FILE = Path(__file__).with_name("dashboard.json")
UID = "ratelimiter"  # links to the dashboard hold it, so it stays
DATASOURCE = DataSourceRef(type_val="prometheus", uid="${datasource}")


def written() -> str:
    """Return the dashboard as Grafana reads it."""
    document = json.loads(JSONEncoder().encode(_dashboard().build()))
    return json.dumps(document, indent=2, sort_keys=True, ensure_ascii=False) + "\n"


def _dashboard() -> dashboard.Dashboard:
    board = (
        dashboard.Dashboard("Rate limiter")
        .uid(UID)
        .description("What is admitted and refused, how fast, and how the store fares.")
        .tags(["ratelimiter"])
        .refresh("30s")
        .time("now-1h", "now")
        .timezone("browser")
        .editable()
        .with_variable(dashboard.DatasourceVariable("datasource").label("Data source").type("prometheus"))
    )
    for name, label, query, everything in VARIABLES:
        variable = _variable(name, label, query)
        board.with_variable(variable.all_value(everything) if everything else variable)
    for name, color, query in ANNOTATIONS:
        board.annotation(_annotation(name, color, query))
    for id_, title, row in ROWS:
        board.with_row(dashboard.Row(title).id(id_))
        for view in row:
            board.with_panel(_panel(view))
    return board


def _variable(name: str, label: str, query: str) -> dashboard.QueryVariable:
    return (
        dashboard.QueryVariable(name)
        .label(label)
        .query(query)
        .datasource(DATASOURCE)
        .refresh(VariableRefresh.ON_TIME_RANGE_CHANGED)
        .sort(VariableSort.ALPHABETICAL_ASC)
        .multi(True)
        .include_all(True)
        .current(VariableOption(selected=True, text="All", value="$__all"))
    )


def _annotation(name: str, color: str, query: str) -> dashboard.AnnotationQuery:
    return (
        dashboard.AnnotationQuery()
        .name(name)
        .expr(query)
        .title_format(name)
        .text_format("{{job}}")
        .icon_color(color)
        .datasource(DATASOURCE)
        .enable(True)
    )


def _panel(view: View) -> Any:
    panel: Any = _OF_KIND[view.kind](view)  # the SDK's builders share these methods and no class that has them
    panel.id(view.id).title(view.title).description(view.about).datasource(DATASOURCE).span(view.width)
    panel.unit(view.unit).height(4 if view.kind == NUMBER and view.width == 6 else 8)
    for number, query in enumerate(view.queries):
        panel.with_target(_target(view, query, chr(ord("A") + number)))
    return panel


def _target(view: View, query: Query, ref_id: str) -> prometheus.Dataquery:
    target = prometheus.Dataquery().expr(query.expr).ref_id(ref_id).datasource(DATASOURCE)
    target.legend_format(query.legend or view.title)
    if view.instant:
        target.instant()
    else:
        target.range()
    if view.kind == TABLE:
        target.format(PromQueryFormat.TABLE)
    if view.kind == HEATMAP:
        target.format(PromQueryFormat.HEATMAP)
    return target


def _lines(view: View) -> timeseries.Panel:
    panel = (
        timeseries.Panel()
        .line_width(2 if view.kind == LINES else 1)
        .fill_opacity({LINES: 0, STACKED: 40, BARS: 80}[view.kind])
        .show_points(VisibilityMode.AUTO)
        .min(0)
        .tooltip(common.VizTooltipOptions().mode(TooltipDisplayMode.MULTI).sort(SortOrder.DESCENDING))
        .legend(
            common.VizLegendOptions()
            .show_legend(True)
            .display_mode(LegendDisplayMode.LIST)
            .placement(LegendPlacement.BOTTOM)
        )
        .override_by_regexp(
            "/ limit$/",
            [DynamicConfigValue("custom.lineStyle", {"fill": "dash", "dash": [10, 10]})],
        )
    )
    if view.kind == STACKED:
        panel.stacking(common.StackingConfig().mode(StackingMode.NORMAL))
    if view.kind == BARS:
        panel.draw_style(GraphDrawStyle.BARS)
    return panel


def _number(view: View) -> stat.Panel:
    steps = zip((None, *view.thresholds), ("green", "yellow", "red"), strict=False)
    return (
        stat.Panel()
        .graph_mode(BigValueGraphMode.NONE if view.instant else BigValueGraphMode.AREA)
        .reduce_options(common.ReduceDataOptions().calcs(["lastNotNull"]))
        .thresholds(
            dashboard.ThresholdsConfig()
            .mode(ThresholdsMode.ABSOLUTE)
            .steps([Threshold(value=value, color=color) for value, color in steps])
        )
    )


def _heatmap(_: View) -> heatmap.Panel:
    return (
        heatmap.Panel()
        .calculate(False)
        .color(
            heatmap.HeatmapColorOptions()
            .mode(HeatmapColorMode.SCHEME)
            .scheme("Oranges")
            .scale(HeatmapColorScale.EXPONENTIAL)
            .exponent(0.5)
            .steps(64)
        )
        .y_axis(heatmap.YAxisConfig().unit("s"))
    )


def _lengths(_: View) -> bargauge.Panel:
    return (
        bargauge.Panel()
        .orientation(VizOrientation.HORIZONTAL)
        .reduce_options(common.ReduceDataOptions().calcs(["lastNotNull"]))
        .min(0)
    )


def _table(view: View) -> table.Panel:
    names = {f"Value #{chr(ord('A') + number)}": query.legend for number, query in enumerate(view.queries)}
    panel = table.Panel()
    panel.with_transformation(DataTransformerConfig(id_val="merge", options={}))
    panel.with_transformation(
        DataTransformerConfig(id_val="organize", options={"excludeByName": {"Time": True}, "renameByName": names})
    )
    return panel


_OF_KIND = {
    LINES: _lines,
    STACKED: _lines,
    BARS: _lines,
    NUMBER: _number,
    HEATMAP: _heatmap,
    LENGTHS: _lengths,
    TABLE: _table,
}


if __name__ == "__main__":
    FILE.write_text(written(), encoding="utf-8")
