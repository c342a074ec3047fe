"""Goal: what an operator orders holds in every process within a second, and is told plainly when it cannot be done.
Method: a sidecar and an application of their own processes on a real Redis, ordered about by the real commands and over
HTTP.
"""

from __future__ import annotations

import http.client
import json
import os
import re
import signal
import subprocess
import sys
import time
from contextlib import ExitStack, contextmanager
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from tests.sidecar.test_app import upstream
from tests.stores.redis_server import RedisServer, free_port, wait_until

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

pytestmark = pytest.mark.wall_clock  # it waits for real servers or timers

ROOT = Path(__file__).parent.parent
TOKEN = "0123456789abcdef"  # noqa: S105
WITHIN_S = 1.0
POLICY = """\
store: {url}
dialect: intrace
principal: [header:X-API-Key, client]
decision_timeout: 1s
plan: {{default: basic}}
rules:
  - name: per-minute
    limit: {{basic: 3/minute, pro: 9/minute}}
  - name: credits
    match: {{path: /paid}}
    limit: 3/hour
"""
APP = """
import sys, uvicorn
from ratelimiter import RateLimitMiddleware
async def app(scope, receive, send):
    await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"0")]})
    await send({"type": "http.response.body", "body": b""})
uvicorn.run(RateLimitMiddleware(app, config=sys.argv[1]), port=int(sys.argv[2]), log_level="warning")
"""


class Place:
    """A process that limits requests."""

    def __init__(self, address: str) -> None:
        self.address = address

    def ask(self, key: str = "alice", path: str = "/", **headers: str) -> tuple[int, dict[str, str]]:
        connection = http.client.HTTPConnection(self.address, timeout=10)
        try:
            connection.request("GET", path, headers={"X-API-Key": key} | headers)
            response = connection.getresponse()
            response.read()
            return response.status, {name.lower(): value for name, value in response.getheaders()}
        except OSError:
            return 0, {}
        finally:
            connection.close()

    def status(self, key: str = "alice") -> int:
        return self.ask(key)[0]

    def says(self, status: int, key: str = "alice") -> bool:
        return self.status(key) == status


class Scene:
    """A sidecar with an operator listener, an application, and the policy that both obey."""

    def __init__(self, stack: ExitStack, folder: Path) -> None:
        self.redis = stack.enter_context(RedisServer())
        self.policy = folder / "policy.yaml"
        self.policy.write_text(POLICY.format(url=self.redis.url))
        (folder / "tokens").write_text(f"ann:{TOKEN}\n")
        behind = stack.enter_context(upstream())
        flags = ["--upstream", behind, "--config", str(self.policy), "--listen", "127.0.0.1:0", "--admin", "none"]
        flags += ["--operator", "127.0.0.1:0", "--operator-token-file", str(folder / "tokens")]
        self.process = stack.enter_context(process("-m", "ratelimiter", "proxy", *flags))
        assert self.process.stdout is not None
        places = re.findall(r"http://(127\.0\.0\.1:\d+)", self.process.stdout.readline())
        self.sidecar, self.listener = Place(places[0]), places[-1]
        port = free_port()
        stack.enter_context(process("-c", APP, str(self.policy), str(port)))
        self.app = Place(f"127.0.0.1:{port}")
        for place in self.places:
            wait_until(partial(place.says, 200, "nobody"), "it is there")

    @property
    def places(self) -> tuple[Place, Place]:
        return self.sidecar, self.app

    def command(self, *words: str, given: str = "") -> subprocess.CompletedProcess[str]:
        flags = [*words, "--config", str(self.policy)]
        return subprocess.run(
            [sys.executable, "-m", "ratelimiter", *flags],
            input=given,
            check=False,
            capture_output=True,
            text=True,
            cwd=ROOT,
        )

    def said(self, *words: str, given: str = "") -> str:
        done = self.command(*words, given=given)
        assert 0 == done.returncode, done.stderr
        return done.stdout

    def post(self, path: str, body: dict[str, Any], **headers: str) -> tuple[int, dict[str, Any]]:
        connection = http.client.HTTPConnection(self.listener, timeout=10)
        try:
            sent = {"authorization": f"Bearer {TOKEN}"} | headers
            connection.request("POST" if body else "GET", path, json.dumps(body) if body else None, sent)
            response = connection.getresponse()
            text = response.read()
            return response.status, json.loads(text) if text.startswith(b"{") else {}
        finally:
            connection.close()

    def everywhere(self, condition: Callable[[Place], bool]) -> None:
        """Within a second of now *condition* holds of both processes."""
        begun_s = time.monotonic()
        for place in self.places:
            wait_until(
                partial(condition, place),
                "it is applied",
                max(0.01, begun_s + WITHIN_S - time.monotonic()),
            )


@contextmanager
def process(*words: str) -> Iterator[subprocess.Popen[str]]:
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    started = subprocess.Popen(
        [sys.executable, *words], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment, cwd=ROOT
    )
    try:
        yield started
    finally:
        started.send_signal(signal.SIGTERM)
        started.send_signal(signal.SIGINT)
        started.communicate(timeout=10)


@pytest.fixture(scope="module")
def shared_scene(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Scene]:
    with ExitStack() as stack:
        yield Scene(stack, tmp_path_factory.mktemp("operating"))


@pytest.fixture
def scene(shared_scene: Scene) -> Scene:
    with shared_scene.redis.client() as client:
        client.flushall()
        shared_scene.everywhere(lambda place: place.status() == 200)  # nothing is remembered of the test before
        client.flushall()
    return shared_scene


ALICE = "header:X-API-Key=alice"


def blocked(place: Place) -> bool:
    """Whether that is why alice is refused: of her limit a minute at most is to be waited for."""
    status, headers = place.ask()
    return status == 429 and 80 <= int(headers["retry-after"]) <= 90


def test_block_and_unblock(scene: Scene) -> None:
    """Refused everywhere with the documented 429 and what is left of the block; others are not; it is taken back."""
    assert re.fullmatch(
        r"[0-9a-f]{32}: blocked until 20\d\d-\d\d-\d\dT\d\d:\d\d:\d\dZ(; nothing has been counted of it.*)?\n",
        scene.said("block", ALICE, "--for", "90s"),
    )
    scene.everywhere(blocked)
    for place in scene.places:
        assert 200 == place.status("bob")
    assert scene.said("unblock", ALICE).endswith(": unblocked\n")
    scene.everywhere(lambda place: not blocked(place))
    assert scene.said("unblock", ALICE).endswith(": was not blocked\n")


def test_reset_drops_what_is_remembered(scene: Scene) -> None:
    """A refusal that processes remember ends within a second of the reset."""
    for place in scene.places:
        wait_until(partial(place.says, 429), "the limit is spent")
    assert scene.said("reset", ALICE).endswith(": reset per-minute, credits\n")
    scene.everywhere(lambda place: place.status() == 200)


def test_override_from_standard_input(scene: Scene) -> None:
    """A plan and a limit for one, whose key is in no process list; the counters stay."""
    assert [200, 200, 200, 429] == [scene.sidecar.status() for _ in range(4)]
    told = scene.said("override", "set", "header:X-API-Key=-", "--plan", "pro", given="alice\n")
    assert told.endswith(": plan pro\n")
    scene.everywhere(lambda place: place.status() == 200)
    status, headers = scene.app.ask()
    assert (200, "9") == (status, headers["x-ratelimit-limit"])
    assert scene.said("override", "set", "-", "--limit", "5/minute", "--rule", "per-minute", given=f"{ALICE}\n")
    scene.everywhere(lambda place: place.status() == 429)
    listed = scene.said("override", "list")
    assert {("all", "plan pro"), ("per-minute", "5 per minute")} == {
        tuple(re.split(r"\s{2,}", line)[1:3]) for line in listed.splitlines()[1:]
    }
    scene.said("override", "remove", ALICE)
    scene.said("override", "remove", ALICE, "--rule", "per-minute")
    assert "5 per minute" not in scene.said("override", "list")


def test_the_kill_switch(scene: Scene) -> None:
    """No request is refused within a second, and again within a second; the headers stay."""
    assert [200, 200, 200, 429] == [scene.app.status() for _ in range(4)]
    assert "no rule refuses any request; all requests are counted as before\n" == scene.said("shadow", "on")
    scene.everywhere(lambda place: place.status() == 200)
    assert "x-ratelimit-limit" in scene.app.ask()[1]
    assert "rules refuse again\n" == scene.said("shadow", "off")
    scene.everywhere(lambda place: place.status() == 429)


def test_peek_and_audit(scene: Scene) -> None:
    """A table for people, JSON for others; the audit says who."""
    scene.app.status()
    rows = [re.split(r"\s{2,}", line) for line in scene.said("peek", ALICE).splitlines()]
    assert ["RULE", "LIMIT", "USED", "REMAINING", "RESET", "OVERRIDE"] == rows[1]
    assert ["per-minute", "3 per minute", "1", "2"] == rows[2][:4]
    assert 1 == json.loads(scene.said("peek", ALICE, "--json"))["rules"][0]["used"]
    scene.said("block", ALICE)
    assert "blocked" in scene.said("peek", ALICE).splitlines()[0]
    (line,) = json.loads(scene.said("audit", "--json"))
    assert ("block", True) == (line["verb"], line["who"].startswith("user:"))
    assert 2 == len(scene.said("audit").splitlines())


def test_over_http(scene: Scene) -> None:
    """The same verbs, with a token; the process that is asked obeys at once, the others within a second."""
    status, told = scene.post("/v1/block", {"principal": ALICE, "for": "1h"})
    assert 200 == status
    assert 429 == scene.sidecar.status()
    scene.everywhere(lambda place: place.status() == 429)
    assert [{"digest": told["digest"], "until_ms": told["until_ms"]}] == scene.post("/v1/orders", {})[1]["blocks"]
    assert "token:ann" == scene.post("/v1/audit", {})[1]["lines"][0]["who"]
    assert 401 == scene.post("/v1/block", {"principal": ALICE}, authorization="Bearer wrong-0123456789")[0]
    assert 421 == scene.post("/v1/orders", {}, host="evil.example")[0]


def test_two_operators_at_the_same_time(scene: Scene) -> None:
    """What one orders is not undone by the other."""
    words = [sys.executable, "-m", "ratelimiter", "block"]
    both = [
        subprocess.Popen(
            [*words, f"header:X-API-Key={name}", "--config", str(scene.policy)], cwd=ROOT, stdout=subprocess.DEVNULL
        )
        for name in ("ann", "ben", "cat", "dan")
    ]
    for number in range(4):
        assert 200 == scene.post("/v1/block", {"principal": f"header:X-API-Key=k{number}"})[0]
    assert [0] * 4 == [each.wait(30) for each in both]
    assert 8 == len(scene.post("/v1/orders", {})[1]["blocks"])


@pytest.mark.parametrize(
    ("words", "problem"),
    [
        (["block", "alice"], "principal: this is not a principal; write one like"),
        (["block", "header:X-Other=a"], "principal: no rule charges header:x-other"),
        (["block", ALICE, "--for", "soon"], "for: 'soon' is not a duration"),
        (["block", ALICE, "--until", "2001-01-01T00:00:00Z"], "until: is not within the next hundred years"),
        (["reset", ALICE, "--rule", "gone"], "rule: 'gone' is no rule that charges header:x-api-key"),
        (["override", "set", ALICE, "--limit", "5/day"], "override: no rule has this kind and window"),
        (["override", "set", ALICE, "--plan", "gold"], "override: 'gold' is no plan; write basic or pro"),
        (["topup", ALICE, "5"], "rule: what is given has no balance"),
        (["peek", "-"], "principal: there is nothing on standard input"),
        (["peek", ALICE, "--store", "memory://"], "store: memory:// is within the process that counts"),
        (["peek", ALICE, "--store", "limits+memcached://127.0.0.1:1"], "store: keeps no orders"),
    ],
)
def test_mistakes(scene: Scene, words: list[str], problem: str) -> None:
    """One line on stderr that says what would do, nothing on stdout, exit status 2."""
    done = scene.command(*words)

    assert (2, "") == (done.returncode, done.stdout)
    assert done.stderr.startswith(problem), done.stderr
    assert 1 == done.stderr.count("\n")


def test_without_redis(tmp_path: Path) -> None:
    """An operator who acts while it is down is told so, with an exit status of its own."""
    policy = tmp_path / "policy.yaml"
    policy.write_text(POLICY.format(url=f"redis://127.0.0.1:{free_port()}/0"))
    for words in (["block", ALICE], ["peek", ALICE], ["override", "list"], ["shadow", "on"]):
        done = subprocess.run(
            [sys.executable, "-m", "ratelimiter", *words, "--config", str(policy)],
            check=False,
            capture_output=True,
            text=True,
            cwd=ROOT,
        )
        assert (1, "") == (done.returncode, done.stdout)
        assert re.fullmatch(r"store: .*\(unreachable\); the operation may or may not have been done\n", done.stderr)


@pytest.mark.parametrize(
    ("flags", "problem"),
    [
        (["--operator", "127.0.0.1:0"], "--operator-token-file: is missing"),
        (["--operator-token-file", "x"], "--operator: is missing"),
        (["--operator", "127.0.0.1:0", "--operator-token-file", "nowhere"], "nowhere: cannot be read"),
        (
            ["--operator", "127.0.0.1:0", "--operator-token-file", "nowhere", "--workers", "2"],
            "--operator: memory:// is counted by each worker alone",
        ),
        (["--operator", "nonsense", "--operator-token-file", "tokens"], "--operator: "),
    ],
)
def test_listeners_that_cannot_be(tmp_path: Path, flags: list[str], problem: str) -> None:
    """It is said what is missing, before anything is served."""
    (tmp_path / "tokens").write_text(f"ann:{TOKEN}\n")
    words = [sys.executable, "-m", "ratelimiter", "proxy", "--upstream", "http://127.0.0.1:1", "--limit", "1/minute"]
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        [*words, "--listen", "127.0.0.1:0", *flags],
        check=False,
        capture_output=True,
        text=True,
        cwd=tmp_path,
        env=environment,
    )

    assert 2 == done.returncode
    assert done.stderr.startswith(problem), done.stderr


@pytest.mark.parametrize("flags", [[], ["--workers", "2"]], ids=["memory", "two workers on redis"])
def test_whichever_process_is_asked(tmp_path: Path, flags: list[str]) -> None:
    """The embedded store obeys its own listener at once; of several workers any may be asked, and all obey."""
    (tmp_path / "tokens").write_text(f"ann:{TOKEN}\n")
    with ExitStack() as stack:
        behind = stack.enter_context(upstream())
        words = ["-m", "ratelimiter", "proxy", "--upstream", behind, "--listen", "127.0.0.1:0", "--admin", "none"]
        words += ["--limit", "100000/minute", "--principal", "header:X-API-Key", *flags]
        words += ["--operator", "127.0.0.1:0", "--operator-token-file", str(tmp_path / "tokens")]
        if flags:
            words += ["--store", stack.enter_context(RedisServer()).url]
        started = stack.enter_context(process(*words))
        assert started.stdout is not None
        places = re.findall(r"http://(127\.0\.0\.1:\d+)", started.stdout.readline())
        sidecar, headers = Place(places[0]), {"authorization": f"Bearer {TOKEN}"}
        wait_until(lambda: sidecar.status() == 200, "it is there")

        def order(path: str) -> int:
            connection = http.client.HTTPConnection(places[-1], timeout=10)
            connection.request("POST", path, json.dumps({"principal": ALICE}), headers)
            status = connection.getresponse().status
            connection.close()
            return status

        for path, status in (("/v1/block", 429), ("/v1/unblock", 200)):
            assert 200 == order(path)

            def always(status: int = status) -> bool:
                return {sidecar.status() for _ in range(20)} == {status}

            wait_until(always, path, WITHIN_S)
