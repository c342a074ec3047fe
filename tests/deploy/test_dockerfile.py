"""The Dockerfile by rules of our own, and what it runs where no container engine is needed to run it."""

from __future__ import annotations

import contextlib
import fnmatch
import http.client
import json
import os
import re
import shlex
import signal
import socket
import subprocess
import sys
import tempfile
import time
import tomllib
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import pytest

from tests.deploy.cli_words import flags_of
from tests.deploy.container import DESCRIPTORS, SHELLS, Container, build_venv
from tests.stores.redis_server import free_port, wait_until

if TYPE_CHECKING:
    from collections.abc import Iterator

ROOT = Path(__file__).parent.parent.parent
TEXT = (ROOT / "Dockerfile").read_text()


class Instruction(NamedTuple):
    """One line of a Dockerfile, its continuations joined."""

    word: str
    rest: str
    stage: int  # 0 before the first FROM


def parsed(text: str) -> list[Instruction]:
    lines = re.sub(r"^\s*#.*\n", "", text, flags=re.MULTILINE).replace("\\\n", " ").splitlines()
    found, stage = [], 0
    for line in filter(str.strip, lines):
        word, _, rest = line.strip().partition(" ")
        stage += word == "FROM"
        found.append(Instruction(word, " ".join(rest.split()), stage))
    return found


INSTRUCTIONS = parsed(TEXT)
STAGES = max(one.stage for one in INSTRUCTIONS)


def final(word: str) -> list[str]:
    """What the image itself says with *word*."""
    return [one.rest for one in INSTRUCTIONS if one.word == word and one.stage == STAGES]


def exec_form(rest: str) -> list[str]:
    words: list[str] = json.loads(rest)
    return words


ENTRYPOINT = exec_form(final("ENTRYPOINT")[0])
COMMAND = exec_form(final("CMD")[0])
HEALTHCHECK = exec_form(final("HEALTHCHECK")[0].partition("CMD ")[2])
ENVIRON = dict(word.split("=", 1) for rest in final("ENV") for word in shlex.split(rest))


# --- What it says


def test_every_base_is_pinned() -> None:
    """By a tag that names a patch release and by a digest, in one place."""
    arguments = dict(one.rest.split("=", 1) for one in INSTRUCTIONS if one.word == "ARG")
    bases = [one.rest.split()[0] for one in INSTRUCTIONS if one.word == "FROM"]

    assert {"${PYTHON}"} == set(bases)
    assert re.fullmatch(r"python:3\.\d+\.\d+-slim-\w+@sha256:[0-9a-f]{64}", arguments["PYTHON"])


def test_it_is_built_in_stages() -> None:
    """What builds is left behind: the image has no compiler, and what installs is taken out."""
    run = " ".join(one.rest for one in INSTRUCTIONS if one.word == "RUN")
    removed = " ".join(final("RUN"))

    assert 2 <= STAGES
    assert {"pip", "setuptools", "wheel"} <= set(removed.split())
    assert "ensurepip" in removed
    assert not re.search(r"\b(apt|apt-get|apk|curl|wget|gcc|build-essential)\b", run)


def test_nothing_is_fetched_unseen() -> None:
    """No ADD, which fetches and unpacks; every package by version and hash, and never as source, which runs code."""
    installs = [
        part for one in INSTRUCTIONS if one.word == "RUN" for part in one.rest.split("&&") if "install " in part
    ]

    assert "ADD" not in {one.word for one in INSTRUCTIONS}
    assert installs
    for part in installs:
        if "uninstall" not in part and "--no-index" not in part:
            assert "--require-hashes" in part, part
            assert "--only-binary :all:" in part, part


def test_it_runs_as_nobody() -> None:
    """By number, as Kubernetes cannot tell from a name that it is not root; and root does nothing after that."""
    words = [one.word for one in INSTRUCTIONS if one.stage == STAGES]

    assert ["65532:65532"] == final("USER")
    assert not {"RUN", "COPY"} & set(words[words.index("USER") :])


def test_it_needs_no_shell() -> None:
    """Every command is a list of words, and the first is a path inside the venv."""
    for words in (ENTRYPOINT, HEALTHCHECK):
        assert words[0].startswith("/opt/ratelimiter/bin/")
    assert not any(word in SHELLS or word.endswith("/sh") for word in (*ENTRYPOINT, *COMMAND, *HEALTHCHECK))


def test_it_holds_no_secret() -> None:
    """Nothing that is built in looks like one, and the build is given nothing but the sources."""
    named = [name for name in ENVIRON if re.search("SECRET|PASSWORD|TOKEN|KEY", name)]
    ignored = [line for line in (ROOT / ".dockerignore").read_text().splitlines() if line and line[0] != "#"]

    assert [] == named
    assert "*" == ignored[0]
    needed = ["!LICENSE", "!pyproject.toml", "!README.md", "!deploy/image", "!ratelimiter"]
    assert needed == [line for line in ignored if line[0] == "!"]


def test_what_is_copied_is_there() -> None:
    """Every source of a COPY exists, and .dockerignore lets it in."""
    allowed = [line[1:] for line in (ROOT / ".dockerignore").read_text().splitlines() if line.startswith("!")]
    for one in INSTRUCTIONS:
        if one.word == "COPY" and not one.rest.startswith("--from"):
            for source in one.rest.split()[:-1]:
                assert (ROOT / source).exists()
                assert any(source == name or fnmatch.fnmatch(source, f"{name}/*") for name in allowed), source


def test_the_default_command_is_the_sidecar() -> None:
    """Our own parser takes it, and it listens where the image says and the health check looks."""
    flags = flags_of(COMMAND)

    assert ["8080 9090"] == final("EXPOSE")
    assert ("proxy", "0.0.0.0:8080", "0.0.0.0:9090") == (flags["command"], flags["listen"], flags["admin"])
    assert "9090" in HEALTHCHECK[-1]
    assert "/healthz" in HEALTHCHECK[-1]
    assert "/etc/ratelimiter/policy.yaml" == ENVIRON["RATELIMITER_CONFIG"]


def test_the_lock_has_what_the_package_needs() -> None:
    """Every dependency of a plain install, and what tokens need, is locked in a version that the package takes."""
    from packaging.requirements import Requirement

    lock = (ROOT / "deploy" / "image" / "requirements.txt").read_text()
    locked = dict(re.findall(r"^([\w-]+)==(\S+)", lock, re.MULTILINE))
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    for line in (*project["dependencies"], *project["optional-dependencies"]["jwt"]):
        needed = Requirement(line)
        name = needed.name.lower().replace(".", "-")
        assert name in locked, f"{line} is not in deploy/image/requirements.txt; its first lines say how to renew it"
        assert needed.specifier.contains(locked[name]), line


# --- What it runs

needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="imitating a container means mounting, and that needs root")

POLICY = "rules:\n  - name: per-minute\n    limit: 5/minute\n"


@cache
def upstream_folder() -> Path:
    folder = Path(tempfile.mkdtemp(prefix="ratelimiter-upstream-"))
    (folder / "hello.txt").write_text("hello\n")
    return folder


@pytest.fixture(scope="module")
def venv() -> Iterator[Path]:
    """As the image has it. Not below pytest's folder, which only its owner may enter."""
    with tempfile.TemporaryDirectory(prefix="ratelimiter-image-") as name:
        Path(name).chmod(0o755)
        yield build_venv(ROOT, Path(name))


@pytest.fixture
def policies() -> Iterator[Path]:
    with tempfile.TemporaryDirectory(prefix="ratelimiter-policies-") as name:
        Path(name).chmod(0o755)
        (Path(name) / "policy.yaml").write_text(POLICY)
        yield Path(name)


@pytest.fixture
def container(venv: Path, policies: Path, tmp_path: Path) -> Container:
    root = tmp_path / "root"
    root.mkdir()
    return Container(root, venv, policies, ENVIRON)


@pytest.fixture
def upstream() -> Iterator[int]:
    """A server that nobody here wrote."""
    port = free_port()
    words = [sys.executable, "-m", "http.server", str(port), "--bind", "127.0.0.1", "-d", str(upstream_folder())]
    with subprocess.Popen(words, stderr=subprocess.DEVNULL) as process:
        wait_until(lambda: accepts(port), "the upstream listens")
        yield port
        process.kill()


def accepts(port: int) -> bool:
    with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), timeout=1):
        return True
    return False


def get(port: int, path: str) -> tuple[int, bytes]:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=5)
    with contextlib.closing(connection):
        connection.request("GET", path)
        answer = connection.getresponse()
        return answer.status, answer.read()


# What a process can tell of the container that it is in.
LOOK = """
import json, os, resource, subprocess

def refused(act):
    try:
        act()
    except OSError as fault:
        return fault.strerror

lines = open("/proc/self/status").read().splitlines()
status = dict(line.split(":\\t") for line in lines if ":\\t" in line)
print(json.dumps([
    [refused(lambda: open(name, "w")) for name in ("/tmp/x", "/opt/ratelimiter/x", "/etc/ratelimiter/x")],
    [os.getuid(), *os.getgroups()],
    [int(status["CapBnd"], 16), int(status["CapEff"], 16), status["NoNewPrivs"]],
    resource.getrlimit(resource.RLIMIT_NOFILE)[0],
    bool(refused(lambda: subprocess.run(["/bin/sh", "-c", ""]))),
]))
"""


@needs_root
def test_the_container_is_one(container: Container) -> None:
    """The imitation holds what it promises: nothing can be written, nobody is root, there is no shell."""
    seen = container.run(["/opt/ratelimiter/bin/python", "-c", LOOK])

    assert "" == seen.stderr
    assert [["Read-only file system"] * 3, [65532], [0, 0, "1"], DESCRIPTORS, True] == json.loads(seen.stdout)


@needs_root
def test_it_serves_and_stops(container: Container, upstream: int) -> None:
    """Its own command limits what comes for a server that knows nothing of it, is healthy by its own check, and ends
    with 0 when it is told to; all of that without writing a file.
    """
    data, admin = free_port(), free_port()
    # Repeated flags win: the command stays what the image says, at ports that are free here.
    ports = ["--listen", f"127.0.0.1:{data}", "--admin", f"127.0.0.1:{admin}"]
    command = [*ENTRYPOINT, *COMMAND, *ports, "--upstream", f"http://127.0.0.1:{upstream}"]
    check = [word.replace("9090", str(admin)) for word in HEALTHCHECK]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT}
    with container.start(command, **pipes) as process:
        try:
            wait_until(lambda: process.poll() is not None or accepts(data), "the sidecar listens")
            answers = [get(data, "/hello.txt") for _ in range(7)]
            health = container.run(check).returncode
            told = [get(admin, path)[0] for path in ("/readyz", "/metrics", "/policy")]
            begun_s = time.monotonic()
            process.send_signal(signal.SIGTERM)
            out, _ = process.communicate(timeout=30)
        finally:
            process.kill()

    assert [200] * 5 + [429] * 2 == [status for status, _ in answers], out
    assert b"hello\n" == answers[0][1]
    assert 0 == health
    assert [200, 200, 200] == told
    assert 0 == process.returncode, out
    assert "Traceback" not in out
    assert 30 > time.monotonic() - begun_s


@needs_root
def test_several_workers_want_a_tmpfs(venv: Path, policies: Path, tmp_path: Path, upstream: int) -> None:
    """With /tmp on a tmpfs, as docs/howto/containers.md says, two workers are one scrape whose sums are right."""
    (tmp_path / "root").mkdir()
    container = Container(tmp_path / "root", venv, policies, ENVIRON, tmpfs="/tmp")  # noqa: S108
    data, admin = free_port(), free_port()
    ports = ["--listen", f"127.0.0.1:{data}", "--admin", f"127.0.0.1:{admin}", "--workers", "2"]
    command = [*ENTRYPOINT, *COMMAND, *ports, "--upstream", f"http://127.0.0.1:{upstream}"]
    with container.start(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT) as process:
        try:
            wait_until(lambda: process.poll() is not None or accepts(data), "the sidecar listens")
            for _ in range(20):
                get(data, "/hello.txt")
            wait_until(lambda: counted(admin) == 20, "all are counted, whoever is asked")
            process.send_signal(signal.SIGTERM)
            out, _ = process.communicate(timeout=30)
        finally:
            process.kill()

    assert 0 == process.returncode, out
    assert "Traceback" not in out


def counted(admin: int) -> float:
    """Requests that one scrape tells of."""
    _, body = get(admin, "/metrics")
    return sum(
        float(number) for number in re.findall(r"^ratelimiter_requests_total\S* (\S+)$", body.decode(), re.MULTILINE)
    )


@needs_root
def test_a_dead_sidecar_is_unhealthy(container: Container) -> None:
    """The health check fails where nobody listens, in one line of its own at most."""
    check = [word.replace("9090", str(free_port())) for word in HEALTHCHECK]

    assert 0 != container.run(check).returncode


@needs_root
def test_without_a_policy_it_says_so(container: Container, policies: Path) -> None:
    """A mount that was forgotten ends the container at once with the path that is missing."""
    (policies / "policy.yaml").unlink()
    ended = container.run([*ENTRYPOINT, *COMMAND])

    assert 2 == ended.returncode
    assert "/etc/ratelimiter/policy.yaml" in ended.stderr
