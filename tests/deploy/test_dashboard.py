"""The Grafana dashboard: what is committed is what is generated, and every query finds what a real run has left."""

from __future__ import annotations

import json
import math
import re
import time
from itertools import product
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from ruamel.yaml import YAML

from deploy.grafana.dashboard import FILE, written
from deploy.grafana.panels import ROWS, VARIABLES, views
from ratelimiter.core.requirement import REASONS
from ratelimiter.core.usage import KINDS as TOKEN_KINDS
from ratelimiter.metrics.limiter_metrics import ORDERS, OUTCOMES, RULE_OUTCOMES, SOURCES, UNASKED
from tests.deploy.scene import JOBS, MIDDLEWARE, SIDECAR, Callers, Scene

if TYPE_CHECKING:
    from collections.abc import Iterator

    from deploy.grafana.panels import View

ROOT = Path(__file__).parent.parent.parent
FOLDER = ROOT / "deploy" / "grafana"
BOARD: dict[str, Any] = json.loads(FILE.read_text(encoding="utf-8"))
PANELS: list[dict[str, Any]] = [panel for panel in BOARD["panels"] if panel["type"] != "row"]
TITLES = [panel["title"] for panel in PANELS]
GUIDE = (ROOT / "docs" / "howto" / "dashboard.md").read_text(encoding="utf-8")
VIEWS = list(views())

SCRAPE_S = 0.25
LIMITS = ("10/second", "12/second")
RULES = ("per-key", "search", "exports", "payments", "reports", "generate", "tokens")

# Panels that a run without misfortune of their own kind leaves empty, and why.
MAY_BE_EMPTY: dict[str, str] = {}


def inside(panel: dict[str, Any]) -> list[dict[str, Any]]:
    targets: list[dict[str, Any]] = panel["targets"]
    return targets


class Watched:
    """What Prometheus has seen of a run, and what the callers have."""

    def __init__(self, scene: Scene, callers: Callers, first_s: float, ended_s: float) -> None:
        self.scene = scene
        self.callers = callers
        self.first_s = first_s  # everybody was scraped, and nobody had called
        self.ended_s = ended_s

    def numbers(self, target: dict[str, Any]) -> list[float]:
        """Every value that a panel would draw for one of its queries."""
        found = self.scene.shown(target["expr"], self.ended_s, instant=target["instant"])
        return [value for series in found for _, value in series.points if math.isfinite(value)]

    def total(self, job: str, metric: str = "ratelimiter_requests_total", **labels: str) -> int:
        """What a counter, which began at 0, has come to."""
        chosen = ", ".join(f'{name}=~"{value}"' for name, value in {"job": job, **labels}.items())
        found = self.scene.prometheus.query(f"sum({metric}{{{chosen}}})", self.ended_s)
        return round(found[0].points[0][1]) if found else 0


@pytest.fixture(scope="module")
def watched() -> Iterator[Watched]:
    """A run with everything in it that the dashboard can show: refusals of each kind, orders of operators, a bad policy
    file, a better one, an outage.
    """
    with Scene(limit=LIMITS[0], scrape_s=SCRAPE_S) as scene:
        time.sleep(3 * SCRAPE_S)
        first_s = time.time()
        with Callers(scene) as callers:
            scene.order("block", "header:X-API-Key=key-1", "--for", "1500ms")
            time.sleep(1)
            scene.order("shadow", "on", "--for", "1s")
            time.sleep(1)
            scene.spoil_policy()
            time.sleep(1)
            scene.write_policy(LIMITS[1])
            time.sleep(1)
            scene.stop_redis()
            time.sleep(2)
            scene.start_redis()
            time.sleep(2)
        scene.settle()
        yield Watched(scene, callers, first_s, time.time())


# --- What is committed


def test_the_dashboard_is_what_its_code_writes() -> None:
    """Whoever changes the JSON by hand, or the code without it, is told: `python -m deploy.grafana.dashboard`."""
    assert written() == FILE.read_text(encoding="utf-8")


def test_the_dashboard_is_of_grafanas_model() -> None:
    """Read into the SDK's types and written again it is the same: no field has a name or a shape that Grafana lacks."""
    from grafana_foundation_sdk.cog.encoder import JSONEncoder
    from grafana_foundation_sdk.cog.plugins import register_default_plugins
    from grafana_foundation_sdk.models.dashboard import Dashboard

    register_default_plugins()  # without them, panels are read as they are

    assert BOARD == json.loads(JSONEncoder().encode(Dashboard.from_json(BOARD)))


def test_the_rows_are_those_of_the_tables() -> None:
    """Nothing is lost between the tables and what Grafana reads."""
    rows = [(panel["id"], panel["title"]) for panel in BOARD["panels"] if panel["type"] == "row"]

    assert [(id_, title) for id_, title, _ in ROWS] == rows
    assert [(view.id, view.title) for view in VIEWS] == [(panel["id"], panel["title"]) for panel in PANELS]


def test_ids_and_titles_are_unique() -> None:
    """A link to a panel, and a sentence about one, mean one panel."""
    ids = [panel["id"] for panel in BOARD["panels"]]

    assert sorted(set(ids)) == sorted(ids)
    assert sorted(set(TITLES)) == sorted(TITLES)


@pytest.mark.parametrize("row", ROWS, ids=[title for _, title, _ in ROWS])
def test_ids_say_their_row(row: tuple[int, str, tuple[View, ...]]) -> None:
    """The tens of a panel's id are its row's, so that a new panel moves no other one's id."""
    id_, _, panels = row

    assert {id_} == {view.id // 10 for view in panels}


def test_panels_do_not_overlap_and_fill_the_width() -> None:
    """The grid has 24 columns, and each of its cells one panel at most."""
    cells = [
        (x, y)
        for panel in BOARD["panels"]
        for box in [panel["gridPos"]]
        for x in range(box["x"], box["x"] + box["w"])
        for y in range(box["y"], box["y"] + box["h"])
    ]

    assert len(set(cells)) == len(cells)
    assert set(range(24)) == {x for x, _ in cells}


@pytest.mark.parametrize("panel", PANELS, ids=TITLES)
def test_panels_say_what_they_show(panel: dict[str, Any]) -> None:
    """Each has a description, a unit, and a name for each of its lines."""
    assert 8 <= len(panel["description"].split())
    assert panel["fieldConfig"]["defaults"]["unit"]
    assert all(target["legendFormat"] for target in inside(panel))


@pytest.mark.parametrize("panel", PANELS, ids=TITLES)
def test_panels_ask_the_chosen_data_source(panel: dict[str, Any]) -> None:
    """No panel is bound to somebody's Prometheus, and none asks two questions under one name."""
    chosen = {"type": "prometheus", "uid": "${datasource}"}

    assert chosen == panel["datasource"]
    assert all(chosen == target["datasource"] for target in inside(panel))
    assert len(inside(panel)) == len({target["refId"] for target in inside(panel)})


@pytest.mark.parametrize("panel", PANELS, ids=TITLES)
def test_queries_follow_the_variables(panel: dict[str, Any]) -> None:
    """Every selector is narrowed by job and instance, those of rules by rule; every window is Grafana's choice."""
    for target in inside(panel):
        selectors = re.findall(r"\w+\{([^}]*)\}", target["expr"])
        of_rules = re.findall(r"ratelimiter_rule_\w+\{([^}]*)\}", target["expr"])

        assert selectors
        assert all('job=~"$job", instance=~"$instance"' in selector for selector in selectors)
        assert all('rule=~"$rule"' in selector for selector in of_rules)
        assert set(re.findall(r"\[([^\]]*)\]", target["expr"])) <= {"$__rate_interval", "$__range"}
        assert not re.search(r"rate\([^)]*\$__range", target["expr"])
        assert target["instant"] or "$__range" not in target["expr"]


def test_counters_are_asked_for_their_rate() -> None:
    """A counter as it is says how long a process has lived."""
    for panel in PANELS:
        for target in inside(panel):
            for counter in re.finditer(r"\w+(_total|_count|_sum|_bucket)\{", target["expr"]):
                assert target["expr"][: counter.start()].endswith(("rate(", "increase(")), panel["title"]


def test_queries_name_values_that_labels_can_have() -> None:
    """A misspelt value would match nothing, and with the others that it stands among nobody would notice."""
    known = {*TOKEN_KINDS, *OUTCOMES, *RULE_OUTCOMES, *SOURCES, UNASKED, *ORDERS}
    asked = {
        value
        for panel in PANELS
        for target in inside(panel)
        for values in re.findall(r'(?:outcome|source|kind)!?=~?"([^"]*)"', target["expr"])
        for value in values.split("|")
    }

    assert asked <= known
    assert set(REASONS) <= asked  # nothing that a request may lack is left out


@pytest.mark.parametrize("title", TITLES)
def test_the_guide_speaks_of_every_panel(title: str) -> None:
    """docs/howto/dashboard.md says how to read it."""
    assert f"**{title}**" in GUIDE


def test_the_guide_speaks_of_no_other_panel() -> None:
    """A paragraph whose panel has gone would be looked for in vain."""
    assert TITLES == re.findall(r"^\* \*\*(.+?)\*\*", GUIDE, re.MULTILINE)


def test_the_guide_has_its_pictures() -> None:
    """Each that it shows is there and small; one stands at the head of each row."""
    shown = re.findall(r"\(\.\./pictures/([\w-]+\.png)\)", GUIDE)
    sizes = {name: (ROOT / "docs" / "pictures" / name).stat().st_size for name in shown}

    assert len(re.findall(r"^## ", GUIDE, re.MULTILINE)) == len(sizes)
    assert all(size < 100_000 for size in sizes.values())


def test_grafana_is_told_where_all_is() -> None:
    """The provisioning files name a data source of Prometheus' kind, and a folder for the dashboard."""
    read = YAML(typ="safe").load
    [source] = read(FOLDER / "provisioning" / "datasources" / "prometheus.yml")["datasources"]
    [provider] = read(FOLDER / "provisioning" / "dashboards" / "ratelimiter.yml")["providers"]
    scraping = read(ROOT / "deploy" / "prometheus" / "prometheus.yml")["global"]

    assert "prometheus" == source["type"]
    assert "file" == provider["type"]
    assert scraping["scrape_interval"] == source["jsonData"]["timeInterval"]


# --- What it shows


@pytest.mark.parametrize("panel", PANELS, ids=TITLES)
def test_every_query_finds_data(panel: dict[str, Any], watched: Watched) -> None:
    """Run as Grafana would, on what Prometheus has of a real run."""
    empty = [target["expr"] for target in inside(panel) if not watched.numbers(target)]

    assert (panel["title"] in MAY_BE_EMPTY) == bool(empty), empty


@pytest.mark.parametrize("panel", PANELS, ids=TITLES)
def test_every_metric_is_exposed(panel: dict[str, Any], watched: Watched) -> None:
    """What is not exposed cannot be asked for."""
    asked = {name for target in inside(panel) for name in re.findall(r"(\w+)\{", target["expr"])}

    assert asked <= watched.scene.prometheus.metadata()


def test_the_switch_is_seen_across_all_panels(watched: Watched) -> None:
    """What it does to every panel is marked in all of them while it lasts, and neither before nor after."""
    [annotation] = BOARD["annotations"]["list"]
    found = watched.scene.shown(annotation["expr"], watched.ended_s, instant=False)
    moments = [at for series in found for at, _ in series.points]

    assert {"type": "prometheus", "uid": "${datasource}"} == annotation["datasource"]
    assert set(JOBS) == {series.labels["job"] for series in found}
    assert watched.first_s < min(moments)
    assert max(moments) < watched.ended_s - 3


@pytest.mark.parametrize(("name", "query"), [(name, query) for name, _, query, _ in VARIABLES])
def test_the_variables_have_values(name: str, query: str, watched: Watched) -> None:
    """Each has something to choose from; jobs are ours, and not the others' that Prometheus scrapes."""
    [(selector, label)] = re.findall(r"label_values\((.+), (\w+)\)", query)
    found = watched.scene.shown(f"group by ({label}) ({selector})", watched.ended_s, instant=True)
    values = {series.labels[label] for series in found}

    assert {"job": set(JOBS), "rule": {*RULES}}.get(name, values) == values
    assert 1 < len(values)


@pytest.mark.parametrize("job", JOBS)
def test_prometheus_counts_request_for_request(job: str, watched: Watched) -> None:
    """Through refusals, reloads and an outage: what was judged is what was answered, what was admitted has arrived."""
    answers = watched.callers.answers
    malformed = 0 if job == SIDECAR else answers[job, 400]  # which the sidecar refuses by itself, and has not judged

    assert 0 == answers[job, 0]
    assert watched.callers.of(job) - answers[job, 400] + malformed == watched.total(job)
    assert malformed == watched.total(job, outcome="malformed")
    assert answers[job, 429] == watched.total(job, outcome="refused|blocked")
    assert answers[job, 402] == watched.total(job, outcome="credit_exhausted")
    assert answers[job, 401] == watched.total(job, outcome="credentials_missing")
    assert answers[job, 503] == watched.total(job, outcome="store_error|identity_unavailable")
    assert watched.scene.reached(job) == watched.total(job, outcome="admitted|shadow_refused|unmatched")


def test_the_run_has_everything_in_it(watched: Watched) -> None:
    """Data that is there proves little unless each thing that can happen has happened."""
    limits = ("admitted", "refused", "shadow_refused", "credit_exhausted", "store_error")
    others = ("blocked", "unmatched", "malformed", "credentials_missing", "identity_unavailable")
    for outcome in (*limits, *others):
        assert watched.total(MIDDLEWARE, outcome=outcome), outcome
    for source in ("store", "remembered", "local", "fail_open", "fail_closed", "none"):
        assert watched.total(MIDDLEWARE, source=source), source
    for result in ("loaded", "failed"):
        assert watched.total(MIDDLEWARE, "ratelimiter_policy_reloads_total", result=result), result
    assert watched.total(MIDDLEWARE, "ratelimiter_store_errors_total")
    assert watched.total(MIDDLEWARE, "ratelimiter_degraded_seconds_total")


def test_no_first_event_was_missed(watched: Watched) -> None:
    """What has happened in the run was a series from the first scrape on, so that rate() has seen it all; but for what
    a rule says of requests that another one has refused, by memory or without the store, and what the switch makes of
    refusals.
    """
    besides = {
        "requests_total": {("credentials_missing", "remembered"), ("identity_unavailable", "remembered")},
        "rule_requests_total": {*product(("spared", "shadow_refused"), ("remembered", "local"))}
        | {("shadow_refused", "store")},
    }
    for metric in ("requests_total", "rule_requests_total", "store_errors_total", "policy_reloads_total"):
        now = watched.scene.prometheus.query(f"ratelimiter_{metric}", watched.ended_s)
        first = watched.scene.prometheus.query(f"ratelimiter_{metric}", watched.first_s)
        known = [series.labels for series in first]
        late = {(one.labels.get("outcome"), one.labels.get("source")) for one in now if one.labels not in known}

        assert first
        assert late <= besides.get(metric, set())


def test_the_sidecar_answers_are_all_counted(watched: Watched) -> None:
    """By status and by who gave them; the API's own errors are told from the limiter's."""
    responses = "ratelimiter_proxy_responses_total"
    answers = watched.callers.answers

    refused = sum(answers[SIDECAR, status] for status in (401, 402, 429))
    assert refused == watched.total(SIDECAR, responses, status="4xx", source="judge")
    assert answers[SIDECAR, 503] == watched.total(SIDECAR, responses, status="5xx", source="judge")
    assert watched.scene.reached(SIDECAR) == watched.total(SIDECAR, responses, source="upstream")
    assert answers[SIDECAR, 500] == watched.total(SIDECAR, responses, status="5xx", source="upstream")
