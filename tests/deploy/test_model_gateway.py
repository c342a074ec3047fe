"""The example with a stand-in for a language model: its policy, its server, and the compose file that joins them."""

from __future__ import annotations

import subprocess
import sys
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import openai
import pytest
from ruamel.yaml import YAML

from ratelimiter.cli.main import main
from ratelimiter.config.loader import load
from ratelimiter.proxy.pool import Target
from ratelimiter.stores.memory import MemoryStore
from tests.proxy.wire import sidecar

if TYPE_CHECKING:
    from collections.abc import Iterator

ROOT = Path(__file__).parent.parent.parent
POLICY = ROOT / "config" / "model-gateway.yaml"
SERVER = ROOT / "deploy" / "example" / "model" / "server.py"
FILE = ROOT / "deploy" / "models" / "compose.yaml"


@contextmanager
def stand_in() -> Iterator[int]:
    """The server on a free port."""
    with subprocess.Popen([sys.executable, str(SERVER), "0"], stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        try:
            yield int(process.stdout.readline())
        finally:
            process.terminate()


def test_the_policy_is_sound(capsys: pytest.CaptureFixture[str]) -> None:
    """No problem, and no doubt."""
    assert 0 == main(["check-config", str(POLICY)])
    assert "" == capsys.readouterr().err


def test_compose_takes_it() -> None:
    """By the schema of the compose specification; images are pinned, and the files that it mounts are there."""
    words = [sys.executable, "-m", "check_jsonschema", "--builtin-schema", "vendor.compose-spec", str(FILE)]
    services: dict[str, Any] = YAML(typ="safe").load(FILE)["services"]

    assert 0 == subprocess.run(words, check=False).returncode
    for service in services.values():
        assert service["image"] == "ratelimiter:local" or service["image"].rpartition(":")[2].count(".") == 2
        for volume in service.get("volumes", ()):
            assert (FILE.parent / volume.partition(":")[0]).exists()


async def test_budgets_hold_in_front_of_it() -> None:
    """Plain and streamed calls are settled by the stand-in's usage, in tokens and in money."""
    policy = load(POLICY)
    with stand_in() as port:
        target = Target("127.0.0.1", port)
        async with (
            sidecar(target, limit=None, config=policy, store=MemoryStore()) as proxy,
            openai.AsyncOpenAI(base_url=f"http://127.0.0.1:{proxy.port}/v1", api_key="me", max_retries=0) as client,
        ):
            ask: Any = {"model": "stand-in", "messages": [{"role": "user", "content": "one two three"}]}
            plain = await client.chat.completions.create(**ask, max_tokens=7)
            parts = [
                part
                async for part in await client.chat.completions.create(
                    **ask, max_tokens=5, stream=True, stream_options={"include_usage": True}
                )
            ]
            told = await client.chat.completions.with_raw_response.create(**ask, max_tokens=2)
            with pytest.raises(openai.RateLimitError) as caught:
                await client.chat.completions.create(**ask, max_tokens=100_001)

    assert plain.usage is not None
    assert parts[-1].usage is not None
    assert (10, 8) == (plain.usage.total_tokens, parts[-1].usage.total_tokens)
    reserved = 100_000 - int(told.headers["x-ratelimit-remaining-tokens"]) - 18
    assert 20 < reserved - 2 < 60  # the body's bytes by four or so
    assert "497" == told.headers["x-ratelimit-remaining-requests"]
    assert "Request too large" in str(caught.value)
