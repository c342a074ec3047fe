"""A real memcached of the test's own: started on demand, hurt on purpose, gone at the end."""

from __future__ import annotations

import shutil
import signal
import socket
import subprocess
from typing import Self

from tests.stores.redis_server import free_port, wait_until

EXECUTABLE = "memcached"


class MemcachedServer:
    """A memcached on a free port."""

    def __init__(self) -> None:
        if shutil.which(EXECUTABLE) is None:
            msg = f"{EXECUTABLE} is missing, and the bridge is tested on it: apt-get install memcached"
            raise AssertionError(msg)
        self.port = free_port()
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def url(self) -> str:
        return f"memcached://127.0.0.1:{self.port}"

    def start(self) -> Self:
        """Start it, and return when it answers."""
        words = [EXECUTABLE, "-l", "127.0.0.1", "-p", str(self.port), "-U", "0", "-u", "nobody", "-m", "16"]
        self._process = subprocess.Popen(words, stderr=subprocess.DEVNULL)
        wait_until(self._answers, f"{EXECUTABLE} answers")
        return self

    def _answers(self) -> bool:
        try:
            with socket.create_connection(("127.0.0.1", self.port), 1) as connection:
                connection.sendall(b"version\r\n")
                return connection.recv(64).startswith(b"VERSION")
        except OSError:
            return False

    def freeze(self) -> None:
        """Stop it in mid-air: its sockets stay open, and nothing answers."""
        assert self._process is not None
        self._process.send_signal(signal.SIGSTOP)

    def thaw(self) -> None:
        assert self._process is not None
        self._process.send_signal(signal.SIGCONT)

    def close(self) -> None:
        if self._process is not None:
            self._process.kill()
            self._process.wait()
            self._process = None

    def __enter__(self) -> Self:
        return self.start()

    def __exit__(self, *_: object) -> None:
        self.close()
