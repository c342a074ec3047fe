"""The examples' nginx, with its own configuration and command line, at a free port and in folders of this machine."""

from __future__ import annotations

import contextlib
import http.client
import os
import re
import shutil
import subprocess
from typing import TYPE_CHECKING

from tests.stores.redis_server import free_port, wait_until

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from pathlib import Path


@contextlib.contextmanager
def nginx(command: Sequence[str], folder: Path) -> Iterator[int]:
    """Run *command*, whose /etc/api is *folder*; gives the port. The folder is written to."""
    assert shutil.which("nginx"), "nginx is missing, the API of the examples: apt-get install nginx-light"
    port = free_port()
    text = (folder / "nginx.conf").read_text()
    text, listens = re.subn(r"listen (127\.0\.0\.1:)?8000;", f"listen 127.0.0.1:{port};", text)
    assert 1 == listens
    text = text.replace("/tmp/", f"{folder}/").replace("/etc/api", str(folder))  # noqa: S108
    # Started by root, its worker is nobody, who may not enter the folders of tests.
    user = "user root;\n" if os.geteuid() == 0 else ""
    (folder / "nginx.conf").write_text(user + text)
    with subprocess.Popen([word.replace("/etc/api", str(folder)) for word in command]) as process:
        try:
            wait_until(lambda: status(port, "/health") == 200, "nginx answers")
            yield port
        finally:
            process.terminate()


def status(port: int, path: str) -> int | None:
    try:
        with contextlib.closing(http.client.HTTPConnection("127.0.0.1", port, timeout=5)) as connection:
            connection.request("GET", path)
            return connection.getresponse().status
    except OSError:
        return None
