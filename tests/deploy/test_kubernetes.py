"""The manifests: valid to the letter, in tune with what the sidecar does, and started where that can be done."""

from __future__ import annotations

import base64
import os
import random
import re
import shutil
import subprocess
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Any

import kubernetes_validate
import pytest
import redis
from ruamel.yaml import YAML

from ratelimiter.config import loader
from ratelimiter.proxy.settings import ProxySettings
from ratelimiter.stores.factory import open_store
from tests.deploy.cli_words import flags_of
from tests.deploy.kustomize import render
from tests.deploy.nginx_server import nginx, status
from tests.deploy.test_compose import SERVICES
from tests.stores.redis.test_store import closing, hit, until_admitted
from tests.stores.redis_server import wait_until

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

ROOT = Path(__file__).parent.parent.parent
FOLDER = ROOT / "deploy" / "kubernetes"
BASE = render(FOLDER / "base")
OVERLAY = render(FOLDER / "overlays" / "production")
EXTERNAL = render(FOLDER / "overlays" / "external")
OF_OPERATORS = {"ServiceMonitor", "PrometheusRule"}  # kinds that Kubernetes itself has no schema of
SETS = {"Deployment", "StatefulSet"}
VERSIONS = ("1.30", "1.33", "1.37")  # the oldest that has all we use switched on; where sidecars are stable; the newest


def named(kind: str, name: str, manifests: list[dict[str, Any]] = OVERLAY) -> dict[str, Any]:
    (found,) = (one for one in manifests if (one["kind"], one["metadata"]["name"]) == (kind, name))
    return found


POD: dict[str, Any] = named("Deployment", "api")["spec"]["template"]["spec"]
(SIDECAR,) = POD["initContainers"]
(API,) = POD["containers"]
HOOK: str = SIDECAR["lifecycle"]["preStop"]["exec"]["command"][-1]
STORE = named("Secret", "ratelimiter-store")


def ids(manifests: list[dict[str, Any]]) -> list[Any]:
    return [pytest.param(one, id=f"{one['kind']}-{one['metadata']['name']}") for one in manifests]


@pytest.mark.parametrize("version", VERSIONS)
@pytest.mark.parametrize("manifest", ids([one for one in (*OVERLAY, *EXTERNAL) if one["kind"] not in OF_OPERATORS]))
def test_kubernetes_takes_it(manifest: dict[str, Any], version: str) -> None:
    """Strictly: a misspelt field, which a cluster would drop, is an error."""
    kubernetes_validate.validate(manifest, version, strict=True)


def test_a_misspelt_field_is_an_error() -> None:
    """What the test above relies on."""
    manifest = named("Deployment", "api", render(FOLDER / "base"))
    manifest["spec"]["template"]["spec"]["initContainers"][0]["restartPolicyy"] = "Always"
    with pytest.raises(kubernetes_validate.ValidationError):
        kubernetes_validate.validate(manifest, VERSIONS[-1], strict=True)


@pytest.mark.parametrize(
    "folder", ["base", "redis", "redis-exporter", "monitoring", "overlays/production", "overlays/external"]
)
@pytest.mark.skipif(shutil.which("kubectl") is None, reason="kubectl is not on this machine; ours renders as it does")
def test_our_rendering_is_kustomize_s(folder: str) -> None:
    """The same objects with the same content, but for the hashes in the names of generated ones."""
    text = subprocess.run(
        ["kubectl", "kustomize", FOLDER / folder],  # noqa: S607
        capture_output=True,
        text=True,
        check=True,
    ).stdout
    text = re.sub(r"((?:api-files|ratelimiter-store|ratelimiter-redis))-[a-z0-9]{10}\b", r"\1", text)
    theirs = list(YAML(typ="safe").load_all(text))
    for one in theirs:
        if one["kind"] == "Secret":  # kubectl folds what is long
            one["data"] = {name: value.replace("\n", "") for name, value in one["data"].items()}

    def place(manifest: Mapping[str, Any]) -> tuple[str, str]:
        return manifest["kind"], manifest["metadata"]["name"]

    assert sorted(theirs, key=place) == sorted(render(FOLDER / folder), key=place)


def test_the_limiter_is_a_native_sidecar() -> None:
    """Started before the API and stopped after it; its probes ask the admin listener, and none asks the store."""
    probes = {name: SIDECAR[f"{name}Probe"]["httpGet"] for name in ("startup", "readiness", "liveness")}

    assert "Always" == SIDECAR["restartPolicy"]
    assert {"path": "/readyz", "port": "admin"} == probes["startup"] == probes["readiness"]
    assert {"path": "/healthz", "port": "admin"} == probes["liveness"]


def test_it_is_told_what_it_understands() -> None:
    """Its arguments are a command line of ours, its ports are those that it names, and its variables are ours."""
    flags = flags_of(SIDECAR["args"])
    ports = {port["name"]: port["containerPort"] for port in SIDECAR["ports"]}
    environ = {one["name"] for one in SIDECAR["env"]}

    assert ("proxy", "http://127.0.0.1:8000") == (flags["command"], flags["upstream"])
    assert f"0.0.0.0:{ports['http']}" == flags["listen"]
    assert f"0.0.0.0:{ports['admin']}" == flags["admin"]
    assert {"RATELIMITER_CONFIG", "RATELIMITER_STORE"} == environ
    assert "listen 127.0.0.1:8000;" in named("ConfigMap", "api-files")["data"]["nginx.conf"]


def test_the_policy_is_one(tmp_path: Path) -> None:
    """It is mounted as a folder where the variable looks for it, and an outage admits each limit once over all pods."""
    mounted = {one["name"]: one for one in SIDECAR["volumeMounts"]}["policy"]
    environ = {one["name"]: one.get("value") for one in SIDECAR["env"]}
    text = named("ConfigMap", "ratelimiter-policy")["data"]["policy.yaml"]
    (tmp_path / "policy.yaml").write_text(text)
    url = base64.b64decode(STORE["data"]["url"]).decode()
    policy = loader.build(config=str(tmp_path / "policy.yaml"), environ={"RATELIMITER_STORE": url})

    assert f"{mounted['mountPath']}/policy.yaml" == environ["RATELIMITER_CONFIG"]
    assert "subPath" not in mounted
    assert url == policy.store
    assert named("Deployment", "api")["spec"]["replicas"] * policy.local_share <= 1


def test_a_changed_policy_rolls_nothing_out() -> None:
    """Its ConfigMap keeps its name: pods load it as they are, with all they have counted."""
    (generated,) = (
        one
        for one in YAML(typ="safe").load(FOLDER / "base" / "kustomization.yaml")["configMapGenerator"]
        if one["name"] == "ratelimiter-policy"
    )

    assert generated["options"]["disableNameSuffixHash"] is True


def test_the_drain_is_in_tune() -> None:
    """The API goes on until the limiter takes nobody new; then both have the time that they need before they are
    killed; and the pod is out of service before the lame duck's time is over. The limiter's hook lasts longer than its
    drain, as a second signal, which the kubelet sends when the API has gone, would end the drain at once.
    """
    bounds = ProxySettings()
    sleep_ms = API["lifecycle"]["preStop"]["sleep"]["seconds"] * 1000
    readiness = SIDECAR["readinessProbe"]

    assert sleep_ms > bounds.lame_duck_ms
    assert POD["terminationGracePeriodSeconds"] * 1000 >= sleep_ms + bounds.lame_duck_ms + bounds.grace_ms
    assert readiness["periodSeconds"] * readiness["failureThreshold"] * 1000 < bounds.lame_duck_ms
    kill, sleep = re.findall(r"(os\.kill\(1, 15\)); time\.sleep\((\d+)\)", HOOK)[0]
    assert kill
    assert bounds.lame_duck_ms + bounds.grace_ms < int(sleep) * 1000 < POD["terminationGracePeriodSeconds"] * 1000
    assert not POD.get("shareProcessNamespace"), "the limiter would not be process 1"


def containers() -> list[Any]:
    pods = [
        named("Deployment", "api"),
        named("StatefulSet", "ratelimiter-redis"),
        named("Deployment", "ratelimiter-redis-exporter", EXTERNAL),
    ]
    specs = [pod["spec"]["template"]["spec"] for pod in pods]
    return [
        pytest.param(one, spec, id=one["name"])
        for spec in specs
        for one in (*spec.get("initContainers", []), *spec["containers"])
    ]


@pytest.mark.parametrize(("container", "pod"), containers())
def test_every_container_is_restricted(container: dict[str, Any], pod: dict[str, Any]) -> None:
    """By the Pod Security Standard of that name, and with a root file system that cannot be written; by numbers, with
    memory bounded, and with no token for the cluster.
    """
    context = pod["securityContext"] | container["securityContext"]

    assert context["runAsNonRoot"] is True
    assert 0 < context["runAsUser"]
    assert {"type": "RuntimeDefault"} == context["seccompProfile"]
    assert context["readOnlyRootFilesystem"] is True
    assert context["allowPrivilegeEscalation"] is False
    assert {"drop": ["ALL"]} == context["capabilities"]
    assert {"cpu", "memory"} == set(container["resources"]["requests"])
    assert {"memory"} == set(container["resources"]["limits"])
    assert pod["automountServiceAccountToken"] is False
    assert re.search(r":v?\d+\.\d+\.\d+", container["image"])


def test_everything_that_is_named_is_there() -> None:
    """ConfigMaps, Secrets, ports and labels fit together; what a selector selects exists."""
    kinds = {(one["kind"], one["metadata"]["name"]) for one in OVERLAY}
    labels = [one["spec"]["template"]["metadata"]["labels"] for one in OVERLAY if "template" in one.get("spec", {})]
    for pod in (POD, named("StatefulSet", "ratelimiter-redis")["spec"]["template"]["spec"]):
        for volume in pod["volumes"]:
            assert "configMap" not in volume or ("ConfigMap", volume["configMap"]["name"]) in kinds
        for container in (*pod.get("initContainers", []), *pod["containers"]):
            assert {mount["name"] for mount in container.get("volumeMounts", [])} <= {
                one["name"] for one in pod["volumes"]
            }
            for variable in container.get("env", []):
                if "secretKeyRef" in variable.get("valueFrom", {}):
                    wanted = variable["valueFrom"]["secretKeyRef"]
                    assert wanted["key"] in named("Secret", wanted["name"])["data"]
    for service in (one for one in OVERLAY if one["kind"] == "Service"):
        assert any(service["spec"]["selector"].items() <= given.items() for given in labels)
    for one in OVERLAY:
        spec = one.get("spec", {})
        selector = spec.get("podSelector") or (spec.get("selector") if one["kind"] == "PodDisruptionBudget" else None)
        if selector:
            assert any(selector["matchLabels"].items() <= given.items() for given in labels), one["metadata"]["name"]


def test_prometheus_finds_every_pod() -> None:
    """The ServiceMonitor's labels are the Service's, its port is one of it, and the job has the name that the alerts
    look for; the network lets it in.
    """
    monitor, service = named("ServiceMonitor", "ratelimiter"), named("Service", "ratelimiter-admin")
    (endpoint,) = monitor["spec"]["endpoints"]
    (allowed,) = (one for one in named("NetworkPolicy", "api")["spec"]["ingress"] if "from" in one)

    assert "monitoring.coreos.com/v1" == monitor["apiVersion"]
    assert {"jobLabel", "selector", "endpoints"} == set(monitor["spec"])
    assert {"port", "path", "interval", "scrapeTimeout"} == set(endpoint)
    assert monitor["spec"]["selector"]["matchLabels"].items() <= service["metadata"]["labels"].items()
    assert endpoint["port"] in {port["name"] for port in service["spec"]["ports"]}
    assert "ratelimiter" in service["metadata"]["labels"][monitor["spec"]["jobLabel"]]
    assert service["spec"]["publishNotReadyAddresses"] is True
    assert [9090] == [port["port"] for port in allowed["ports"]]


@pytest.mark.parametrize(
    ("manifests", "name"),
    [(OVERLAY, "ratelimiter-redis"), (EXTERNAL, "ratelimiter-redis-exporter")],
    ids=["ours", "external"],
)
def test_prometheus_finds_the_exporter(manifests: list[dict[str, Any]], name: str) -> None:
    """Beside each Redis of ours, and of a Redis that is not: its job is one that the alerts on Redis ask for and those
    on limiters do not, its port is open to Prometheus, and it is pinned like the one of compose.
    """
    monitor, service = named("ServiceMonitor", "ratelimiter-redis", manifests), named("Service", name, manifests)
    (pod,) = (
        one["spec"]["template"]["spec"] for one in manifests if one["kind"] in SETS and name == one["metadata"]["name"]
    )
    (exporter,) = (one for one in pod["containers"] if one["name"] == "exporter")
    (port,) = (one for one in service["spec"]["ports"] if one["name"] == monitor["spec"]["endpoints"][0]["port"])
    allowed = [
        one for one in named("NetworkPolicy", name, manifests)["spec"]["ingress"] if 9121 == one["ports"][0]["port"]
    ]
    job = service["metadata"]["labels"][monitor["spec"]["jobLabel"]]

    assert monitor["spec"]["selector"]["matchLabels"].items() <= service["metadata"]["labels"].items()
    assert {"name": port["targetPort"], "containerPort": 9121} == exporter["ports"][0]
    assert [{"kubernetes.io/metadata.name": "monitoring"}] == [
        one["from"][0]["namespaceSelector"]["matchLabels"] for one in allowed
    ]
    assert "redis" in job
    assert "ratelimiter" not in job
    assert SERVICES["redis-exporter"]["image"] == exporter["image"]


def test_an_external_redis_is_watched_with_credentials() -> None:
    """The exporter's address, user and password come from a Secret, under the keys that the command beside it makes;
    it is let out to the ports that limiters are.
    """
    (exporter,) = named("Deployment", "ratelimiter-redis-exporter", EXTERNAL)["spec"]["template"]["spec"]["containers"]
    wanted = {one["name"]: one["valueFrom"]["secretKeyRef"] for one in exporter["env"] if "valueFrom" in one}
    told = (FOLDER / "redis-exporter" / "kustomization.yaml").read_text()
    out = {
        port["port"]
        for rule in named("NetworkPolicy", "ratelimiter-redis-exporter", EXTERNAL)["spec"]["egress"]
        for port in rule["ports"]
    }

    assert {"REDIS_ADDR", "REDIS_USER", "REDIS_PASSWORD"} == set(wanted)
    for one in wanted.values():
        assert f"generic {one['name']} " in told
        assert f"--from-literal={one['key']}=" in told
    assert {6379, 6380, 53} == out


def test_only_limiters_reach_redis() -> None:
    """Its network policy names them, and they have the label; theirs lets them out to the ports that the URL names."""
    ingress, watching = named("NetworkPolicy", "ratelimiter-redis")["spec"]["ingress"]
    allowed = [one["podSelector"]["matchLabels"] for one in ingress["from"]]
    labels = named("Deployment", "api")["spec"]["template"]["metadata"]["labels"]
    out = {port["port"] for rule in named("NetworkPolicy", "api")["spec"]["egress"] for port in rule["ports"]}

    assert any(one.items() <= labels.items() for one in allowed)
    assert {6379, 26379, 53} <= out
    assert [9121] == [port["port"] for port in watching["ports"]]


def test_the_example_api_runs(tmp_path: Path) -> None:
    """Its configuration is one, and it has what it serves."""
    for name, text in named("ConfigMap", "api-files")["data"].items():
        (tmp_path / name).write_text(text)
    with nginx(API["args"], tmp_path) as port:
        seen = [status(port, path) for path in ("/v1/items", "/health", "/etc/passwd")]

    assert [200, 200, 404] == seen


# --- Redis by Sentinel, started as a pod would start it


class Members:
    """Three members on loopback addresses of their own, so that ports can be those of the manifests."""

    def __init__(self, folder: Path) -> None:
        missing = [name for name in ("redis-server", "redis-cli") if shutil.which(name) is None]
        assert not missing, f"{', '.join(missing)} missing: apt-get install redis-server redis-tools"
        self.folder = folder
        octets = random.sample(range(2, 250), 2)
        self.names = [f"127.{octets[0]}.{octets[1]}.{number}" for number in (1, 2, 3)]
        self.running: dict[tuple[int, str], subprocess.Popen[bytes]] = {}

    def start(self, index: int, stack: ExitStack) -> None:
        for half in ("redis", "sentinel"):
            folder = self.folder / f"{half}-{index}"
            folder.mkdir(exist_ok=True)
            environ = os.environ | {
                "MEMBERS": " ".join(self.names),
                "ME": self.names[index],
                "BIND": self.names[index],
                "FOLDER": str(folder),
                "MAXMEMORY": "32mb",
            }
            with (folder / "log").open("ab") as log:
                words = ["sh", str(FOLDER / "redis" / "start.sh"), half]
                process = subprocess.Popen(words, env=environ, stdout=log, stderr=log)
            self.running[index, half] = process
            stack.callback(process.wait)
            stack.callback(process.kill)

    def kill(self, index: int) -> None:
        for half in ("sentinel", "redis"):
            self.running[index, half].kill()
            self.running[index, half].wait()

    def role(self, index: int) -> str:
        try:
            with redis.Redis(host=self.names[index], protocol=2, socket_timeout=2) as client:
                told: Any = client.info("replication")
                return f"{told['role']} {told.get('master_host', '')} {told.get('master_link_status', '')}".strip()
        except redis.exceptions.RedisError:
            return "down"

    def seen(self, index: int) -> tuple[str, int, int]:
        """What the Sentinel of a member knows: the master, other Sentinels, replicas."""
        try:
            with redis.Redis(host=self.names[index], port=26379, protocol=2, socket_timeout=2) as client:
                told: Any = client.sentinel_master("ratelimiter")
                return told["ip"], int(told["num-other-sentinels"]), int(told["num-slaves"])
        except redis.exceptions.RedisError:
            return "", 0, 0


@pytest.fixture
def members(tmp_path: Path) -> Iterator[tuple[Members, ExitStack]]:
    with ExitStack() as stack:
        yield Members(tmp_path), stack


async def test_redis_starts_and_fails_over(members: tuple[Members, ExitStack]) -> None:
    """The script of the StatefulSet makes one master and two replicas; the URL in the Secret reaches it; when it dies
    another one takes over with what was counted, and when it comes back it follows, and has made nobody forget.
    """
    three, stack = members
    first, *others = three.names
    three.start(0, stack)
    wait_until(lambda: "master" == three.role(0), "the first member makes itself the master")
    for index in (1, 2):
        three.start(index, stack)

        def follows(index: int = index) -> bool:
            return f"slave {first} up" == three.role(index)

        wait_until(follows, "the next one follows", 20)
    wait_until(lambda: all((first, 2, 2) == three.seen(i) for i in range(3)), "the Sentinels meet", 30)

    url = base64.b64decode(STORE["data"]["url"]).decode()
    for index, name in enumerate(three.names):
        url = url.replace(f"ratelimiter-redis-{index}.ratelimiter-redis", name)
    async with closing(open_store(url, timeout_ms=1000)) as store:
        await until_admitted(store, 10)
        before = [await store.charge([hit(limit=1000)]) for _ in range(5)][-1].tallies[0].used
        wait_until(lambda: all("up" in three.role(i) for i in (1, 2)), "the replicas follow")
        three.kill(0)
        # At once, as the kubelet would: before the Sentinels have noticed that it was away.
        three.start(0, stack)
        wait_until(lambda: any("master" == three.role(i) for i in (1, 2)), "another one takes over", 50)
        wait_until(lambda: three.role(0).startswith("slave") and three.role(0).endswith("up"), "it follows", 40)
        await until_admitted(store, 10)
        after = (await store.charge([hit(limit=1000)])).tallies[0].used

    assert after > before
    wait_until(lambda: three.seen(1)[0] in others, "the other Sentinels hear of it")


def test_the_members_of_the_manifest_are_its_pods() -> None:
    """The names that the script is given are those that the StatefulSet and its Service make; so are the Secret's."""
    stateful = named("StatefulSet", "ratelimiter-redis")
    service = stateful["spec"]["serviceName"]
    pods = [f"ratelimiter-redis-{index}.{service}" for index in range(stateful["spec"]["replicas"])]
    url = base64.b64decode(STORE["data"]["url"]).decode()
    for container in stateful["spec"]["template"]["spec"]["containers"][:2]:
        environ = {one["name"]: one.get("value") for one in container["env"]}
        assert " ".join(pods) == environ["MEMBERS"]
        assert f"$(POD).{service}" == environ["ME"]

    assert ("Service", service) in {(one["kind"], one["metadata"]["name"]) for one in OVERLAY}
    assert f"redis+sentinel://{','.join(f'{pod}:26379' for pod in pods)}/ratelimiter/0" == url
