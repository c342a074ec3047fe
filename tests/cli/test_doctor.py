from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest

from ratelimiter.cli.main import main
from tests.stores.redis_server import RedisServer

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

pytestmark = pytest.mark.server


@pytest.fixture(scope="module")
def redis() -> Iterator[RedisServer]:
    with RedisServer() as server:
        yield server


def doctor(folder: Path, store: str, capsys: pytest.CaptureFixture[str]) -> tuple[int, dict[str, str]]:
    """Return the exit status, and the line of each check by its name."""
    policy = folder / "policy.yaml"
    policy.write_text("rules: [{limit: 60/minute}]\n")
    status = 0
    try:
        main(["doctor", "--config", str(policy), "--store", store])
    except SystemExit as left:
        status = int(str(left.code))
    lines = capsys.readouterr().out.splitlines()
    return status, {line[9:].partition(":")[0].partition(" to ")[0]: line for line in lines}


def test_a_sound_store_passes(redis: RedisServer, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Every check has a line, and the command ends with 0."""
    status, lines = doctor(tmp_path, redis.url, capsys)

    assert 0 == status
    assert {"policy", "connection", "version", "eviction", "clock", "script", "overrides"} == lines.keys()
    assert all(lines[name].startswith("ok") for name in ("policy", "connection", "version", "clock", "script"))


@pytest.mark.parametrize(
    ("wrong", "kind", "advice"),
    [
        ("redis://nobody:hush@{place}/0", "(authentication)", "check user and password"),
        ("redis://127.0.0.1:1/0", "(unreachable)", "check host, port and network policy"),
        ("rediss://{place}/0", "(", "rediss://"),
    ],
)
def test_what_is_wrong_comes_with_what_would_do(  # noqa: PLR0917 - a row of the table
    wrong: str, kind: str, advice: str, redis: RedisServer, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The command ends with 1, and no password is printed."""
    place = redis.url.removeprefix("redis://").partition("/")[0]
    status, lines = doctor(tmp_path, wrong.format(place=place), capsys)

    assert 1 == status
    assert lines["connection"].startswith("FAILED")
    assert kind in lines["connection"]
    assert advice in lines["connection"] or "rediss" in wrong
    assert "hush" not in "".join(lines.values())


def test_eviction_and_permissions(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A server that evicts counters fails; the ACL user of the documentation is enough for decisions."""
    with RedisServer() as server:
        client: Any = server.client()
        client.execute_command("CONFIG", "SET", "maxmemory-policy", "allkeys-lru")
        client.execute_command(
            "ACL", "SETUSER", "lim", "on", ">pw", "~rl1:*", "+evalsha", "+eval", "+get", "+set", "+time"
        )
        client.close()
        assert "allkeys-lru evicts counters" in doctor(tmp_path, server.url, capsys)[1]["eviction"]
        status, lines = doctor(tmp_path, server.url.replace("redis://", "redis://lim:pw@"), capsys)

    assert 0 == status
    assert lines["script"].startswith("ok")
    assert "grant +hget +hscan" in lines["overrides"]


def test_a_store_without_a_server_is_no_fault(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """There is nothing to check of the embedded store."""
    assert 0 == doctor(tmp_path, "memory://", capsys)[0]
