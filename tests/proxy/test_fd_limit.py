"""Goal: a process that may have few files serves fewer clients, and those well (fault F54). Method: real processes with
a real limit, and a crowd.
"""

from __future__ import annotations

import os
import re
import resource
import socket
import subprocess
import sys
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread

from ratelimiter.proxy.fd_limit import RESERVED, make_room
from ratelimiter.proxy.settings import ProxySettings

LIMITED = (
    "import os, resource, sys; resource.setrlimit(resource.RLIMIT_NOFILE, (64, 64));"
    " os.execv(sys.executable, [sys.executable, '-m', 'ratelimiter', *sys.argv[1:]])"
)
GET = b"GET / HTTP/1.1\r\nHost: api.example\r\n\r\n"


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        self.send_response(200)
        self.send_header("Content-Length", "2")
        self.end_headers()
        self.wfile.write(b"ok")

    def log_message(self, *args: object) -> None: ...


def in_child(soft: int, hard: int, connections_max: int) -> tuple[int, int, int]:
    """What another process makes of these: its soft limit, its hard limit and how many clients it takes in."""
    program = (
        "import resource; from ratelimiter.proxy.settings import ProxySettings;"
        " from ratelimiter.proxy.fd_limit import make_room;"
        f" resource.setrlimit(resource.RLIMIT_NOFILE, ({soft}, {hard}));"
        f" bounds = make_room(ProxySettings(connections_max={connections_max}));"
        " print(*resource.getrlimit(resource.RLIMIT_NOFILE), bounds.connections_max)"
    )
    told = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True).stdout
    soft, hard, clients = map(int, told.split())
    return soft, hard, clients


def test_the_soft_limit_is_raised_as_far_as_needed() -> None:
    """And no further: there may be software in the process that looks at each number below it."""
    assert (RESERVED + 200, 1000, 100) == in_child(64, 1000, 100)
    assert (500, 1000, 100) == in_child(500, 1000, 100)


def test_the_hard_limit_is_kept_to() -> None:
    """With room for each client's connection to the upstream."""
    assert (100, 100, (100 - RESERVED) // 2) == in_child(64, 100, 10_000)
    assert (20, 20, 1) == in_child(20, 20, 10_000)
    assert (4000, 4000, 4000 - RESERVED - 1024) == in_child(64, 4000, 10_000)


def test_where_there_is_room_nothing_changes() -> None:
    """Not even by a number."""
    before, bounds = resource.getrlimit(resource.RLIMIT_NOFILE), ProxySettings(connections_max=1)
    assert bounds is make_room(bounds)
    assert before == resource.getrlimit(resource.RLIMIT_NOFILE)


def cpu_s(pid: int) -> float:
    return int(Path(f"/proc/{pid}/schedstat").read_text().split()[0]) / 1e9


def test_a_crowd_exhausts_nobody() -> None:
    """F54: those who are in are served, the others are let go at once; nothing spins, and all is well afterwards."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    Thread(target=server.serve_forever, daemon=True).start()
    words = ["--upstream", f"http://127.0.0.1:{server.server_port}", "--limit", "1000000/minute"]
    process = subprocess.Popen(
        [sys.executable, "-c", LIMITED, "proxy", "--listen", "127.0.0.1:0", "--admin", "none", *words],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None
    port = int(re.findall(r":(\d+) ->", process.stdout.readline())[0])
    clients = [socket.create_connection(("127.0.0.1", port), timeout=10) for _ in range(100)]
    answers = []
    for client in clients:
        try:
            client.sendall(GET)
            answers.append(client.recv(12))
        except ConnectionError:
            answers.append(b"")
    assert {b"HTTP/1.1 200", b""} == set(answers)
    assert (64 - RESERVED) // 2 == answers.count(b"HTTP/1.1 200")
    before_s = cpu_s(process.pid)
    time.sleep(0.5)
    assert cpu_s(process.pid) - before_s < 0.2
    assert len(os.listdir(f"/proc/{process.pid}/fd")) < 64
    for client in clients:
        client.close()
    end_s = time.monotonic() + 10
    answer = b""
    while not answer and time.monotonic() < end_s:
        with socket.create_connection(("127.0.0.1", port), timeout=10) as client:
            try:
                client.sendall(GET)
                answer = client.recv(12)
            except ConnectionError:
                time.sleep(0.05)
    assert b"HTTP/1.1 200" == answer
    process.terminate()
    process.send_signal(2)
    logged = process.communicate(timeout=10)[1]
    server.shutdown()
    server.server_close()

    assert 0 == process.returncode
    assert 1 == logged.count("no more than 16 clients at a time")
