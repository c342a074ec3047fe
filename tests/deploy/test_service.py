"""Goal: the programs that it is for take what `deploy/` has for the decision service. Method: their own validators."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import kubernetes_validate
import pytest
from ruamel.yaml import YAML

from ratelimiter.config import loader
from tests.deploy.cli_words import flags_of
from tests.deploy.kustomize import render
from tests.service.serving import ENVOY
from tests.service.test_same_everywhere import beside_python

ROOT = Path(__file__).parent.parent.parent
DEPLOY = ROOT / "deploy"
SERVICE = render(DEPLOY / "kubernetes" / "service")
CHART = DEPLOY / "helm" / "ratelimiter"
HELM = shutil.which("helm") or str(Path(sys.executable).parent / "helm")
VERSIONS = ("1.30", "1.37")


def named(kind: str) -> dict[str, Any]:
    (found,) = (one for one in SERVICE if one["kind"] == kind)
    return found


POD = named("Deployment")["spec"]["template"]["spec"]
(CONTAINER,) = POD["containers"]


@pytest.mark.parametrize("version", VERSIONS)
@pytest.mark.parametrize("manifest", [pytest.param(one, id=one["kind"]) for one in SERVICE])
def test_kubernetes_takes_it(manifest: dict[str, Any], version: str) -> None:
    """Strictly: a misspelt field, which a cluster would drop, is an error."""
    kubernetes_validate.validate(manifest, version, strict=True)


def test_it_is_told_what_it_understands(tmp_path: Path) -> None:
    """Arguments are a command line of ours, ports are those that are named, and the policy is one."""
    flags = flags_of(CONTAINER["args"])
    ports = {port["name"]: port["containerPort"] for port in CONTAINER["ports"]}

    assert "serve" == flags["command"]
    assert ["grpc", "http", "admin"] == [name for name in ports if flags[name] == f"0.0.0.0:{ports[name]}"]
    assert CONTAINER["readinessProbe"]["grpc"]["port"] == ports["grpc"]
    (tmp_path / "policy.yaml").write_text(named("ConfigMap")["data"]["policy.yaml"])
    policy = loader.build(config=str(tmp_path / "policy.yaml"), environ={"RATELIMITER_STORE": "redis://redis:6379/0"})
    assert named("Deployment")["spec"]["replicas"] * policy.local_share <= 1


def test_the_drain_fits_into_the_grace() -> None:
    """The kubelet waits longer than the process takes, with the settings of the policy."""
    from ratelimiter.proxy.lifecycle import stop_within_s
    from ratelimiter.proxy.settings import ProxySettings

    assert stop_within_s(ProxySettings()) < POD["terminationGracePeriodSeconds"]


@pytest.mark.parametrize("file", sorted((DEPLOY / "envoy").glob("*.yaml")), ids=lambda file: file.name)
def test_envoy_takes_it(file: Path) -> None:
    """`envoy --mode validate`."""
    done = subprocess.run([ENVOY, "--mode", "validate", "-c", file], capture_output=True, text=True, check=False)

    assert 0 == done.returncode, done.stderr


def test_the_filter_of_istio_is_one_that_envoy_takes(tmp_path: Path) -> None:
    """The filter and the actions of the EnvoyFilter, put where Istio puts them, are a configuration of Envoy."""
    patches = YAML(typ="safe").load(DEPLOY / "istio" / "envoyfilter.yaml")["spec"]["configPatches"]
    by_place = {patch["applyTo"]: patch["patch"]["value"] for patch in patches}
    config = YAML(typ="safe").load(DEPLOY / "envoy" / "rate-limit.yaml")
    manager = config["static_resources"]["listeners"][0]["filter_chains"][0]["filters"][0]["typed_config"]
    manager["http_filters"][0] = by_place["HTTP_FILTER"]
    manager["route_config"]["virtual_hosts"][0] |= by_place["VIRTUAL_HOST"]
    for cluster in config["static_resources"]["clusters"]:
        if cluster["name"] == "ratelimiter":
            service = by_place["HTTP_FILTER"]["typed_config"]["rate_limit_service"]["grpc_service"]
            cluster["name"] = service["envoy_grpc"]["cluster_name"]
    with (tmp_path / "envoy.yaml").open("w") as out:
        YAML().dump(config, out)
    command: list[str | Path] = [ENVOY, "--mode", "validate", "-c", tmp_path / "envoy.yaml"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)

    assert 0 == done.returncode, done.stderr


@pytest.mark.parametrize("file", ["ratelimiter.conf", "one-question.conf"])
def test_nginx_takes_it(file: str, tmp_path: Path) -> None:
    """`nginx -t`."""
    config = f"pid {tmp_path}/pid; error_log stderr; events {{}}\nhttp {{ include {DEPLOY}/nginx/{file}; }}\n"
    (tmp_path / "nginx.conf").write_text(config)
    program = shutil.which("nginx") or "/usr/sbin/nginx"
    command = [program, "-t", "-p", str(tmp_path), "-c", str(tmp_path / "nginx.conf")]
    done = subprocess.run(command, capture_output=True, text=True, check=False)

    assert 0 == done.returncode, done.stderr


def test_caddy_and_haproxy_take_it() -> None:
    """`caddy validate` and `haproxy -c`."""
    caddy = [beside_python("caddy"), "validate", "--config", str(DEPLOY / "caddy" / "Caddyfile")]
    haproxy = [shutil.which("haproxy") or "/usr/sbin/haproxy", "-c", "-f", "haproxy.cfg"]
    for command, folder in ((caddy, DEPLOY), (haproxy, DEPLOY / "haproxy")):
        done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=folder)
        assert 0 == done.returncode, done.stdout + done.stderr


@pytest.mark.parametrize("file", ["istio/authorizationpolicy.yaml", "envoy-gateway/securitypolicy.yaml"])
def test_the_service_is_named_as_it_is(file: str) -> None:
    """Files for operators that have no validator here name the Service and the port that the manifests have."""
    text = (DEPLOY / file).read_text()
    name = named("Service")["metadata"]["name"]

    assert name in text
    assert re.search(r"port: 8081\b", text)
    assert [one["kind"] for one in YAML(typ="safe").load_all(text)]


@pytest.mark.skipif(not Path(HELM).exists(), reason="helm is a Go program; tests/run installs it where there is Go")
@pytest.mark.parametrize(
    "values",
    [
        [],
        ["mode=proxy", "proxy.upstream=http://api:8000"],
        ["autoscaling.enabled=false", "networkPolicy.enabled=false", "store.url=redis://redis:6379/0", "workers=2"],
    ],
    ids=["serve", "proxy", "plain"],
)
def test_the_chart_renders_what_kubernetes_takes(values: list[str], tmp_path: Path) -> None:
    """Linted strictly and rendered, each manifest is valid, and the container is told what it understands."""
    flags = [word for value in values for word in ("--set", value)]
    subprocess.run([HELM, "lint", "--strict", CHART, *flags], check=True, capture_output=True)
    done = subprocess.run(
        [HELM, "template", "r", CHART, "--kube-version", "1.33.0", *flags], capture_output=True, text=True, check=True
    )
    manifests = [one for one in YAML(typ="safe").load_all(done.stdout) if one]

    for manifest in manifests:
        for version in VERSIONS:
            kubernetes_validate.validate(manifest, version, strict=True)
    (deployment,) = (one for one in manifests if one["kind"] == "Deployment")
    (container,) = deployment["spec"]["template"]["spec"]["containers"]
    words = [word for argument in container["args"] for word in argument.split("=", 1)]
    assert flags_of(words)["command"] == ("proxy" if "mode=proxy" in values else "serve")
    (config,) = (one for one in manifests if one["kind"] == "ConfigMap")
    (tmp_path / "policy.yaml").write_text(config["data"]["policy.yaml"])
    assert loader.load(tmp_path / "policy.yaml").rules
