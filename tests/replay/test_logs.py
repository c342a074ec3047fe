"""Where lines come from and in which order they are judged; what cannot be read is counted."""

from __future__ import annotations

import bz2
import gzip
import io
import json
import lzma
import random
import sys
from typing import TYPE_CHECKING

import pytest
import zstandard
from hypothesis import given
from hypothesis import strategies as st

from ratelimiter.config.loader import load
from ratelimiter.core.planner import Planner
from ratelimiter.core.request import Request
from ratelimiter.errors import ConfigError
from ratelimiter.replay.ordering import Disorder, in_order
from ratelimiter.replay.record import Record
from ratelimiter.stores.memory import MemoryStore
from tests.replay.lines import T0_S, answered, as_json, combined, policy_file, replayed, write

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

POLICY = "principal: client\nrules: [{limit: 3/minute}]\n"
LINES = [combined(T0_S + at, "10.1.0.1") for at in range(10)]
TEXT = "".join(f"{line}\n" for line in LINES).encode()


@pytest.mark.parametrize("pack", [bytes, gzip.compress, bz2.compress, lzma.compress, zstandard.compress])
def test_logs_may_be_compressed(tmp_path: Path, pack: Callable[[bytes], bytes]) -> None:
    """Plain, gzip, bz2, xz and zstd are told by their first bytes, whatever the file is called."""
    (tmp_path / "log").write_bytes(pack(TEXT))

    assert 7 == answered(policy_file(tmp_path, POLICY), str(tmp_path / "log"))["refused"]


def test_members_that_follow_each_other_are_read(tmp_path: Path) -> None:
    """Several gzip members or zstd frames in one file, as `cat` and rotating loggers make them, are all read."""
    (tmp_path / "a").write_bytes(gzip.compress(TEXT[: len(TEXT) // 2]) + gzip.compress(TEXT[len(TEXT) // 2 :]))
    (tmp_path / "b").write_bytes(
        zstandard.compress(TEXT[: len(TEXT) // 2]) + zstandard.compress(TEXT[len(TEXT) // 2 :])
    )
    policy = policy_file(tmp_path, POLICY)

    assert [10, 10] == [answered(policy, str(tmp_path / name))["requests"] for name in "ab"]


def test_a_truncated_archive_is_said_and_counts_as_far_as_it_goes(tmp_path: Path) -> None:
    """A gzip file that was cut off is read to there, and a note says so."""
    text = "".join(combined(T0_S + at, f"10.1.{at % 250}.{at % 249}") + "\n" for at in range(20_000)).encode()
    packed = gzip.compress(text)
    (tmp_path / "log.gz").write_bytes(packed[: len(packed) // 2])

    answer = answered(policy_file(tmp_path, POLICY), str(tmp_path / "log.gz"))

    assert 0 < answer["requests"] < 20_000
    assert any("cannot be read to its end" in note for note in answer["notes"])


def test_standard_input_is_a_log(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """`-` reads standard input."""
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(TEXT)))

    assert 10 == answered(policy_file(tmp_path, POLICY), "-")["requests"]


def test_rotated_logs_are_one(tmp_path: Path) -> None:
    """A rotated set, named by a pattern and in the wrong order, is judged as the one log that it was."""
    whole = [as_json(T0_S * 1000 + 731 * at, f"10.1.0.{at % 3}") for at in range(300)]
    one = answered(policy_file(tmp_path, POLICY), write(tmp_path / "whole", whole))
    write(tmp_path / "access.log", whole[200:])
    write(tmp_path / "access.log.1", whole[100:200])
    (tmp_path / "access.log.2.gz").write_bytes(gzip.compress("\n".join(whole[:100]).encode()))

    answer = answered(str(tmp_path / "policy.yaml"), str(tmp_path / "access.log*"))

    same = ("requests", "refused", "callers", "callers_refused", "from", "to", "timeline", "rules")
    assert {name: one[name] for name in same} == {name: answer[name] for name in same}
    assert one["refused"] > 0


def test_logs_of_several_servers_are_merged(tmp_path: Path) -> None:
    """Two servers wrote at the same time: their requests are judged in the order of time."""
    whole = [as_json(T0_S * 1000 + 731 * at, f"10.1.0.{at % 3}") for at in range(300)]
    one = answered(policy_file(tmp_path, POLICY), write(tmp_path / "whole", whole))

    answer = answered(
        str(tmp_path / "policy.yaml"), write(tmp_path / "b", whole[1::2]), write(tmp_path / "a", whole[::2])
    )

    assert (one["refused"], one["rules"]) == (answer["refused"], answer["rules"])


@given(st.lists(st.integers(0, 200_000), max_size=80), st.integers(1, 9), st.integers(0, 1000))
def test_disorder_within_the_bound_is_sorted(times: list[int], size: int, seed: int) -> None:
    """Whatever the order in the file: if no line is later than the bound, records come in the order of their times."""
    jitter = random.Random(seed)  # noqa: S311  # no secret
    filed = sorted(times, key=lambda at: at + jitter.randrange(5000))
    records = [Record(at, "GET", "/", 200, None) for at in filed]
    disorder = Disorder()
    batches = [records[at : at + size] for at in range(0, len(records), size)]

    found = [record.start_ms for batch in in_order(batches, disorder, bound_ms=5000) for record in batch]

    assert sorted(times) == found
    assert 0 == disorder.late


def test_lines_beyond_the_bound_are_counted_and_judged(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A line that comes too late is judged at the moment that the replay has reached, and a note says how many did."""
    monkeypatch.setattr("ratelimiter.replay.sources.CHUNK", 500)
    lines = [combined(T0_S + at, "10.1.0.1") for at in [*range(0, 1000, 10), 5]]

    answer = answered(policy_file(tmp_path, POLICY), write(tmp_path / "log", lines))

    assert 101 == answer["requests"]
    assert 1 == answer["logs"][0]["late"]
    assert any("too late" in note for note in answer["notes"])


def test_unread_lines_are_counted_by_kind_with_the_first_of_each(tmp_path: Path) -> None:
    """Each kind is told with its first line's place; queries are left out, as they may hold credentials."""
    lines = [*LINES, "what?api_key=secret is this", LINES[0].replace("GET / HTTP/1.1", "GARBAGE"), "and this", ""]

    answer = answered(policy_file(tmp_path, POLICY), write(tmp_path / "log", lines))
    kinds = {each["kind"]: (each["lines"], each["first"]["place"]) for each in answer["unread_kinds"]}

    assert (10, 3) == (answer["requests"], answer["unread"])
    assert (2, f"{tmp_path}/log:11") == kinds["does not fit the format"]
    assert [1] == [count for kind, (count, _) in kinds.items() if kind.startswith("no request line")]
    assert "secret" not in json.dumps(answer)


def test_a_line_without_end_does_not_fill_the_memory(tmp_path: Path) -> None:
    """A line above 1 MiB is unread, and the next one is read."""
    (tmp_path / "log").write_bytes(TEXT + b"x" * 3_000_000 + b"\n" + TEXT)

    answer = answered(policy_file(tmp_path, POLICY), str(tmp_path / "log"))

    assert (20, 1) == (answer["requests"], answer["unread"])


def test_lines_of_windows_and_of_foreign_bytes_are_read(tmp_path: Path) -> None:
    """Carriage returns at the end and bytes that are not UTF-8 change no number."""
    foreign = LINES[0].replace("curl", "c\udcfcrl").encode(errors="surrogateescape")
    (tmp_path / "log").write_bytes(TEXT.replace(b"\n", b"\r\n") + foreign + b"\n")

    answer = answered(policy_file(tmp_path, POLICY), str(tmp_path / "log"))

    assert (11, 0) == (answer["requests"], answer["unread"])


@pytest.mark.parametrize(
    ("place", "match"), [("missing.log", "no such log"), ("x*.nothing", "no such log"), ("", "is a folder")]
)
def test_a_log_that_is_not_there_is_said(tmp_path: Path, place: str, match: str) -> None:
    """The error names the place and what would do."""
    with pytest.raises(ConfigError, match=match):
        answered(policy_file(tmp_path, POLICY), str(tmp_path / place))


# --- Rules that a log cannot judge


@pytest.mark.parametrize(
    ("rule", "reason"),
    [
        ("{limit: 3/minute, principal: 'header:X-API-Key'}", "needs header X-Api-Key"),
        ("{limit: 3/minute, principal: bearer}", "needs header Authorization"),
        ("{limit: 3/minute, match: {json: {depth: deep}}}", "needs the body"),
        ("{limit: 3/minute, match: {host: api.example.com}}", "needs the host"),
        ("{limit: 3/minute, match: {header: {X-Beta: '1'}}}", "needs header X-Beta"),
        ("{limit: 3/minute, principal: [['header:X-API-Key', client]]}", "needs header X-Api-Key"),
        ("{limit: 3/minute, principal: 'cookie:session'}", "needs header Cookie"),
        ("{limit: 3/minute, principal: 'json:model'}", "needs the body"),
        ("{limit: 3/minute, principal: identified}", "needs credentials that were verified"),
        ("{limit: 3 concurrent}", "needs durations, to know what runs at the same time"),
        ("{limit: 3/minute, cost: 2, cost_from: response_header X-Cost}", "needs response header X-Cost"),
        ("{limit: 3/minute, cost: 1, cost_from: request_header X-Cost}", "needs header X-Cost"),
        ("{limit: 3/minute, cost: 2, cost_from: response_json usage.units}", "needs the body of the response"),
        ("{limit: 3/minute, tokens: openai}", "needs tokens of each call"),
    ],
)
def test_a_rule_that_needs_more_than_the_log_tells_is_not_judged(tmp_path: Path, rule: str, reason: str) -> None:
    """It says what it needs, and the other rules are judged."""
    policy = policy_file(tmp_path, f"principal: client\nrules:\n  - {rule}\n  - {{name: other, limit: 4/hour}}\n")

    first, other = answered(policy, write(tmp_path / "log", LINES))["rules"]

    assert (False, 0) == (first["judged"], first["refused"])
    assert first["not_judged"].startswith(reason)
    assert (True, 6) == (other["judged"], other["refused"])


FORMATS = ("csv", "json", "xml")
CONDITIONS = [
    ("match: {query: {format: csv}}", 40),
    ("match: {header: {X-Beta: '1'}}", 20),
    ("match: {host: api.example.com}", 60),
    ("match: {networks: [10.1.0.0/31]}", 60),
    ("match: {path: '/v1/{id}'}, principal: 'path:id'", 120),
    ("principal: 'query:format'", 120),
    ("principal: [['query:format', client]]", 120),
    ("match: {path: /v1/3}, instead: true", 30),
]


@pytest.mark.parametrize(("stated", "requests"), CONDITIONS, ids=[stated for stated, _ in CONDITIONS])
def test_conditions_and_keys_of_the_request_are_those_of_the_planner(
    tmp_path: Path, stated: str, requests: int
) -> None:
    """Whatever a rule asks of host, query, headers, client or path: the replay judges as planner and store do."""
    lines = [
        as_json(
            T0_S * 1000 + 400 * at, f"10.1.0.{at % 4}", f"/v1/{at % 4}?format={FORMATS[at % 3]}",
            http_host=("api.example.com", "other")[at % 2], http_x_beta=str(at % 6),
        )
        for at in range(120)
    ]  # fmt: skip
    rules = f"[{{name: base, limit: 9/minute}}, {{name: own, limit: 3/10 seconds, {stated}}}]"
    policy = policy_file(tmp_path, f"principal: client\nrules: {rules}\n")
    now_ms = [0]
    store, planner = MemoryStore(clock=lambda: now_ms[0]), Planner(load(policy))
    refused = 0
    for at in range(120):
        now_ms[0] = T0_S * 1000 + 400 * at
        headers = ((b"host", (b"api.example.com", b"other")[at % 2]), (b"x-beta", str(at % 6).encode()))
        target = f"/v1/{at % 4}?format={FORMATS[at % 3]}".encode()
        hits = planner.hits(Request("GET", target, headers, f"10.1.0.{at % 4}"))
        refused += bool(hits) and not store.charge_now(hits).admitted

    answer = answered(policy, write(tmp_path / "log", lines))

    assert (refused, requests) == (answer["refused"], answer["rules"][1]["requests"])
    assert refused > 0


def test_limits_by_plan_need_the_header_that_names_it(tmp_path: Path) -> None:
    """`not judged: needs header X-Plan`, unless the log has it."""
    policy = policy_file(
        tmp_path,
        "principal: client\nplan: {from: 'header:X-Plan', default: free}\ntrusted_proxies: [10.0.0.0/8]\n"
        "rules: [{limit: {free: 2/minute, gold: 5/minute}}]\n",
    )
    log = [
        as_json(T0_S * 1000 + at, "10.1.0.1", http_x_plan="gold", http_x_forwarded_for="192.0.2.1") for at in range(8)
    ]

    assert "needs header X-Plan" == answered(policy, write(tmp_path / "a", LINES))["rules"][0]["not_judged"]
    assert 3 == answered(policy, write(tmp_path / "b", log))["refused"]


def test_an_alternative_that_the_log_tells_is_judged_with_a_note(tmp_path: Path) -> None:
    """Of `[header:X-API-Key, client]` a log without the header tells the client, and the answer says so."""
    policy = policy_file(tmp_path, "principal: ['header:X-API-Key', client]\nrules: [{limit: 3/minute}]\n")

    rule = answered(policy, write(tmp_path / "log", LINES))["rules"][0]

    assert 7 == rule["refused"]
    assert "judged by client, as the log does not tell header X-Api-Key" == rule["note"]


def test_a_field_of_the_log_can_stand_for_the_caller(tmp_path: Path) -> None:
    """`--principal api_key` charges the rule of `header:X-API-Key`, and one by client, to that field."""
    lines = [as_json(T0_S * 1000 + at, f"10.1.0.{at}", key=f"k{at % 2}") for at in range(10)]
    for principal in ("header:X-API-Key", "client"):
        policy = policy_file(tmp_path, f"principal: '{principal}'\nrules: [{{limit: 3/minute}}]\n")

        answer = answered(policy, write(tmp_path / "log", lines), principal="key", names=True)

        assert (4, 2) == (answer["refused"], answer["callers"])
        assert ["k0", "k1"] == sorted(each["caller"] for each in answer["top"])


def test_forwarded_addresses_are_walked_as_live(tmp_path: Path) -> None:
    """With trusted proxies the client is the first address from the right that is none of them."""
    lines = [as_json(T0_S * 1000 + at, "10.0.0.1", xff=f"192.0.2.9, 203.0.113.{at % 2}, 10.0.0.2") for at in range(10)]
    policy = policy_file(tmp_path, "principal: client\ntrusted_proxies: [10.0.0.0/8]\nrules: [{limit: 3/minute}]\n")

    answer = answered(policy, write(tmp_path / "log", lines), names=True)

    assert (4, 2) == (answer["refused"], answer["callers"])
    assert ["203.0.113.0", "203.0.113.1"] == sorted(each["caller"] for each in answer["top"])


def test_names_are_digests_unless_they_are_asked_for(tmp_path: Path) -> None:
    """No address and no key is in an answer by default."""
    answer = answered(policy_file(tmp_path, POLICY), write(tmp_path / "log", LINES))

    assert 32 == len(answer["top"][0]["caller"])
    assert "10.1.0.1" not in json.dumps(answer)


def test_a_timeline_widens_and_loses_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A year of minutes becomes fewer, wider steps with the same sums."""
    monkeypatch.setattr("ratelimiter.replay.run.POINTS_MAX", 8)
    lines = [combined(T0_S + 3600 * at, "10.1.0.1") for at in range(100)]
    replay = replayed(policy_file(tmp_path, POLICY), write(tmp_path / "log", lines))

    assert len(replay.timeline.points) <= 8
    assert 100 == sum(point[0] for point in replay.timeline.points.values())
