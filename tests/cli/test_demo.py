"""The demo as a newcomer meets it: started from the command line, and tried with the lines that it prints."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from contextlib import contextmanager
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from collections.abc import Iterator


@contextmanager
def demo(*arguments: str) -> Iterator[list[str]]:
    """`ratelimiter demo` on a free port; the lines that it tells to try."""
    command = [sys.executable, "-m", "ratelimiter", "demo", "--listen", "127.0.0.1:0", *arguments]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as server:
        assert server.stdout is not None
        printed: list[str] = []
        try:
            while (line := server.stdout.readline()).strip():
                printed.append(line.strip())
            yield printed[printed.index("Try:") + 1 :]
        finally:
            server.terminate()


def run(line: str) -> str:
    return subprocess.run(["bash", "-c", line], capture_output=True, text=True, check=True).stdout  # noqa: S607


@pytest.mark.parametrize("dialect", ["problem", "intrace", "trace"])
def test_the_lines_it_prints_do_what_they_promise(dialect: str) -> None:
    """One admitted request with figures, exactly the limit of seventy, and an error in the dialect."""
    with demo("--dialect", dialect) as (one, seventy, missing):
        first = run(one)
        counted = run(seventy)
        error = run(missing)

    assert first.startswith("HTTP/1.1 200 OK")
    assert "x-ratelimit-remaining: 59" in first
    assert [("59", "200"), ("11", "429")] == re.findall(r"(\d+) (\d+)", counted)
    assert error.startswith("HTTP/1.1 404 Not Found")
    assert json.loads(error.splitlines()[-1])


def test_a_wrong_argument_is_told_without_a_traceback() -> None:
    """What cannot be used is named, with what would do, and the exit code is 2."""
    command = [sys.executable, "-m", "ratelimiter", "demo", "--listen", "8080"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)

    assert (2, "--listen: '8080' is not HOST:PORT, like 127.0.0.1:8080\n") == (done.returncode, done.stderr)
