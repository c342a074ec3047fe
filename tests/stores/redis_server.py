"""A real redis-server of the test's own: started on demand, hurt on purpose, gone at the end."""

from __future__ import annotations

import contextlib
import secrets
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING, Self

import redis

if TYPE_CHECKING:
    from collections.abc import Callable

EXECUTABLE = "redis-server"
SLOTS = 16384  # of a cluster
START_S = 10  # a loaded machine needs a moment


def free_port() -> int:
    """A port that nobody listens at, for a server that is about to.

    Not one that the system would give away by itself: any connection made meanwhile might get that.
    """
    while True:
        port = 10_000 + secrets.randbelow(20_000)  # so that two who ask at the same time get two
        with socket.socket() as probe, contextlib.suppress(OSError):
            probe.bind(("127.0.0.1", port))
            return port


def wait_until(condition: Callable[[], object], what: str, within_s: float = START_S) -> None:
    """Poll *condition* until it holds."""
    end = time.monotonic() + within_s
    while not condition():
        if time.monotonic() > end:
            msg = f"not within {within_s} s: {what}"
            raise AssertionError(msg)
        time.sleep(0.005)


class RedisServer:
    """A redis-server on a free port and a unix socket, in a directory that goes with it.

    Args:
        options: of the server, as on its command line: `requirepass="x"`, `save=("1 1",)` for several words.
        plain: whether it listens without TLS, too.
    """

    def __init__(self, *, plain: bool = True, **options: str) -> None:
        if shutil.which(EXECUTABLE) is None:
            msg = (
                f"{EXECUTABLE} is missing, and the Redis store is tested on nothing else: apt-get install redis-server"
            )
            raise AssertionError(msg)
        self.directory = Path(tempfile.mkdtemp(prefix="ratelimiter-redis-"))
        self.port = free_port()
        self.socket = str(self.directory / "redis.sock")
        self.options = {name.replace("_", "-"): value for name, value in options.items()}
        self.plain = plain
        self.password = options.get("requirepass")
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def url(self) -> str:
        return f"redis://127.0.0.1:{self.port}/0"

    @property
    def pid(self) -> int:
        assert self._process is not None
        return self._process.pid

    def start(self) -> Self:
        """Start it, and return when it answers."""
        with (self.directory / "log").open("ab") as log:
            self._process = subprocess.Popen(self.words(), stdout=log, stderr=log)
        wait_until(self._answers, f"{EXECUTABLE} answers; see {self.directory / 'log'}")
        return self

    def words(self) -> list[str]:
        """The command line."""
        given = {
            "port": str(self.port) if self.plain else "0",
            "unixsocket": self.socket,
            "dir": str(self.directory),
            "save": "",
            "enable-debug-command": "yes",
            "loglevel": "warning",
            **self.options,
        }
        options = [word for name, value in given.items() for word in (f"--{name}", *(value.split() or [""]))]
        return [EXECUTABLE, *options]

    def _answers(self) -> bool:
        assert self._process is not None
        assert self._process.poll() is None, (self.directory / "log").read_text()
        try:
            with self.client() as client:
                return bool(client.ping())
        except redis.exceptions.RedisError:
            return False

    def client(self) -> redis.Redis:
        """A client to look and to hurt with."""
        return redis.Redis(unix_socket_path=self.socket, password=self.password, protocol=2)

    def freeze(self) -> None:
        """Stop it in mid-air: its sockets stay open, and nothing answers."""
        assert self._process is not None
        self._process.send_signal(signal.SIGSTOP)

    def thaw(self) -> None:
        assert self._process is not None
        self._process.send_signal(signal.SIGCONT)

    def kill(self) -> None:
        """End it at once, as a crash would."""
        if self._process is not None:
            self._process.kill()
            self._process.wait()
            self._process = None

    def close(self) -> None:
        """End it, and remove what it left."""
        self.kill()
        with contextlib.suppress(FileNotFoundError):
            shutil.rmtree(self.directory)

    def __enter__(self) -> Self:
        return self.start()

    def __exit__(self, *_: object) -> None:
        self.close()


class SentinelServer(RedisServer):
    """A Sentinel that watches the master at *master_port* under the name `mymaster`."""

    def __init__(self, master_port: int, *, quorum: int = 2, down_after_ms: int = 300) -> None:
        super().__init__()
        self._config = self.directory / "sentinel.conf"
        self._config.write_text(
            f"port {self.port}\nunixsocket {self.socket}\ndir {self.directory}\n"
            f"sentinel monitor mymaster 127.0.0.1 {master_port} {quorum}\n"
            f"sentinel down-after-milliseconds mymaster {down_after_ms}\n"
            "sentinel failover-timeout mymaster 1000\n"
        )

    def words(self) -> list[str]:
        return [EXECUTABLE, str(self._config), "--sentinel"]


class RedisCluster:
    """Masters of a cluster that share its slots evenly.

    Args:
        size: how many.
    """

    def __init__(self, size: int = 2) -> None:
        self.nodes = [
            RedisServer(cluster_enabled="yes", cluster_port=str(free_port()), cluster_node_timeout="500")
            for _ in range(size)
        ]

    @property
    def url(self) -> str:
        return "redis+cluster://" + ",".join(f"127.0.0.1:{node.port}" for node in self.nodes)

    def __enter__(self) -> Self:
        share = -(-SLOTS // len(self.nodes))
        for number, node in enumerate(self.nodes):
            node.start()
            with node.client() as client:
                last = min(SLOTS, share * (number + 1)) - 1
                client.execute_command("CLUSTER", "ADDSLOTSRANGE", share * number, last)
                client.execute_command("CLUSTER", "SET-CONFIG-EPOCH", number + 1)
                first = self.nodes[0]
                client.execute_command("CLUSTER", "MEET", "127.0.0.1", first.port, first.options["cluster-port"])
        wait_until(lambda: all(self._ready(node) for node in self.nodes), "the nodes meet")
        return self

    def _ready(self, node: RedisServer) -> bool:
        with node.client() as client:
            info = client.execute_command("CLUSTER", "INFO")
            known = _field(info, "cluster_known_nodes") == str(len(self.nodes))
            return known and _field(info, "cluster_state") == "ok"

    def __exit__(self, *_: object) -> None:
        for node in self.nodes:
            node.close()

    def serving(self, slot: int) -> RedisServer:
        """The node that has *slot* by the first division."""
        return self.nodes[slot // -(-SLOTS // len(self.nodes))]


def _field(info: object, name: str) -> str:
    if isinstance(info, dict):
        return str(info.get(name))
    text = info.decode() if isinstance(info, bytes) else str(info)
    return next((line.partition(":")[2].strip() for line in text.splitlines() if line.startswith(f"{name}:")), "")
