"""The rules as the Prometheus operator takes them: `python -m deploy.prometheus.rule_manifest` writes the manifest.

Change ratelimiter.rules.yml, never the manifest: a test compares the two.
"""

from __future__ import annotations

from io import StringIO
from pathlib import Path
from typing import Any

from ruamel.yaml import YAML

RULES = Path(__file__).with_name("ratelimiter.rules.yml")
FILE = RULES.parent.parent / "kubernetes" / "monitoring" / "prometheusrule.yaml"
HEAD = "# Written by `python -m deploy.prometheus.rule_manifest` from deploy/prometheus/ratelimiter.rules.yml.\n"


def written() -> str:
    """Return the manifest."""
    manifest: dict[str, Any] = {
        "apiVersion": "monitoring.coreos.com/v1",
        "kind": "PrometheusRule",
        # What the chart's Prometheus looks for, as in servicemonitors.yaml.
        "metadata": {"name": "ratelimiter", "labels": {"release": "kube-prometheus-stack"}},
        # The operator's `spec` is a file of rules, word for word.
        "spec": YAML(typ="safe").load(RULES),
    }
    yaml, text = YAML(), StringIO()
    yaml.width = 4096  # an expression is one line, as in the source
    yaml.indent(mapping=2, sequence=4, offset=2)
    yaml.dump(manifest, text)
    return HEAD + text.getvalue()


if __name__ == "__main__":
    FILE.write_text(written(), encoding="utf-8")
