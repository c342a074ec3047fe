from __future__ import annotations

import json
from typing import TYPE_CHECKING

import pytest

from ratelimiter.cli.main import main
from tests.stores.redis_server import RedisServer

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path


@pytest.fixture(scope="module")
def redis() -> Iterator[RedisServer]:
    with RedisServer() as server:
        yield server


@pytest.fixture
def policy(redis: RedisServer, tmp_path: Path) -> str:
    path = tmp_path / "policy.yaml"
    path.write_text(
        f"name: {tmp_path.name[:60].lower()}\nstore: {redis.url}\nprincipal: [header:X-API-Key, client]\n"
        "rules: [{limit: 60/minute}]\n"
    )
    return str(path)


def said(capsys: pytest.CaptureFixture[str], *words: str) -> str:
    assert 0 == main(list(words))
    return capsys.readouterr().out


def test_a_block_of_a_key_that_was_never_seen_says_so(policy: str, capsys: pytest.CaptureFixture[str]) -> None:
    """A misspelt key is blocked, and the operator is told that nothing was counted of it."""
    told = said(capsys, "block", "header:X-API-Key=alcie", "--config", policy)

    assert told.endswith(": blocked; nothing has been counted of it, so check its name\n")
    assert "nothing has been counted" not in said(capsys, "block", "client=10.0.0.0/8", "--config", policy)


def test_who_and_why_are_in_audit_and_list(policy: str, capsys: pytest.CaptureFixture[str]) -> None:
    """--as and --reason are shown by both, also where the process has no user name."""
    why = ("--as", "ann", "--reason", "ticket 7: scraping", "--config", policy)
    said(capsys, "block", "header:X-API-Key=bob", *why)
    said(capsys, "override", "set", "header:X-API-Key=carol", "--limit", "600/minute", *why)
    said(capsys, "shadow", "on", *why)

    listed = said(capsys, "override", "list", "--config", policy).splitlines()
    assert 4 == len(listed)
    assert all("user:ann" in line and "ticket 7: scraping" in line for line in listed[1:])
    audit = json.loads(said(capsys, "audit", "--json", "--config", policy))
    assert ["shadow", "override set", "block"] == [line["verb"] for line in audit[:3]]
    assert {("user:ann", "ticket 7: scraping")} == {(line["who"], line["reason"]) for line in audit[:3]}
    assert "ticket 7: scraping" in said(capsys, "audit", "--config", policy)


@pytest.mark.parametrize("flag", ["--as", "--reason"])
def test_an_author_and_a_reason_are_one_line(flag: str, policy: str, capsys: pytest.CaptureFixture[str]) -> None:
    """A line break could forge an audit line."""
    assert 2 == main(["unblock", "client=192.0.2.1", flag, "a\nb", "--config", policy])
    assert capsys.readouterr().err.startswith(f"{flag}: is not one line of at most ")
