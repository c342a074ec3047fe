"""Traffic that a real sidecar recorded, replayed: the verdicts are the same, request by request."""

from __future__ import annotations

import json
import random
from pathlib import Path as FilePath
from typing import TYPE_CHECKING

import pytest

from ratelimiter.replay.formats import format_of
from tests.replay.lines import answered, policy_file, replayed
from tests.sidecar.test_app import Process, upstream

if TYPE_CHECKING:
    from pathlib import Path

    from ratelimiter.replay.record import Record

pytestmark = pytest.mark.wall_clock  # it waits for real servers or timers

POLICY = """\
principal: %s
trusted_proxies: [127.0.0.0/8]
proxy: {access_log_caller: %s, access_log_refusals: %d}
rules:
  - {name: all, limit: 12/minute}
  - {name: exports, match: {path: /v1/exports/**}, limit: 4/minute}
  - {name: everybody, principal: everyone, limit: 60/minute}
"""


def recorded(folder: Path, principal: str, caller: str, refusals: int) -> tuple[str, str, list[int]]:
    """Send some requests through a sidecar; return its policy, its log and the statuses."""
    policy = policy_file(folder, POLICY % (principal, caller, refusals))
    log = folder / "access.json"
    chance = random.Random(3)  # noqa: S311  # the same traffic each time
    with upstream() as url:
        sidecar = Process("--upstream", url, "--config", policy, "--access-log", str(log))
        statuses = []
        for _ in range(90):
            who = chance.randrange(5)
            headers = {"X-API-Key": f"key-{who}", "X-Forwarded-For": f"192.0.2.9, 203.0.113.{who}"}
            statuses.append(sidecar.get(chance.choice(["/", "/v1/exports/7", "//v1/./items"]), headers)[0])
        sidecar.stop()
    return policy, str(log), statuses


@pytest.mark.parametrize(("principal", "caller"), [("client", "address"), ("header:X-API-Key", "digest")])
def test_recorded_traffic_replays_to_the_same_verdicts(tmp_path: Path, principal: str, caller: str) -> None:
    """With the caller in the log, by address or by digest, every request is refused in the replay if it was live."""
    policy, log, statuses = recorded(tmp_path, principal, caller, 1_000_000)
    replay = replayed(policy, log)
    again = replayed(policy, log)
    fresh = type(again.judge)(again.told.policy, named=caller == "digest")
    verdicts = []
    for record in sorted(_records(log), key=lambda record: record[0]):
        admitted, _ = fresh.judge(record)
        verdicts.append(200 if admitted else 429)

    assert {200, 429} == set(statuses)
    assert statuses == verdicts
    assert (90, statuses.count(429), 0) == (replay.judge.requests, replay.judge.refused, replay.judge.unattributed)
    text = (tmp_path / "access.json").read_text()
    assert "key-" not in text
    assert ("203.0.113.1" in text) == (caller == "address")


def _records(log: str) -> list[Record]:
    lines = FilePath(log).read_text().splitlines()
    read = format_of("auto", lines, place=log).open()
    return [record for line in lines if (record := read(line)) is not None]


def test_the_console_of_a_sidecar_shows_its_refusals(tmp_path: Path) -> None:
    """The page at the admin listener has the rules with their lines, and the refusal with its request id."""
    policy = policy_file(tmp_path, "dialect: intrace\nprincipal: header:X-API-Key\nrules:\n  - {limit: 2/minute}\n")
    with upstream() as url:
        sidecar = Process("--upstream", url, "--config", policy)
        statuses = [sidecar.get("/", {"X-API-Key": "k", "X-Request-Id": f"req-{at}"})[0] for at in range(3)]
        status, page = sidecar.get("/", admin=True)
        sidecar.stop()

    assert [200, 200, 429] == statuses
    assert 200 == status
    assert b"policy.yaml:4" in page
    assert 1 == page.count(b"<td>over limit</td>")
    assert b"<code>" in page.partition(b"Last refusals")[2]


def test_refusals_that_were_left_out_are_accounted_for(tmp_path: Path) -> None:
    """A log that was thinned out says how many refusals are missing, and so does the replay."""
    policy, log, statuses = recorded(tmp_path, "client", "address", 0)
    lines = [json.loads(line) for line in FilePath(log).read_text().splitlines()]

    answer = answered(policy, log)

    assert statuses.count(200) == answer["requests"] == len(lines)
    assert 0 == answer["refused"]
    assert answer["omitted"] == sum(line.get("omitted", 0) for line in lines) > 0
    assert any("were left out of the log" in note for note in answer["notes"])


def test_a_log_without_callers_is_not_judged(tmp_path: Path) -> None:
    """By default a line names no caller, and rules that need one say so."""
    policy, log, _ = recorded(tmp_path, "client", "none", 1_000_000)

    rules = answered(policy, log)["rules"]

    assert ["needs the address of the client", "needs the address of the client", None] == [
        rule["not_judged"] for rule in rules
    ]
