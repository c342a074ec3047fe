"""What happens to the sidecar in a pod, done to it here: its ConfigMap is turned, and the pod ends."""

from __future__ import annotations

import http.client
import http.server
import json
import os
import shutil
import subprocess
import sys
import threading
import time
from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from tests.deploy.test_kubernetes import HOOK, SIDECAR, named
from tests.stores.redis_server import free_port, wait_until

if TYPE_CHECKING:
    from collections.abc import Iterator

pytestmark = pytest.mark.wall_clock  # it waits for real servers or timers

ROOT = Path(__file__).parent.parent.parent
SLOW_S = 7.0  # longer than the lame duck


class Api(http.server.BaseHTTPRequestHandler):
    """An API that takes its time for /slow."""

    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        if self.path == "/slow":
            time.sleep(SLOW_S)
        self.send_response(200)
        self.send_header("Content-Length", "2")
        self.end_headers()
        self.wfile.write(b"ok")

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def api() -> Iterator[int]:
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Api) as server:
        serving = threading.Thread(target=server.serve_forever)
        serving.start()
        yield server.server_address[1]
        server.shutdown()
        serving.join()


class Mounted:
    """A ConfigMap as the kubelet mounts it: the file is a link through `..data`, which is a link to a folder."""

    def __init__(self, folder: Path, text: str) -> None:
        self.folder = folder
        self.edition = 0
        self.publish(text)
        (folder / "policy.yaml").symlink_to(Path("..data") / "policy.yaml")

    @property
    def path(self) -> Path:
        return self.folder / "policy.yaml"

    def publish(self, text: str) -> None:
        """Turn it to a new content, and take the old one away."""
        before = [one for one in self.folder.iterdir() if one.name.startswith("..2")]
        self.edition += 1
        folder = self.folder / f"..2026_11_21_{self.edition}"
        folder.mkdir()
        (folder / "policy.yaml").write_text(text)
        (self.folder / "..data_tmp").symlink_to(folder.name)
        (self.folder / "..data_tmp").rename(self.folder / "..data")
        for old in before:
            shutil.rmtree(old)


class Sidecar:
    """The init container's process, with its arguments, at free ports."""

    def __init__(self, api: int, policy: Path) -> None:
        self.data, self.admin = free_port(), free_port()
        places = {
            "http://127.0.0.1:8000": f"http://127.0.0.1:{api}",
            "0.0.0.0:8080": f"127.0.0.1:{self.data}",
            "0.0.0.0:9090": f"127.0.0.1:{self.admin}",
        }
        words = [places.get(word, word) for word in SIDECAR["args"]]
        environ = os.environ | {"RATELIMITER_CONFIG": str(policy)}
        self.process = subprocess.Popen([sys.executable, "-m", "ratelimiter", *words], env=environ, cwd=ROOT)
        wait_until(self.ready, "the sidecar is ready")

    def ready(self) -> bool:
        try:
            return self.get(SIDECAR["startupProbe"]["httpGet"]["path"], port=self.admin).status == 200
        except OSError:
            return False

    def get(self, path: str, *, port: int | None = None, key: str = "a") -> http.client.HTTPResponse:
        with closing(http.client.HTTPConnection("127.0.0.1", port or self.data, timeout=20)) as connection:
            connection.request("GET", path, headers={"X-API-Key": key})
            answer = connection.getresponse()
            answer.body = answer.read()  # type: ignore[attr-defined]
            return answer

    def hook(self) -> list[str]:
        """The preStop hook, which takes us for process 1."""
        return [sys.executable, "-ISc", HOOK.replace("os.kill(1,", f"os.kill({self.process.pid},")]

    def hash(self) -> str:
        told: dict[str, Any] = json.loads(self.get("/policy", port=self.admin).body)  # type: ignore[attr-defined]
        return str(told["hash"])


@pytest.fixture
def mounted(tmp_path: Path) -> Mounted:
    return Mounted(tmp_path, named("ConfigMap", "ratelimiter-policy")["data"]["policy.yaml"])


@pytest.fixture
def sidecar(api: int, mounted: Mounted) -> Iterator[Sidecar]:
    sidecar = Sidecar(api, mounted.path)
    yield sidecar
    sidecar.process.kill()
    sidecar.process.wait()


def test_a_configmap_that_is_turned_is_in_force(sidecar: Sidecar, mounted: Mounted) -> None:
    """Without a restart, and whoever has spent the old limit has spent as much of the new one. A bad edition changes
    nothing and says so, and the next good one is in force.
    """
    text = mounted.path.read_text()
    spent = [sidecar.get("/").status for _ in range(61)]
    first = sidecar.hash()
    mounted.publish(text.replace("limit: 60/minute", "limit: 65/minute"))
    wait_until(lambda: sidecar.hash() != first, "the new policy is in force")
    more = [sidecar.get("/").status for _ in range(7)]
    second = sidecar.hash()
    mounted.publish(text.replace("limit: 60/minute", "limit: 10 parsecs"))
    wait_until(lambda: b"last_reload_successful 0" in metrics(sidecar), "the bad one is noticed")
    kept = sidecar.hash()
    mounted.publish(text)
    wait_until(lambda: sidecar.hash() == first, "the old one is back")

    assert [200] * 60 + [429] == spent
    assert [200] * 5 + [429] * 2 == more
    assert second == kept
    assert b"last_reload_successful 1" in metrics(sidecar)
    assert [429, 200] == [sidecar.get("/", key=key).status for key in ("a", "b")]


def metrics(sidecar: Sidecar) -> bytes:
    body: bytes = sidecar.get("/metrics", port=sidecar.admin).body  # type: ignore[attr-defined]
    return body


def test_a_pod_ends_without_a_failed_request(sidecar: Sidecar) -> None:
    """As the preStop hooks have it: the sidecar is told to stop first, while the API goes on. Not ready at once, it
    answers whoever comes in its lame duck, tells them to go, and finishes what is under way; then it ends with 0.
    """
    slow: list[int] = []
    asking = threading.Thread(target=lambda: slow.append(sidecar.get("/slow").status))
    asking.start()
    wait_until(lambda: b"ratelimiter_requests_total" in metrics(sidecar), "it counts")
    time.sleep(0.2)
    with closing(http.client.HTTPConnection("127.0.0.1", sidecar.data, timeout=5)) as kept:
        kept.request("GET", "/")
        before = kept.getresponse()
        before.read()
        hook = subprocess.Popen(sidecar.hook())
        begun_s = time.monotonic()
        wait_until(lambda: not sidecar.ready(), "it is not ready any more", 3)
        kept.request("GET", "/")
        told = kept.getresponse()
        told.read()
    late = []
    while time.monotonic() - begun_s < 4:  # what a proxy sends that has not heard of it yet
        late.append(sidecar.get("/", key="late").status)
        time.sleep(0.1)
    asking.join()
    status = sidecar.process.wait(timeout=25)
    outlasted = hook.poll() is None  # in the container it ends with process 1
    hook.kill()
    hook.wait()

    assert 200 == before.status == told.status
    assert "close" == told.headers["connection"]
    assert {200} == set(late)
    assert [200] == slow
    assert 0 == status
    assert outlasted, "the kubelet would have sent a second signal, which cuts off what is under way"
