"""The recording rules and alerts, as Prometheus reads them."""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
from prometheus_client import CollectorRegistry
from ruamel.yaml import YAML

from deploy.prometheus.rule_manifest import FILE, written
from ratelimiter.metrics.limiter_metrics import KINDS, ORDERS, OUTCOMES, RULE_OUTCOMES, SOURCES, Metrics
from ratelimiter.metrics.proxy_metrics import ProxyMetrics
from ratelimiter.metrics.service_metrics import ServiceMetrics

pytestmark = pytest.mark.wall_clock  # it waits for real servers or timers

ROOT = Path(__file__).parent.parent.parent
FOLDER = ROOT / "deploy" / "prometheus"
RULES = FOLDER / "ratelimiter.rules.yml"
TESTS = FOLDER / "ratelimiter.rules.test.yml"
RUNBOOK = (ROOT / "docs" / "howto" / "runbook.md").read_text()

ALL: list[dict[str, Any]] = [rule for group in YAML(typ="safe").load(RULES)["groups"] for rule in group["rules"]]
ALERTS = [rule for rule in ALL if "alert" in rule]
NAMES = [rule["alert"] for rule in ALERTS]


def promtool(*words: str) -> subprocess.CompletedProcess[str]:
    assert shutil.which("promtool"), (
        "promtool is missing, and nothing else knows what Prometheus takes: apt-get install prometheus"
    )
    return subprocess.run(["promtool", *words], cwd=FOLDER, capture_output=True, text=True, check=False)  # noqa: S607


def test_prometheus_takes_the_rules() -> None:
    """Every expression is one, and no rule is there twice."""
    checked = promtool("check", "rules", RULES.name)

    assert 0 == checked.returncode, checked.stdout + checked.stderr


def test_prometheus_takes_its_configuration() -> None:
    """It finds the rules where they are, and scrapes the jobs whose silence the alerts would notice."""
    checked = promtool("check", "config", "prometheus.yml")
    scraped = [one["job_name"] for one in YAML(typ="safe").load(FOLDER / "prometheus.yml")["scrape_configs"]]
    expressions = {rule["alert"]: rule["expr"] for rule in ALERTS}
    ours, exporters = (
        re.findall(r'\bup\{job=~"([^"]+)"', expressions[name])[0]
        for name in ("RateLimiterNotScraped", "RateLimiterRedisUnwatched")
    )

    assert 0 == checked.returncode, checked.stdout + checked.stderr
    assert ["ratelimiter"] == [name for name in scraped if re.fullmatch(ours, name)]
    assert ["redis"] == [name for name in scraped if re.fullmatch(exporters, name)]


def test_the_operator_s_rules_are_these() -> None:
    """The manifest is what `python -m deploy.prometheus.rule_manifest` writes, and the same rule for rule."""
    manifest = YAML(typ="safe").load(FILE)

    assert written() == FILE.read_text(encoding="utf-8")
    assert ("monitoring.coreos.com/v1", "PrometheusRule") == (manifest["apiVersion"], manifest["kind"])
    assert YAML(typ="safe").load(RULES) == manifest["spec"]


def test_every_alert_fires_when_it_should() -> None:
    """On series made up for it: quiet while all is well, then loud with the text that an operator reads."""
    tested = promtool("test", "rules", TESTS.name)

    assert 0 == tested.returncode, tested.stdout + tested.stderr


@pytest.mark.parametrize("alert", NAMES)
def test_every_alert_is_tried_both_ways(alert: str) -> None:
    """An alert that no test has seen firing may never fire, one not seen silent may never stop."""
    tried = [each for test in YAML(typ="safe").load(TESTS)["tests"] for each in test["alert_rule_test"]]
    fired = {bool(each.get("exp_alerts")) for each in tried if each["alertname"] == alert}

    assert {True, False} == fired


@pytest.mark.parametrize("rule", ALERTS, ids=NAMES)
def test_every_alert_says_what_to_do(rule: dict[str, Any]) -> None:
    """Its annotation leads to a paragraph of the runbook that has its name and how urgent it is."""
    severity = rule["labels"]["severity"]
    paragraph = RUNBOOK.partition(f"## {rule['alert']}\n")[2].partition("\n## ")[0]

    assert f"docs/howto/runbook.md#{rule['alert'].lower()}" == rule["annotations"]["runbook"]
    assert paragraph.strip().startswith(f"*{severity.title()}.*")
    assert 40 < len(paragraph.split())


def test_the_runbook_speaks_of_no_other_alert() -> None:
    """A paragraph whose alert has gone would be looked for in vain."""
    assert NAMES == re.findall(r"^## (\w+)$", RUNBOOK, re.MULTILINE)


class Listening:
    """The connections of a proxy that has none."""

    turned_away = 0

    def __len__(self) -> int:
        return 0


def test_rules_and_runbook_name_metrics_that_exist() -> None:
    """What is not exposed or recorded cannot be asked for."""
    registry = CollectorRegistry()
    Metrics(registry)
    ServiceMetrics(registry, lambda: 0, lambda: 0)
    ProxyMetrics(Listening(), registry)
    exposed: set[str] = set()
    for metric in registry.collect():
        exposed |= {metric.name, f"{metric.name}_total", f"{metric.name}_bucket", *(s.name for s in metric.samples)}
    recorded = {rule["record"] for rule in ALL if "record" in rule}
    texts = [rule["expr"] for rule in ALL]

    asked = {name for text in texts for name in re.findall(r"[\w:]*ratelimiter_[\w:]+", text)}
    assert asked <= exposed | recorded
    assert set(re.findall(r"\bratelimiter_\w+", RUNBOOK)) <= exposed


def test_rules_name_values_that_labels_can_have() -> None:
    """A misspelt value would match nothing, silently."""
    words = {"source": SOURCES, "kind": KINDS, "outcome": (*OUTCOMES, *RULE_OUTCOMES)}
    for rule in ALL:
        for metric, selector in re.findall(r"(\w+)\{([^}]*)\}", rule["expr"]):
            for label, values in re.findall(r'(source|kind|outcome)!?=~?"([^"]*)"', selector):
                known = ORDERS if metric == "ratelimiter_orders" else words[label]
                assert set(values.split("|")) <= set(known), rule
