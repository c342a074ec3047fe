"""What normal traffic notices of slowhttptest's three attacks: through the sidecar, and through a proxy they do hold.

    python -m tests.benchmarks.slow_attacks [--seconds N]

Each attack is a thousand connections from one address: heads that never end (-H), bodies that trickle (-B), and
responses that are read five bytes at a time (-X). Normal traffic is ten requests a second from another address, each on
a connection of its own. The proxy that is held is nginx with 512 connections and timeouts of an hour; where it is not,
the attack proves nothing, and that is an error. The sidecar runs as it comes, and once more with no cap on the
connections of one address, so that only its deadlines are left.

What makes an attack one: the body is announced as longer than it can get within the attack, and somebody waits for it;
the response is larger than what kernels hold of it for the client, and asked for with a window of a few bytes. And the
upstream takes a burst of connections in: behind a server with a backlog of five, as that of Python's http.server,
kernels repeat a dropped SYN after one and three seconds, which is the upstream's slowness and not the proxy's.

Needs `nginx` and `slowhttptest`.
"""

from __future__ import annotations

import argparse
import resource
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from contextlib import ExitStack, contextmanager
from pathlib import Path
from statistics import median
from threading import Event, Thread
from typing import TYPE_CHECKING, Any, NamedTuple

from tests.stores.redis_server import free_port, wait_until

if TYPE_CHECKING:
    from collections.abc import Iterator

CONNECTIONS = 1000
BYSTANDER = "127.0.0.2"  # where normal traffic comes from
PATIENCE_S = 5.0  # of normal traffic
PERIOD_S = 0.1
LARGE = bytes(1_000_000)

ATTACKS = {
    "slow heads (-H)": ("-H", "-i", "3", "-x", "16"),
    "slow bodies (-B)": ("-B", "-i", "3", "-x", "16", "-s", "100000", "-t", "POST"),
    "slow reading (-X)": ("-X", "-i", "3", "-w", "1", "-y", "8", "-n", "3", "-z", "5"),
}
NGINX = """
daemon off; master_process off; pid {folder}/pid; error_log /dev/null;
events {{ worker_connections 512; }}
http {{
  access_log off; client_body_temp_path {folder}; proxy_temp_path {folder}; fastcgi_temp_path {folder};
  uwsgi_temp_path {folder}; scgi_temp_path {folder};
  client_header_timeout 1h; client_body_timeout 1h; send_timeout 1h; keepalive_timeout 1h; lingering_timeout 1h;
  server {{ listen 127.0.0.1:{port} backlog=4096; location / {{ proxy_pass http://127.0.0.1:{upstream}; }} }}
}}
"""
POLICY = """
proxy: {connections_per_address_max: 100000}
rules: [{name: all, limit: 1000000/minute}]
"""


async def app(scope: dict[str, Any], receive: Any, send: Any) -> None:
    """The upstream: it reads bodies to their end, and has something large to give."""
    if scope["type"] != "http":
        return
    while (await receive()).get("more_body"):
        pass
    body = LARGE if scope["path"] == "/large" else b"hello"
    headers = [(b"content-length", b"%d" % len(body))]
    await send({"type": "http.response.start", "status": 200, "headers": headers})
    await send({"type": "http.response.body", "body": body})


class Traffic:
    """Requests at a steady pace, and how long each took; None for one without a proper answer. And beside them how many
    others are connected, by the second: slowhttptest notices late that it is not any more.
    """

    def __init__(self, port: int) -> None:
        self.port = port
        self.took_s: list[float | None] = []
        self.attackers: list[tuple[float, int]] = []
        self._begun_s = time.monotonic()
        self._ended = Event()
        self._threads: list[Thread] = []
        self._pace = Thread(target=self._go)
        self._pace.start()

    def _go(self) -> None:
        while not self._ended.wait(PERIOD_S):
            thread = Thread(target=self._ask)
            self._threads.append(thread)
            thread.start()
            lines = [line.split() for line in Path("/proc/net/tcp").read_text().splitlines()]
            count = sum(line[1:4:2] == [f"0100007F:{self.port:04X}", "01"] for line in lines)
            self.attackers.append((time.monotonic() - self._begun_s, count))

    def _ask(self) -> None:
        begun_s = time.monotonic()
        answer = b""
        try:
            with socket.create_connection(("127.0.0.1", self.port), PATIENCE_S, (BYSTANDER, 0)) as connection:
                connection.sendall(b"GET / HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n")
                while data := connection.recv(4096):
                    answer += data
        except OSError:
            answer = b""
        proper = answer.startswith(b"HTTP/1.1 200 ") and answer.endswith(b"hello")
        self.took_s.append(time.monotonic() - begun_s if proper else None)

    def end(self) -> None:
        """Stop, and wait for what is under way."""
        self._ended.set()
        self._pace.join()
        for thread in self._threads:
            thread.join()


class Seen(NamedTuple):
    """What came of one attack."""

    asked: int
    failed: int
    median_s: float
    longest_s: float
    most: int  # connections of the attack at one time
    held_s: float  # how long a tenth of these and more were there

    @property
    def disturbed(self) -> bool:
        """Whether anybody was not served."""
        return self.failed > 0


def attack(port: int, flags: tuple[str, ...], seconds: int) -> Seen:
    """Attack whoever listens at *port*, with normal traffic from some time before to the end."""
    traffic = Traffic(port)
    time.sleep(1)
    path = "/large" if "-X" in flags else "/"
    general = (
        "-c",
        str(CONNECTIONS),
        "-r",
        "500",
        "-l",
        str(seconds),
        "-p",
        "3",
        "-u",
        f"http://127.0.0.1:{port}{path}",
    )
    tool = shutil.which("slowhttptest") or ""
    told = subprocess.run([tool, *flags, *general], capture_output=True, text=True, check=False).stdout
    traffic.end()
    if "Test ended" not in told:
        sys.exit(f"slowhttptest did not say how it went:\n{told}")
    proper = [each for each in traffic.took_s if each is not None] or [PATIENCE_S]
    most = max(count for _, count in traffic.attackers)
    held_s = max(at_s for at_s, count in traffic.attackers if count > most / 10)
    return Seen(len(traffic.took_s), traffic.took_s.count(None), median(proper), max(proper), most, held_s)


@contextmanager
def process(port: int, *words: str) -> Iterator[int]:
    """A server at *port*."""
    started = subprocess.Popen(words, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        wait_until(lambda: _listens(port), f"{words[0]} listens")
        yield port
    finally:
        started.terminate()
        try:
            started.wait(3)
        except subprocess.TimeoutExpired:
            started.kill()
            started.wait()


def _listens(port: int) -> bool:
    try:
        socket.create_connection(("127.0.0.1", port), 1).close()
    except OSError:
        return False
    return True


@contextmanager
def contestant(name: str, upstream: int, folder: Path) -> Iterator[int]:
    """One proxy in front of *upstream*, by its name in the table."""
    port = free_port()
    words: tuple[str, ...]
    if name == HELD:
        (folder / "nginx.conf").write_text(NGINX.format(folder=folder, port=port, upstream=upstream))
        words = ("nginx", "-c", str(folder / "nginx.conf"), "-p", str(folder))
    else:
        policy = folder / "policy.yaml"
        policy.write_text(POLICY)
        words = (sys.executable, "-m", "ratelimiter", "proxy", "--upstream", f"http://127.0.0.1:{upstream}")
        words += ("--listen", f"127.0.0.1:{port}", "--admin", "none")
        words += ("--limit", "1000000/minute") if name == AS_IT_COMES else ("--config", str(policy))
    with process(port, *words):
        yield port


HELD, AS_IT_COMES, UNCAPPED = "nginx, timeouts of 1 h", "sidecar", "sidecar, address uncapped"


def main() -> None:
    """Print what every contestant's normal traffic noticed of every attack."""
    parser = argparse.ArgumentParser(prog="python -m tests.benchmarks.slow_attacks")
    parser.add_argument("--seconds", type=int, default=40, help="of each attack; the longest deadline is 30 s")
    args = parser.parse_args()
    missing = [name for name in ("nginx", "slowhttptest") if not shutil.which(name)]
    if missing:
        parser.error(f"missing: {', '.join(missing)}; apt-get install nginx-light slowhttptest")
    most = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
    wrong = []
    titles = ("asked", 5), ("failed", 6), ("median ms", 9), ("longest ms", 10), ("most held", 9), ("for s", 5)
    print(f"{'':18}  {'':25}" + "".join(f"  {title:>{width}}" for title, width in titles))
    for title, flags in ATTACKS.items():
        for name in (HELD, AS_IT_COMES, UNCAPPED):
            with ExitStack() as stack:
                folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
                upstream = free_port()
                uvicorn = (
                    sys.executable,
                    "-m",
                    "uvicorn",
                    "tests.benchmarks.slow_attacks:app",
                    "--port",
                    str(upstream),
                )
                stack.enter_context(process(upstream, *uvicorn, "--log-level", "critical"))
                port = stack.enter_context(contestant(name, upstream, folder))
                seen = attack(port, flags, args.seconds)
            print(
                f"{title:18}  {name:25}  {seen.asked:5}  {seen.failed:6}  {seen.median_s * 1000:9.1f}"
                f"  {seen.longest_s * 1000:10.1f}  {seen.most:9}  {seen.held_s:5.0f}",
                flush=True,
            )
            if seen.disturbed is not (name == HELD):
                wrong.append(f"{title}: {name} is {'disturbed' if seen.disturbed else 'not held'}")
    if wrong:
        sys.exit("\n".join(wrong))


if __name__ == "__main__":
    main()
