"""Whether Prometheus says what has happened: its numbers beside those of wrk and of the API, and alerts that ring.

    python -m tests.benchmarks.observed [--rate 300]

A real Prometheus scrapes an application with the middleware, one with two workers, and the sidecar, all on one Redis
and all under wrk, while one caller floods, Redis is stopped and started, a policy file is spoilt and mended, and a
process hangs. Then every request must have been counted once by each, and every alert that was due must have fired and
cleared. Takes nine minutes, most of them waiting for the last alert.

The alerts are those of deploy/prometheus, hurried: a minute in them is a second here, else this would take three hours.
Needs `wrk`, `redis-server` and `prometheus`.
"""

from __future__ import annotations

import argparse
import re
import shutil
import signal
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from tests.deploy.scene import JOBS, MIDDLEWARE, ROOT, SIDECAR, Scene, Way

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from tests.deploy.prometheus_server import PrometheusServer

RULES = ROOT / "deploy" / "prometheus" / "ratelimiter.rules.yml"
SCRIPT = Path(__file__).with_name("observed.lua")
HURRY = 60
UNITS_S = {"s": 1, "m": 60, "h": 3600, "d": 86400}
SCRAPE_S = 0.25
CONNECTIONS = 16
KEYS = 500
DRAIN_S = 4  # between the last request and the end of wrk
LOADED_S = 135

FAILS_OPEN, BURNS_FAST = "RateLimiterFailsOpen", "RateLimiterStoreBudgetBurnsFast"
RELOAD_FAILED, JUMP, SILENT = "RateLimiterReloadFailed", "RateLimiterRefusalsJump", "RateLimiterNotScraped"
BURNS_SLOWLY = "RateLimiterStoreBudgetBurnsSlowly"
DUE = (JUMP, FAILS_OPEN, BURNS_FAST, BURNS_SLOWLY, RELOAD_FAILED, SILENT)
CLEAR_S = 400  # six hours, hurried: so long an outage burns slowly; and a little more


class Event(NamedTuple):
    """Something that happens."""

    at_s: float  # since the beginning
    name: str
    happen: Callable[[], object]


class Load:
    """One wrk."""

    def __init__(self, way: Way, first: str, keys: int, rate: float, seconds: int) -> None:
        self.way = way
        pause_ms = round(1000 * CONNECTIONS / rate)
        command = ["wrk", "-t1", f"-c{CONNECTIONS}", f"-d{seconds + DRAIN_S}s", "--timeout", "30s", "-s", str(SCRIPT)]
        command += [f"http://127.0.0.1:{way.port}", "--", first, str(keys), str(pause_ms), str(seconds)]
        self._process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)

    def answers(self) -> Counter[str]:
        """How many answers of each status there were, when it has ended; and as `lost` those that never came."""
        out, _ = self._process.communicate()
        seen = re.search(r"SEEN (.*)", out)
        if seen is None:
            sys.exit(f"wrk failed: {out}")
        return Counter({name: int(number) for name, number in re.findall(r"(\w+)=(\d+)", seen[1])})


def hurried(rules: str) -> str:
    """*rules* with all their times divided by `HURRY`; names that speak of a time stay as they are."""

    def shorter(found: re.Match[str]) -> str:
        return f"{found[1]}{round(int(found[2]) * UNITS_S[found[3]] * 1000 / HURRY)}ms"

    return re.sub(r"(\[|offset |for: )(\d+)([smhd])\b", shorter, rules)


def run(scene: Scene, rate: float) -> tuple[dict[str, Counter[str]], list[Event]]:
    """Let everything happen; gives what wrk has seen of each way, and what happened when."""
    loads = [Load(way, "key", KEYS, rate, LOADED_S) for way in scene.ways.values()]
    hung = scene.ways[SIDECAR].process
    events = [
        Event(40, "one caller floods", lambda: loads.append(Load(scene.ways[MIDDLEWARE], "flood", 1, 2 * rate, 22))),
        Event(75, "Redis is killed", scene.stop_redis),
        Event(95, "Redis is back", scene.start_redis),
        Event(105, "the policy file is spoilt", scene.spoil_policy),
        Event(120, "the policy file is mended", lambda: scene.write_policy("11/second")),
        Event(LOADED_S + DRAIN_S + 2, "the sidecar hangs", lambda: hung.send_signal(signal.SIGSTOP)),
        Event(LOADED_S + DRAIN_S + 14, "the sidecar goes on", lambda: hung.send_signal(signal.SIGCONT)),
    ]
    begun_s = time.monotonic()
    for event in events:
        time.sleep(max(0.0, begun_s + event.at_s - time.monotonic()))
        print(f"{event.at_s:6.0f} s  {event.name}", flush=True)
        event.happen()
    seen: dict[str, Counter[str]] = {job: Counter() for job in scene.ways}
    for load in loads:
        seen[load.way.job] += load.answers()
    scene.settle()
    return seen, events


def compare(scene: Scene, seen: dict[str, Counter[str]]) -> bool:
    """Print all numbers side by side; gives whether they agree."""
    agreed = True
    for job in scene.ways:
        prometheus, answers = scene.prometheus, seen[job]
        admitted = _count(prometheus, f'ratelimiter_requests_total{{job="{job}", outcome=~"{PASSED_ON}"}}')
        rows = [
            ("requests judged", _count(prometheus, f'ratelimiter_requests_total{{job="{job}"}}'), _answered(answers)),
            ("passed on", admitted, answers["200"]),
            (
                "refused",
                _count(prometheus, f'ratelimiter_requests_total{{job="{job}", outcome="refused"}}'),
                answers["429"],
            ),
            (
                "store_error",
                _count(prometheus, f'ratelimiter_requests_total{{job="{job}", outcome="store_error"}}'),
                answers["503"],
            ),
            (
                "decisions timed",
                _count(prometheus, f'ratelimiter_decision_seconds_count{{job="{job}"}}'),
                _answered(answers),
            ),
        ]
        if job == SIDECAR:
            responses = f'ratelimiter_proxy_responses_total{{job="{job}"'
            rows.append(("responses", _count(prometheus, responses + "}"), _answered(answers)))
            rows.append(
                ("responses of upstream", _count(prometheus, responses + ', source="upstream"}'), answers["200"])
            )
        print(f"\n{job}{'':20}  Prometheus         wrk     the API")
        for name, counted, by_wrk in rows:
            reached = f"{scene.reached(job):12,}" if name in ("passed on", "responses of upstream") else ""
            same = counted == by_wrk and (not reached or counted == scene.reached(job))
            agreed &= same
            print(f"  {name:32}{counted:12,}{by_wrk:12,}{reached:12}  {'' if same else 'DIFFERS'}")
        print(f"  {'lost':32}{'':12}{answers['lost']:12,}")
        by_process = scene.reached_by_process(job)
        if len(by_process) > 1:
            print(f"  of the API's, by worker: {' + '.join(f'{number:,}' for number in by_process)}")
        agreed &= not answers["lost"]
    return agreed


PASSED_ON = "admitted|shadow_refused|unmatched"


def _answered(answers: Counter[str]) -> int:
    return answers.total() - answers["lost"]


def _count(prometheus: PrometheusServer, selector: str) -> int:
    found = prometheus.query(f"sum({selector})")
    return round(found[0].points[0][1]) if found else 0


def outage(scene: Scene) -> None:
    """Print what the outage looked like."""
    print("\nsource of the decisions, all three")
    for series in scene.prometheus.query("sum by (source) (ratelimiter_requests_total)"):
        print(f"  {series.labels['source']:32}{series.points[0][1]:12,.0f}")
    print("seconds without the store, by process or processes")
    for series in scene.prometheus.query("sum by (job) (ratelimiter_degraded_seconds_total)"):
        print(f"  {series.labels['job']:32}{series.points[0][1]:12.2f}")


def alerts(scene: Scene, events: Sequence[Event]) -> bool:
    """Wait for the alerts to clear and print when each fired; gives whether those that were due have, and no other."""
    deadline_s = time.monotonic() + CLEAR_S
    while scene.prometheus.firing() and time.monotonic() < deadline_s:
        time.sleep(1)
    fired = scene.prometheus.query_range('ALERTS{alertstate="firing"}', scene.begun_s, time.time(), SCRAPE_S)
    print("\nalerts, seconds since the beginning (hurried: a second is a minute)")
    names = set()
    for series in sorted(fired, key=lambda series: series.points[0][0]):
        first_s, last_s = (series.points[index][0] - scene.begun_s for index in (0, -1))
        before = [event for event in events if event.at_s <= first_s]
        told = f"{first_s - before[-1].at_s:.1f} s after: {before[-1].name}" if before else "before anything happened"
        of = " ".join(series.labels[name] for name in ("job", "rule") if name in series.labels)
        names.add(series.labels["alertname"])
        print(f"  {series.labels['alertname']:34} {of:34} {first_s:6.1f} to {last_s:6.1f}  {told}")
    still = scene.prometheus.firing()
    for name in sorted(still):
        print(f"  {name} STILL FIRES")
    for name in sorted(set(DUE) - names):
        print(f"  {name} HAS NOT FIRED")
    for name in sorted(names - set(DUE)):
        print(f"  {name} was not due; a machine that is too busy can do that")
    return not still and set(DUE) <= names


def main() -> None:
    """Run, compare, and exit with 1 unless everything agrees."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rate", type=float, default=300.0, help="requests per second to each way; default: 300")
    rate = parser.parse_args().rate
    if not shutil.which("wrk"):
        sys.exit("wrk is missing: apt-get install wrk")
    rules = hurried(RULES.read_text(encoding="utf-8"))
    with Scene(shadow="20/second", scrape_s=SCRAPE_S, rules=rules, jobs=JOBS) as scene:
        seen, events = run(scene, rate)
        agreed = compare(scene, seen)
        outage(scene)
        rang = alerts(scene, events)
    print(
        f"\nnumbers {'agree, request for request' if agreed else 'DIFFER'}; alerts {'as due' if rang else 'NOT as due'}"
    )
    sys.exit(0 if agreed and rang else 1)


if __name__ == "__main__":
    main()
