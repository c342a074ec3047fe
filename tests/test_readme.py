"""Every block of the README is true."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

from ratelimiter.cli.main import main
from ratelimiter.config.loader import load
from ratelimiter.dialects import loader
from ratelimiter.stores.memory import MemoryStore
from ratelimiter.testing import FakeClock
from tests.asgi.test_middleware import App, limited
from tests.asgi_client import get

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text()
BLOCKS = [
    (README[: match.start()].count("\n") + 2, match[1], match[2])
    for match in re.finditer(r"^```([^\n]*)\n(.*?)^```$", README, re.MULTILINE | re.DOTALL)
]
# What is no program of ours is told apart, so that a block of a new kind cannot slip by untested.
KINDS = {"sh", "http", "python", "console", "yaml policy", "yaml dialect"}


def blocks(kind: str) -> list[object]:
    return [pytest.param(text, id=f"line-{line}") for line, info, text in BLOCKS if info == kind]


def test_every_block_is_of_a_known_kind() -> None:
    """A block that no test runs would be a promise that nobody keeps."""
    assert set() == {info for _, info, _ in BLOCKS} - KINDS


@pytest.mark.parametrize("text", blocks("python"))
def test_python(text: str) -> None:
    """Runs as it stands, from the root of the repository."""
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", text], cwd=ROOT, capture_output=True, text=True, check=False
    )

    assert (0, "") == (done.returncode, done.stderr)


@pytest.mark.parametrize("text", blocks("yaml policy"))
def test_policy(text: str, tmp_path: Path) -> None:
    """Is a policy, and check-config has nothing against it."""
    file = tmp_path / "policy.yaml"
    file.write_text(text)

    assert load(file).rules
    assert 0 == main(["check-config", str(file)])


@pytest.mark.parametrize("text", blocks("yaml dialect"))
def test_dialect(text: str, tmp_path: Path) -> None:
    """Is a dialect, and can say what it promises."""
    file = tmp_path / "dialect.yaml"
    file.write_text(text)
    dialect = loader.load(file)

    assert dialect.answers
    assert all(dialect.reply_for_status(answer.status).status == answer.status for answer in dialect.answers.values())


@pytest.mark.parametrize("text", blocks("console"))
def test_console(text: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """Each command prints what is shown; `...` stands for the rest."""
    import shlex

    monkeypatch.chdir(ROOT)
    for command, shown in re.findall(r"^\$ (.*)\n((?:(?!\$ ).*\n)*)", text, re.MULTILINE):
        program, *arguments = shlex.split(command)
        assert "ratelimiter" == program
        assert 0 == main(arguments)
        printed = capsys.readouterr().out
        assert re.fullmatch(re.escape(shown.rstrip()).replace(r"\.\.\.", ".*"), printed.rstrip(), re.DOTALL), printed


async def test_http() -> None:
    """The refusal that is shown is the one that is sent, byte for byte."""
    (shown,) = (text for _, info, text in BLOCKS if info == "http")
    middleware = limited(App(), limit="60/minute")
    for _ in range(60):
        await get(middleware)
    answer = await get(middleware)
    head = "".join(f"{name.decode()}: {value.decode()}\n" for name, value in answer.start["headers"])

    assert shown == f"HTTP/1.1 429 Too Many Requests\n{head}\n{answer.body.decode()}\n"


def test_keys_max_is_as_stated() -> None:
    """The bound that the README states is the one in force."""
    assert "100,000 keys" in README
    assert 100_000 == MemoryStore(clock=FakeClock()).keys_max
