"""A real Prometheus of the test's own: scrapes what it is told, and answers queries."""

from __future__ import annotations

import json
import shutil
import subprocess
import tempfile
import urllib.error
import urllib.parse
import urllib.request
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, Self

from ruamel.yaml import YAML

from tests.stores.redis_server import free_port, wait_until

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

EXECUTABLE = "prometheus"


class Series(NamedTuple):
    """What a query gave for one set of labels."""

    labels: dict[str, str]
    points: list[tuple[float, float]]  # Unix time, value


class PrometheusServer:
    """A Prometheus on a free port, in a directory that goes with it.

    Args:
        targets: of each job, the `HOST:PORT` that are scraped.
        scrape_s: seconds between two scrapes; rules are evaluated as often.
        rules: text of a file of rules.
    """

    def __init__(self, targets: Mapping[str, Sequence[str]], *, scrape_s: float, rules: str = "") -> None:
        if shutil.which(EXECUTABLE) is None:
            msg = f"{EXECUTABLE} is missing, and queries are run on nothing else: apt-get install prometheus"
            raise AssertionError(msg)
        self.scrape_s = scrape_s
        self._directory = Path(tempfile.mkdtemp(prefix="ratelimiter-prometheus-"))
        self._targets = targets
        self._rules = rules
        self._port = free_port()
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self._port}"

    def __enter__(self) -> Self:
        every = f"{round(self.scrape_s * 1000)}ms"
        config: dict[str, Any] = {
            "global": {"scrape_interval": every, "scrape_timeout": every, "evaluation_interval": every},
            "scrape_configs": [
                {"job_name": job, "static_configs": [{"targets": list(targets)}]}
                for job, targets in self._targets.items()
            ],
        }
        if self._rules:
            (self._directory / "rules.yml").write_text(self._rules)
            config["rule_files"] = ["rules.yml"]
        with (self._directory / "prometheus.yml").open("w") as file:
            YAML().dump(config, file)
        command = [EXECUTABLE, "--config.file=prometheus.yml", "--storage.tsdb.path=data"]
        command += [f"--web.listen-address=127.0.0.1:{self._port}", "--log.level=warn"]
        with (self._directory / "log").open("wb") as log:
            self._process = subprocess.Popen(command, cwd=self._directory, stdout=log, stderr=log)
        wait_until(self._ready, f"{EXECUTABLE} answers; see {self._directory / 'log'}")
        return self

    def __exit__(self, *_: object) -> None:
        if self._process is not None:
            self._process.kill()
            self._process.wait()
        shutil.rmtree(self._directory, ignore_errors=True)

    def query(self, expr: str, at_s: float | None = None) -> list[Series]:
        """What *expr* is at one moment, now by default."""
        given = {"query": expr} if at_s is None else {"query": expr, "time": f"{at_s:.3f}"}
        found = self._get("query", given)["data"]["result"]
        return [Series(each["metric"], [_point(each["value"])]) for each in found]

    def query_range(self, expr: str, start_s: float, end_s: float, step_s: float) -> list[Series]:
        """What *expr* was, every *step_s* of a time."""
        given = {"query": expr, "start": f"{start_s:.3f}", "end": f"{end_s:.3f}", "step": f"{step_s:.3f}"}
        found = self._get("query_range", given)["data"]["result"]
        return [Series(each["metric"], [_point(value) for value in each["values"]]) for each in found]

    def metadata(self) -> set[str]:
        """Every name that it has a series of."""
        return set(self._get("label/__name__/values", {})["data"])

    def firing(self) -> set[str]:
        """Alerts that fire now."""
        alerts = self._get("alerts", {})["data"]["alerts"]
        return {alert["labels"]["alertname"] for alert in alerts if alert["state"] == "firing"}

    def _ready(self) -> bool:
        assert self._process is not None
        assert self._process.poll() is None, (self._directory / "log").read_text()
        try:
            with urllib.request.urlopen(f"{self.url}/-/ready", timeout=1):  # noqa: S310 - it is ours
                return True
        except OSError:
            return False

    def _get(self, path: str, given: dict[str, str]) -> Any:
        url = f"{self.url}/api/v1/{path}?{urllib.parse.urlencode(given)}"
        try:
            with urllib.request.urlopen(url, timeout=30) as answer:  # noqa: S310 - it is ours
                return json.load(answer)
        except urllib.error.HTTPError as error:
            with error:
                msg = f"{given}: {error.read().decode()}"
            raise AssertionError(msg) from None


def _point(value: list[Any]) -> tuple[float, float]:
    return float(value[0]), float(value[1])
