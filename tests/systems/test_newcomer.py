"""Goal: what a newcomer is told to do works. Method: the commands of docs/reference/systems.md, as they stand there."""

from __future__ import annotations

import contextlib
import io
import re
from typing import TYPE_CHECKING

from ratelimiter.cli.main import main as ratelimiter
from tests.stores.redis_server import wait_until
from tests.systems import client
from tests.systems.credentials import SECRET
from tests.systems.system import CONFIG

if TYPE_CHECKING:
    from collections.abc import Callable

    import pytest

    from tests.systems.scene import Scene

PAGE = (CONFIG.parent / "docs" / "reference" / "systems.md").read_text()


def test_a_key_is_made_while_the_sidecar_runs(
    running: Callable[[str, str], Scene], monkeypatch: pytest.MonkeyPatch
) -> None:
    """`ratelimiter keys new` prints a key and an entry, and with that entry in its file the key is good in a moment."""
    scene = running("intrace", "sidecar")
    monkeypatch.setenv("RATELIMITER_SECRET", SECRET)
    (words,) = re.findall(r"^ratelimiter (keys new .*)$", PAGE, re.MULTILINE)
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed):
        # Under another name, as all keys of one principal are charged together, and other tests have charged that one.
        assert 0 == ratelimiter(words.replace("batch-enrichment", "newcomer").split())
    key, entry = re.findall(r"\n(rl_\S+)\n.*?\n(  - hash:.*)", printed.getvalue(), re.DOTALL)[0]
    stranger = scene.stranger({"X-API-Key": key})
    assert 401 == scene.call(stranger).status_code
    file = scene.deployment.policy.parent / "keys" / "intrace.yaml"
    file.write_text(f"{file.read_text().removesuffix(']}')}, {as_json(entry)}]}}")

    wait_until(lambda: scene.call(stranger).status_code == 200, "the key is known", within_s=5)


def as_json(entry: str) -> str:
    """The entry as an item of the flow list that the tests write their key files in."""
    pairs = [line.strip(" -").split(": ", 1) for line in entry.strip().splitlines()]
    return "{" + ", ".join(f"{name}: {value}" for name, value in pairs) + "}"


def test_the_client_runs_from_the_command_line(capsys: pytest.CaptureFixture[str]) -> None:
    """As the page shows it, only with fewer calls and in one way."""
    (words,) = re.findall(r"^python -m tests.systems.client (.*)$", PAGE, re.MULTILINE)

    assert 0 == client.main([*words.split(), "--calls", "25", "--way", "sidecar"])
    assert re.search(r"answered 25 \(25 x 200\)", capsys.readouterr().out)
