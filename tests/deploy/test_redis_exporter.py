"""What the alerts on Redis ask for: a real exporter, set as in the examples, on a Redis that throws keys away.

It is the exporter of Debian, older than the image that the examples pin; the names of what is asked for are the same.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import urllib.request
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from tests.deploy.prometheus_server import PrometheusServer
from tests.deploy.test_compose import SERVICES
from tests.deploy.test_kubernetes import EXTERNAL, OVERLAY, SETS, named
from tests.deploy.test_prometheus import ALERTS, RULES, RUNBOOK
from tests.stores.redis_server import RedisServer, free_port, wait_until

if TYPE_CHECKING:
    from collections.abc import Iterator

pytestmark = pytest.mark.wall_clock  # it waits for real servers or timers

ROOT = Path(__file__).parent.parent.parent
EXECUTABLE = "prometheus-redis-exporter"
CHECKLIST = (ROOT / "docs" / "howto" / "production.md").read_text()
SETTINGS = SERVICES["redis-exporter"]["environment"]
EVICTS, UNWATCHED = "RateLimiterRedisEvicts", "RateLimiterRedisUnwatched"
NAMES = re.compile(r"\bredis_[a-z_]+")


@contextmanager
def exporter(redis: RedisServer, **settings: str) -> Iterator[str]:
    """The exporter of *redis*, as compose sets it; gives its `HOST:PORT`."""
    assert shutil.which(EXECUTABLE), f"{EXECUTABLE} is missing: apt-get install {EXECUTABLE}"
    place = f"127.0.0.1:{free_port()}"
    given = SETTINGS | {"REDIS_ADDR": f"redis://127.0.0.1:{redis.port}", "REDIS_EXPORTER_WEB_LISTEN_ADDRESS": place}
    with subprocess.Popen([EXECUTABLE], env=os.environ | given | settings, stderr=subprocess.DEVNULL) as process:
        try:
            wait_until(lambda: exposition(place), "the exporter answers")
            yield place
        finally:
            process.terminate()


def exposition(place: str) -> str:
    try:
        with urllib.request.urlopen(f"http://{place}/metrics", timeout=5) as answer:
            text: str = answer.read().decode()
            return text
    except OSError:
        return ""


def fill(redis: RedisServer) -> None:
    with redis.client() as client:
        for number in range(60):
            client.set(f"key-{number}", b"x" * 100_000, ex=600)


def test_an_evicting_redis_is_noticed() -> None:
    """The alert is quiet while Redis has room, and rings when it throws the first keys away. A Redis that is gone is
    noticed by its exporter.
    """
    rules = RULES.read_text().replace("for: 10m", "for: 500ms")
    with RedisServer(maxmemory="3mb", maxmemory_policy="allkeys-lru") as redis, exporter(redis) as place:
        targets = {"redis": [place], "ratelimiter": []}
        with PrometheusServer(targets, scrape_s=0.25, rules=rules) as prometheus:
            wait_until(lambda: prometheus.query("redis_evicted_keys_total == 0"), "Redis is scraped")
            before = prometheus.firing()
            fill(redis)
            wait_until(lambda: EVICTS in prometheus.firing(), "the alert rings")
            with redis.client() as client:
                stats: Any = client.info("stats")
            wait_until(
                lambda: prometheus.query(f"redis_evicted_keys_total == {stats['evicted_keys']}"), "all are counted"
            )
            during = prometheus.firing()
            redis.kill()
            wait_until(lambda: UNWATCHED in prometheus.firing(), "its absence is noticed")

    assert 0 < stats["evicted_keys"]
    assert {EVICTS, UNWATCHED}.isdisjoint(before)
    assert UNWATCHED not in during


def test_rules_and_runbook_name_metrics_that_it_has() -> None:
    """All that is asked of it or said of it is in its exposition."""
    said = set(NAMES.findall(" ".join(rule["expr"] for rule in ALERTS)))
    for name in (EVICTS, UNWATCHED):
        said |= set(NAMES.findall(RUNBOOK.partition(f"## {name}\n")[2].partition("\n## ")[0]))
    said -= {"redis_exporter"}
    with RedisServer() as redis, exporter(redis) as place:
        exposed = {re.split(r"[{ ]", line)[0] for line in exposition(place).splitlines()}

    assert {"redis_evicted_keys_total", "redis_up", "redis_memory_max_bytes"} <= said
    assert said <= exposed


def test_its_user_needs_no_more_rights_than_the_checklist_gives() -> None:
    """The command of docs/howto/production.md makes a user that sees all that the alerts ask for, and cannot read or
    write a key; the exporter is told of it by the variables that the manifest sets.
    """
    (command,) = re.findall(r"^ *ACL SETUSER exporter (.+)$", CHECKLIST, re.MULTILINE)
    (container,) = named("Deployment", "ratelimiter-redis-exporter", EXTERNAL)["spec"]["template"]["spec"]["containers"]
    secret = {"REDIS_USER": "exporter", "REDIS_PASSWORD": "PASSWORD"}
    plain = {one["name"]: one["value"] for one in container["env"] if "value" in one}
    with RedisServer() as redis:
        with redis.client() as client:
            client.execute_command("ACL", "SETUSER", "exporter", *command.split())
            denied = client.execute_command("ACL", "DRYRUN", "exporter", "GET", "rl1:x")
        with exporter(redis, **plain, **secret) as place:
            text = exposition(place)
        with exporter(redis, **plain, **secret | {"REDIS_PASSWORD": "wrong"}) as place:
            refused = exposition(place)

    assert set(secret) <= {one["name"] for one in container["env"]}
    assert "redis_up 1" in text
    assert "redis_evicted_keys_total 0" in text
    assert 'redis_instance_info{maxmemory_policy="noeviction"' in text
    assert b"permission" in denied
    assert "redis_up 0" in refused


@pytest.mark.parametrize("name", ["ratelimiter-redis", "ratelimiter-redis-exporter"])
def test_the_manifests_set_it_as_compose_does(name: str) -> None:
    """What is tried here with the settings of one example holds for the others."""
    (pod,) = (
        one["spec"]["template"]["spec"]
        for one in (*OVERLAY, *EXTERNAL)
        if one["kind"] in SETS and name == one["metadata"]["name"]
    )
    (container,) = (one for one in pod["containers"] if "redis_exporter" in one["image"])
    given = {one["name"]: one.get("value") for one in container["env"]}
    secret = {"REDIS_ADDR", "REDIS_USER", "REDIS_PASSWORD"}  # where it is and who asks differ

    assert {name: value for name, value in SETTINGS.items() if name not in secret} == {
        name: value for name, value in given.items() if name not in secret
    }
    assert "REDIS_ADDR" in given
