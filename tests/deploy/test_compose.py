"""The example that one command starts."""

from __future__ import annotations

import http.client
import json
import os
import re
import shlex
import shutil
import subprocess
import sys
from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from ruamel.yaml import YAML

from ratelimiter.config import loader
from ratelimiter.proxy.settings import ProxySettings
from tests.deploy.cli_words import flags_of
from tests.deploy.nginx_server import nginx
from tests.stores.redis_server import RedisServer, free_port, wait_until

if TYPE_CHECKING:
    from collections.abc import Iterator

ROOT = Path(__file__).parent.parent.parent
FILE = ROOT / "deploy" / "compose.yaml"
COMPOSE: dict[str, Any] = YAML(typ="safe").load(FILE)
SERVICES: dict[str, dict[str, Any]] = COMPOSE["services"]
OURS = SERVICES["ratelimiter"]
BUILT_HERE = {"ratelimiter:local"}


def named_seconds(text: str) -> int:
    return int(re.fullmatch(r"(\d+)s", text)[1])  # type: ignore[index]


def test_compose_takes_it() -> None:
    """By the schema of the compose specification, as the linter carries it."""
    words = [sys.executable, "-m", "check_jsonschema", "--builtin-schema", "vendor.compose-spec", str(FILE)]
    checked = subprocess.run(words, capture_output=True, text=True, check=False)

    assert 0 == checked.returncode, checked.stdout + checked.stderr


def test_its_parts() -> None:
    """An API that is not ours, the limiter, its store, and what shows it."""
    assert ["api", "ratelimiter", "redis", "redis-exporter", "prometheus", "grafana"] == list(SERVICES)
    assert "python" not in SERVICES["api"]["image"]


@pytest.mark.parametrize("name", SERVICES)
def test_images_are_pinned(name: str) -> None:
    """By a tag that names a release; ours is built from this repository."""
    image = SERVICES[name]["image"]

    assert image in BUILT_HERE or re.search(r":v?\d+\.\d+\.\d+(-[a-z0-9.]+)?$", image), image
    if image in BUILT_HERE:
        build = SERVICES[name]["build"]
        assert (FILE.parent / build["context"] / build["dockerfile"]).is_file()


@pytest.mark.parametrize("name", SERVICES)
def test_what_is_mounted_is_there(name: str) -> None:
    """Docker would make an empty folder of a path that is missing; and nothing of ours may be written to."""
    for volume in SERVICES[name].get("volumes", []):
        source, target, mode = volume.split(":")
        assert (FILE.parent / source).exists(), source
        assert target.startswith("/")
        assert "ro" == mode


@pytest.mark.parametrize("name", SERVICES)
def test_nobody_has_more_than_it_needs(name: str) -> None:
    """No capabilities, no way to get any, and no port beyond this machine."""
    service = SERVICES[name]

    assert ["ALL"] == service["cap_drop"]
    assert ["no-new-privileges:true"] == service["security_opt"]
    assert all(port.startswith("127.0.0.1:") for port in service.get("ports", []))
    assert not {"privileged", "network_mode", "pid", "ipc"} & set(service)
    assert service.get("read_only") is True or name == "grafana"


def test_who_is_waited_for_says_when_it_is_ready() -> None:
    """`service_healthy` of a service without a health check would wait for ever. Ours is in the image."""
    for service in SERVICES.values():
        for other, how in service.get("depends_on", {}).items():
            assert other in SERVICES
            assert "healthcheck" in SERVICES[other] or "service_healthy" != how["condition"]
    assert {"api", "redis", "prometheus", "grafana"} == {name for name, one in SERVICES.items() if "healthcheck" in one}
    assert "HEALTHCHECK" in (ROOT / "Dockerfile").read_text()


def test_nobody_gets_around_the_limiter() -> None:
    """The API has no port, and no network that leads out."""
    assert "ports" not in SERVICES["api"]
    assert ["inside"] == SERVICES["api"]["networks"]
    assert COMPOSE["networks"]["inside"]["internal"] is True


def test_the_sidecar_is_told_what_it_understands() -> None:
    """Its command line is one of ours, its variables are ours, the policy that they name is in the mounted folder."""
    flags = flags_of(OURS["command"])
    environ = OURS["environment"]
    (volume,) = OURS["volumes"]
    source, target, _ = volume.split(":")
    policy = FILE.parent / source / Path(environ["RATELIMITER_CONFIG"]).relative_to(target)
    built = loader.build(config=str(policy), environ={"RATELIMITER_STORE": environ["RATELIMITER_STORE"]})

    assert ("proxy", "http://api:8000") == (flags["command"], flags["upstream"])
    assert ["127.0.0.1:8080:8080"] == OURS["ports"]
    assert ("0.0.0.0:8080", "0.0.0.0:9090") == (flags["listen"], flags["admin"])
    assert "redis://redis:6379/0" == built.store
    assert 3 == len(built.rules)


def test_it_is_given_time_to_drain() -> None:
    """Docker kills after the grace period: it is longer than the drain."""
    bounds = ProxySettings()

    assert named_seconds(OURS["stop_grace_period"]) * 1000 > bounds.lame_duck_ms + bounds.grace_ms


def test_prometheus_scrapes_the_sidecar_and_redis() -> None:
    """Under the names and the ports that they have here; and Grafana asks this Prometheus."""
    folder = FILE.parent / SERVICES["prometheus"]["volumes"][0].split(":")[0]
    scraping = YAML(typ="safe").load(folder / "prometheus.yml")
    targets = [name for job in scraping["scrape_configs"] for one in job["static_configs"] for name in one["targets"]]
    provisioning = FILE.parent / "grafana" / "provisioning"
    (source,) = YAML(typ="safe").load(provisioning / "datasources" / "prometheus.yml")["datasources"]
    (provider,) = YAML(typ="safe").load(provisioning / "dashboards" / "ratelimiter.yml")["providers"]
    mounted = [volume.split(":")[1] for volume in SERVICES["grafana"]["volumes"]]

    assert ["ratelimiter:9090", "redis-exporter:9121"] == targets
    assert {"inside"} <= {*SERVICES["prometheus"]["networks"]} & {*SERVICES["redis-exporter"]["networks"]}
    assert "http://prometheus:9090" == source["url"]
    assert f"{provider['options']['path']}/ratelimiter.json" in mounted
    assert SERVICES["grafana"]["environment"]["GF_DASHBOARDS_DEFAULT_HOME_DASHBOARD_PATH"] in mounted


def test_redis_never_forgets_whom_it_counted() -> None:
    """It takes its command line, and its memory policy is one that the docs ask for; nothing is saved."""
    words = SERVICES["redis"]["command"]
    options = {word.lstrip("-").replace("-", "_"): value for word, value in zip(words[1::2], words[2::2], strict=True)}
    with RedisServer(**options) as server, server.client() as client:
        told: Any = client.config_get("maxmemory*")

    assert "redis-server" == words[0]
    assert "noeviction" == told["maxmemory-policy"]
    assert str(256 * 1024 * 1024) == told["maxmemory"]


@pytest.fixture
def api(tmp_path: Path) -> Iterator[int]:
    """The API, as compose starts it."""
    source, _, _ = SERVICES["api"]["volumes"][0].split(":")
    folder = shutil.copytree(FILE.parent / source, tmp_path / "api")
    with nginx(SERVICES["api"]["command"], folder) as port:
        yield port


def answered(port: int, path: str, **headers: str) -> http.client.HTTPResponse | None:
    try:
        with closing(http.client.HTTPConnection("127.0.0.1", port, timeout=5)) as connection:
            connection.request("GET", path, headers={name.replace("_", "-"): text for name, text in headers.items()})
            answer = connection.getresponse()
            answer.body = answer.read()  # type: ignore[attr-defined]
            return answer
    except OSError:
        return None


def test_the_example_is_limited(api: int) -> None:
    """The three parts together on this machine: nginx, the sidecar with the command line and the variables of compose,
    Redis. Who has a key gets ten searches a minute, and 60 requests in all.
    """
    data, admin = free_port(), free_port()
    places = {"http://api:8000": f"http://127.0.0.1:{api}", "0.0.0.0:8080": f"127.0.0.1:{data}"}
    places["0.0.0.0:9090"] = f"127.0.0.1:{admin}"
    words = [places.get(word, word) for word in OURS["command"]]
    with RedisServer() as redis:
        environ = os.environ | {
            "RATELIMITER_CONFIG": str(ROOT / "deploy" / "compose" / "policy" / "policy.yaml"),
            "RATELIMITER_STORE": redis.url,
        }
        with subprocess.Popen([sys.executable, "-m", "ratelimiter", *words], env=environ, cwd=ROOT) as sidecar:
            try:
                wait_until(lambda: answered(data, "/health"), "the sidecar answers")
                searches = [answered(data, "/v1/search", X_API_Key="a") for _ in range(12)]
                items = [answered(data, "/v1/items", X_API_Key="a") for _ in range(52)]
                other = answered(data, "/v1/items", X_API_Key="b")
            finally:
                sidecar.terminate()
            status = sidecar.wait(timeout=30)
        with redis.client() as client:
            keys: Any = client.dbsize()

    assert [200] * 10 + [429] * 2 == [answer.status for answer in searches if answer]
    assert [200] * 50 + [429] * 2 == [answer.status for answer in items if answer]
    assert other is not None
    assert {"id": 1, "name": "anvil"} == json.loads(other.body)["items"][0]  # type: ignore[attr-defined]
    assert "59" == other.headers["x-ratelimit-remaining"]
    assert 0 == status
    assert keys >= 3


def test_the_readme_says_where_to_look() -> None:
    """One command, three URLs."""
    readme = (ROOT / "README.md").read_text()
    command = "docker compose -f deploy/compose.yaml up --build --wait"
    published = [port.split(":")[1] for service in SERVICES.values() for port in service.get("ports", [])]

    assert command in readme
    assert command in FILE.read_text()
    assert shlex.split(command)[3] == str(FILE.relative_to(ROOT))
    assert {"8080", "9090", "3000"} == set(published)
    for port in published:
        assert f"http://localhost:{port}" in readme
