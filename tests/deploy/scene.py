"""Limiters at work, a Prometheus that watches them, and what can happen to them.

Three ways to run one policy on one Redis: an application with the middleware and an admin listener, one with two
workers that are one scrape, and the sidecar in front of an API that knows of no limit.
"""

from __future__ import annotations

import http.client
import os
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple, Self

from deploy.grafana.panels import VARIABLES
from ratelimiter.cli.main import main
from tests.deploy.prometheus_server import PrometheusServer, Series
from tests.stores.redis_server import RedisServer, free_port, wait_until

if TYPE_CHECKING:
    from collections.abc import Iterable

ROOT = Path(__file__).parent.parent.parent
MIDDLEWARE, WORKERS, SIDECAR = "ratelimiter-middleware", "ratelimiter-workers", "ratelimiter-sidecar"
JOBS = (MIDDLEWARE, WORKERS, SIDECAR)
START_S = 20.0
STOP_S = 10.0

# Short windows, so that little traffic in little time meets them; one rule for each thing that an outage can do, one
# with plans, one of credits. The identity provider is down all the time.
POLICY = """\
store: {store}
principal: [header:X-API-Key, client]
plan: {{default: basic}}
identity:
  jwt: {{issuer: https://id.example/, audience: api, keys: "http://127.0.0.1:{nobody}/jwks.json"}}
require:
  - match: {{path: /account/**}}
    credentials: true
rules:
  - name: per-key
    match: {{except: [/exports, /payments, /health, /reports, /generate, /v1/**]}}
    limit: {limit}
  - name: search
    match: {{path: /search/**}}
    limit: {shadow}
    mode: shadow
  - name: exports
    match: {{path: /exports}}
    limit: {limit}
    on_store_error: allow
  - name: payments
    match: {{path: /payments}}
    limit: {limit}
    on_store_error: deny
  - name: reports
    match: {{path: /reports}}
    limit: {{basic: {shadow}, professional: {limit}, enterprise: unlimited}}
  - name: generate
    match: {{path: /generate}}
    limit: 5 credits
  - name: tokens
    match: {{methods: [POST], path: /v1/chat/completions}}
    tokens: openai
    models: [gpt-x, gpt-x-mini]
    limit: 20000/minute
"""
BAD_POLICY = "rules: [{name: per-key, limit: 10 per parsec}]\n"

MODEL = "/v1/chat/completions"  # answered like a language model, now and then without its usage
# What callers ask for, in turn. The encoded slash has two readings, of which one meets a rule of its own, so that the
# request is malformed; no rule is about /health.
PATHS = (
    "/items",
    "/items",
    "/search/all",
    "/items/slow",
    "/exports",
    "/payments",
    "/health",
    "/search%2fall",
    "/broken",
    "/reports",
    "/generate",
    "/account",
    "/account/mine",
    MODEL,
)
# What is sent along to one of them: as good as any token, while nobody can say whose it is.
TOKENS = {"/account/mine": "eyJhbGciOiJSUzI1NiIsImtpZCI6ImsifQ.eyJzdWIiOiJhbGljZSJ9.c2lnbmVk"}


# What is sent to the model, in turn.
MODELS = tuple(
    f'{{"model": "{model}", "max_tokens": {bound}, "messages": [{{"role": "user", "content": "{"word " * words}"}}]}}'
    for model, bound, words in (("gpt-x", 300, 40), ("gpt-x-mini", 100, 90), ("another", 50, 10), ("gpt-x", 20, 60))
)


class Way(NamedTuple):
    """One way to run the limiter."""

    job: str
    port: int  # of the API as its clients see it
    metrics: str  # HOST:PORT that is scraped
    process: subprocess.Popen[bytes]
    seen: Path  # as long as the number of requests that reached the API


class Scene:
    """All of it, in a directory that goes with it.

    Args:
        limit: of the rules.
        shadow: of the rule that is in shadow.
        scrape_s: seconds between two scrapes.
        rules: text of a file of rules for Prometheus.
        jobs: which ways to run.
    """

    def __init__(
        self,
        *,
        limit: str = "10/second",
        shadow: str = "2/second",
        scrape_s: float = 0.25,
        rules: str = "",
        jobs: Iterable[str] = JOBS,
    ) -> None:
        self._limit = limit
        self._shadow = shadow
        self.scrape_s = scrape_s
        self._rules = rules
        self._jobs = tuple(jobs)
        self._stack = ExitStack()
        self.begun_s = 0.0
        self.ways: dict[str, Way] = {}

    def __enter__(self) -> Self:
        self._directory = Path(self._stack.enter_context(tempfile.TemporaryDirectory(prefix="ratelimiter-scene-")))
        with self._stack:
            self.redis = self._stack.enter_context(RedisServer())
            self._nobody = free_port()
            self.policy_file = self._directory / "policy.yaml"
            self.write_policy(self._limit)
            makers = {MIDDLEWARE: self._middleware, WORKERS: self._workers, SIDECAR: self._sidecar}
            for job in self._jobs:
                self.ways[job] = makers[job]()
            for way in self.ways.values():
                self._await(way)
            self.prometheus = self._stack.enter_context(
                PrometheusServer(
                    {job: [way.metrics] for job, way in self.ways.items()}, scrape_s=self.scrape_s, rules=self._rules
                )
            )
            # Prometheus takes its time before it looks at a new target.
            wait_until(self._watched, "Prometheus has scraped everything", START_S)
            self.begun_s = time.time()
            self._stack = self._stack.pop_all()
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    # --- What can happen

    def write_policy(self, limit: str) -> None:
        """Put another limit into the policy file, whole at once."""
        self._write(POLICY.format(store=self.redis.url, nobody=self._nobody, limit=limit, shadow=self._shadow))

    def spoil_policy(self) -> None:
        """Put something into the policy file that is no policy."""
        self._write(BAD_POLICY)

    def order(self, *words: str) -> None:
        """An operator says *words* on the command line; not while the policy file is bad, or Redis out."""
        assert main([*words, "--config", str(self.policy_file), "--json"]) == 0, words

    def stop_redis(self) -> None:
        """Redis crashes."""
        self.redis.kill()

    def start_redis(self) -> None:
        """Redis is back, and has forgotten everything."""
        self.redis.start()

    def settle(self) -> None:
        """Wait until everything that has happened is in Prometheus: workers pass on what they noted each second."""
        time.sleep(1.2 + 3 * self.scrape_s)

    def reached(self, job: str) -> int:
        """Requests that have reached the API itself."""
        return self.ways[job].seen.stat().st_size

    def reached_by_process(self, job: str) -> list[int]:
        """The same for each process that has served one."""
        return sorted(Counter(self.ways[job].seen.read_bytes()).values())

    def shown(self, expr: str, ended_s: float, *, instant: bool) -> list[Series]:
        """What the dashboard would show of the whole run for *expr*, with everything chosen that there is to choose."""
        expr = self.filled_in(expr, ended_s)
        if instant:
            return self.prometheus.query(expr, ended_s)
        return self.prometheus.query_range(expr, self.begun_s, ended_s, self.scrape_s)

    def filled_in(self, expr: str, ended_s: float) -> str:
        """*expr* with values for its variables, those of the dashboard and Grafana's own."""
        values = {
            "__rate_interval": f"{round(4000 * self.scrape_s)}ms",  # as Grafana has it
            "__range": f"{round(1000 * (ended_s - self.begun_s))}ms",
        }
        values |= {name: everything or f"({'|'.join(self.ways)})" for name, _, _, everything in VARIABLES}
        for name, value in values.items():
            expr = expr.replace(f"${name}", value)
        return expr

    def log(self, name: str) -> str:
        """What a process has said."""
        return (self._directory / f"{name}.log").read_text()

    # --- How it is made

    def _write(self, text: str) -> None:
        new = self.policy_file.with_suffix(".new")
        new.write_text(text)
        new.replace(self.policy_file)

    def _middleware(self) -> Way:
        port, admin = free_port(), f"127.0.0.1:{free_port()}"
        settings = {"WATCHED_POLICY": str(self.policy_file), "WATCHED_ADMIN": admin}
        return self._served(MIDDLEWARE, port, admin, settings)

    def _workers(self) -> Way:
        port = free_port()
        counts = self._directory / "counts"
        counts.mkdir()
        settings = {"WATCHED_POLICY": str(self.policy_file), "PROMETHEUS_MULTIPROC_DIR": str(counts)}
        return self._served(WORKERS, port, f"127.0.0.1:{port}", settings, "--workers", "2")

    def _sidecar(self) -> Way:
        api = self._served("api", free_port(), "", {})
        port, admin = free_port(), f"127.0.0.1:{free_port()}"
        command = ["-m", "ratelimiter", "proxy", "--upstream", f"http://127.0.0.1:{api.port}"]
        command += ["--listen", f"127.0.0.1:{port}", "--admin", admin, "--config", str(self.policy_file)]
        self._await(api)
        return Way(SIDECAR, port, admin, self._started(SIDECAR, command, {}), api.seen)

    def _served(self, job: str, port: int, metrics: str, settings: dict[str, str], *more: str) -> Way:
        seen = self._directory / f"{job}.seen"
        seen.touch()
        command = ["-m", "uvicorn", "tests.deploy.watched_app:app", "--factory", "--port", str(port), *more]
        command += ["--loop", "uvloop", "--http", "httptools", "--log-level", "warning", "--no-access-log"]
        process = self._started(job, command, {**settings, "WATCHED_SEEN": str(seen)})
        return Way(job, port, metrics, process, seen)

    def _started(self, name: str, command: list[str], settings: dict[str, str]) -> subprocess.Popen[bytes]:
        log = self._stack.enter_context((self._directory / f"{name}.log").open("wb"))
        process = subprocess.Popen(
            [sys.executable, *command], cwd=ROOT, env={**os.environ, **settings}, stdout=log, stderr=log
        )
        self._stack.callback(_stopped, process)
        return process

    def _await(self, way: Way) -> None:
        wait_until(lambda: self._answers(way), f"{way.job} answers; it says: {self.log(way.job)}", START_S)

    def _watched(self) -> bool:
        found = self.prometheus.query("sum(up)")
        return bool(found) and found[0].points[0][1] == len(self.ways)

    def _answers(self, way: Way) -> bool:
        assert way.process.poll() is None, self.log(way.job)
        # Where nothing is counted: neither a request for the metrics nor a bare connection is judged.
        host, _, port = (way.metrics or f"127.0.0.1:{way.port}").rpartition(":")
        asked = http.client.HTTPConnection(host, int(port), timeout=2)
        try:
            asked.connect()
            if way.metrics:
                asked.request("GET", "/metrics")
                asked.getresponse().read()
        except OSError:
            return False
        finally:
            asked.close()
        return True


class Callers:
    """Clients of all ways of a scene, each a thread that asks at a steady pace.

    Args:
        scene: whom they call.
        keys: how many there are, each with its own API key, for each way.
        pause_s: between two requests of one.

    Attributes:
        answers: how many answers there were, by job and status; 0 is none at all.
    """

    def __init__(self, scene: Scene, *, keys: int = 2, pause_s: float = 0.02) -> None:
        self.answers: Counter[tuple[str, int]] = Counter()
        self._told = threading.Lock()
        self._done = threading.Event()
        self.pause_s = pause_s
        self._threads = [
            threading.Thread(target=self._call, args=(way, f"key-{number}"))
            for way in scene.ways.values()
            for number in range(keys)
        ]

    def __enter__(self) -> Self:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._done.set()
        for thread in self._threads:
            thread.join()

    def of(self, job: str) -> int:
        """Answers that *job* gave."""
        return sum(number for (name, status), number in self.answers.items() if name == job and status)

    def _call(self, way: Way, key: str) -> None:
        connection = http.client.HTTPConnection("127.0.0.1", way.port, timeout=10)
        turn = 0
        while not self._done.wait(self.pause_s):
            turn += 1
            try:
                path = PATHS[turn % len(PATHS)]
                headers = {"Authorization": f"Bearer {TOKENS[path]}"} if path in TOKENS else {}
                method, body = ("POST", MODELS[turn // len(PATHS) % len(MODELS)]) if path == MODEL else ("GET", None)
                connection.request(method, path, body, headers={"X-API-Key": key, **headers})
                answer = connection.getresponse()
                answer.read()
                status = answer.status
            except (OSError, http.client.HTTPException):
                connection.close()
                status = 0
            with self._told:
                self.answers[way.job, status] += 1
        connection.close()


def _stopped(process: subprocess.Popen[bytes]) -> None:
    """End it as a container would be ended."""
    process.send_signal(signal.SIGTERM)
    try:
        process.wait(STOP_S)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
