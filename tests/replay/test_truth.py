"""The numbers of a replay against an exact log that remembers everything."""

from __future__ import annotations

import random
from collections import Counter, defaultdict
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from ratelimiter.config.loader import load
from ratelimiter.errors import ConfigError
from ratelimiter.replay.answer import answer_of
from ratelimiter.replay.parts import processes_for, run_parted
from ratelimiter.replay.run import Replay
from tests.exact_log import ExactLog
from tests.replay.lines import T0_S, answered, as_json, combined, policy_file, replayed, write

if TYPE_CHECKING:
    from pathlib import Path

    from ratelimiter.replay.parts import Part

WINDOW_MS = 10_000
ROOMY = settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None, max_examples=60)

clients = st.sampled_from(["10.1.0.1", "10.1.0.2", "10.1.0.3"])
gaps_ms = st.sampled_from([0, 1, 500, WINDOW_MS - 1, WINDOW_MS, WINDOW_MS + 1]) | st.integers(0, WINDOW_MS)
traffic = st.lists(st.tuples(gaps_ms, clients, st.sampled_from(["/", "/v1/a"])), min_size=1, max_size=60)


def requests_of(steps: list[tuple[int, str, str]]) -> list[tuple[int, str, str]]:
    found, at_ms = [], T0_S * 1000
    for gap_ms, client, path in steps:
        at_ms += gap_ms // 3
        found.append((at_ms, client, path))
    return found


@ROOMY
@given(traffic, st.integers(1, 5), st.integers(1, 3))
def test_refusals_are_those_of_an_exact_log(
    tmp_path: Path, steps: list[tuple[int, str, str]], limit: int, other: int
) -> None:
    """Two rules, all or nothing: each request is refused exactly when the exact logs refuse it."""
    requests = requests_of(steps)
    policy = policy_file(
        tmp_path,
        f"principal: client\nrules:\n  - {{name: all, limit: {limit}/10 seconds}}\n"
        f"  - {{name: v1, match: {{path: /v1/**}}, limit: {other}/5 seconds}}\n",
    )
    every: dict[str, ExactLog] = defaultdict(lambda: ExactLog(limit, WINDOW_MS))
    v1: dict[str, ExactLog] = defaultdict(lambda: ExactLog(other, 5000))
    refused: Counter[str] = Counter()
    for at_ms, client, path in requests:
        logs = [("all", every[client])] + ([("v1", v1[client])] if path != "/" else [])
        full = [name for name, log in logs if log.used(at_ms) + 1 > log.limit]
        for name in full:
            refused[name] += 1
        if full:
            refused["request"] += 1
            continue
        for _, log in logs:
            log.note(1, at_ms)

    answer = answered(policy, write(tmp_path / "log", [as_json(*request) for request in requests]))

    assert (len(requests), refused["request"]) == (answer["requests"], answer["refused"])
    assert [refused["all"], refused["v1"]] == [rule["refused"] for rule in answer["rules"]]


@ROOMY
@given(traffic, st.integers(1, 6))
def test_the_smallest_limit_is_the_smallest(tmp_path: Path, steps: list[tuple[int, str, str]], limit: int) -> None:
    """With the limit that touches nobody nothing is refused, and with one less something is, whatever the limit was."""
    log = write(tmp_path / "log", [as_json(*request) for request in requests_of(steps)])

    def told(limit: int) -> dict[str, int]:
        answer = answered(policy_file(tmp_path, f"principal: client\nrules: [{{limit: {limit}/10 seconds}}]\n"), log)
        return {"refused": answer["refused"], "smallest": answer["rules"][0]["smallest_limit"]["nobody"]}

    smallest = told(limit)["smallest"]

    assert {"refused": 0, "smallest": smallest} == told(smallest)
    assert smallest == 1 or told(smallest - 1)["refused"] > 0


@ROOMY
@given(st.lists(st.tuples(st.integers(0, 3), st.integers(0, 999), clients), min_size=1, max_size=50), st.integers(1, 4))
def test_the_truth_lies_between_at_least_and_at_most(
    tmp_path: Path, steps: list[tuple[int, int, str]], limit: int
) -> None:
    """Of a log of whole seconds the bounds hold whatever the milliseconds were, also where ends became starts."""
    at_s, times = T0_S, []
    for gap_s, ms, client in steps:
        at_s += gap_s
        times.append((at_s * 1000 + ms, client))
    times.sort()
    policy = policy_file(tmp_path, f"principal: client\nrules: [{{limit: {limit}/3 seconds}}]\n")
    exact = answered(policy, write(tmp_path / "exact", [as_json(at_ms, client) for at_ms, client in times]))["refused"]
    coarse = [combined(at_ms // 1000, client) for at_ms, client in times]

    answer = answered(policy, write(tmp_path / "coarse", coarse))

    assert answer["at_least"]["refused"] <= exact <= answer["at_most"]["refused"]
    assert answer["rules"][0]["at_least"]["refused"] <= exact <= answer["rules"][0]["at_most"]["refused"]
    assert answer["at_least"]["refused"] <= answer["refused"] <= answer["at_most"]["refused"]


@ROOMY
@given(traffic)
def test_above_128_units_no_more_than_the_rounding_is_refused(
    tmp_path: Path, steps: list[tuple[int, str, str]]
) -> None:
    """A window in cells refuses at least what an exact log refuses (strict), as live."""
    requests = [request for request in requests_of(steps) for _ in range(40)]
    policy = policy_file(tmp_path, "principal: client\nrules: [{limit: 130/10 seconds}]\n")
    logs: dict[str, ExactLog] = defaultdict(lambda: ExactLog(130, WINDOW_MS))
    exact = sum(not logs[client].charge(1, at_ms) for at_ms, client, _ in requests)

    answer = answered(policy, write(tmp_path / "log", [as_json(*request) for request in requests]))

    assert exact <= answer["refused"]


def test_other_algorithms_are_shown_for_what_they_are(tmp_path: Path) -> None:
    """A burst across the border of a fixed window lets twice the limit through; two counters let through less."""
    border_s = T0_S - T0_S % 60 + 60
    lines = [combined(border_s - 1, "10.1.0.1") for _ in range(10)]
    lines += [combined(border_s, "10.1.0.1") for _ in range(10)]
    policy = policy_file(tmp_path, "principal: client\nrules: [{limit: 10/minute}]\n")

    answer = answered(policy, write(tmp_path / "log", lines), compare=("fixed", "two-counter", "exact-log"))
    compared = answer["rules"][0]["compare"]

    assert 10 == answer["refused"]
    assert {"refused": 0, "callers_refused": 0, "most_in_a_window": 20} == compared["fixed"]
    assert {"refused": 10, "callers_refused": 1, "most_in_a_window": 10} == compared["two-counter"]
    assert {"refused": 10, "callers_refused": 1, "most_in_a_window": 10} == compared["exact-log"]


def test_concurrency_is_judged_by_durations(tmp_path: Path) -> None:
    """Two slots: of three requests of ten seconds each the third is refused, and one after the first has ended fits."""
    start_ms = T0_S * 1000
    starts = [0, 1000, 2000, 10_500]
    lines = [as_json(start_ms + at + 10_000, "10.1.0.1", request_time="10.000") for at in starts]
    policy = policy_file(tmp_path, "principal: client\nrules: [{name: slots, limit: 2 concurrent}]\n")

    answer = answered(policy, write(tmp_path / "log", lines))

    assert 1 == answer["refused"]
    assert 3 == answer["rules"][0]["smallest_limit"]["nobody"]


def test_leases_hold_as_long_as_the_request_runs(tmp_path: Path) -> None:
    """A request that runs longer than its lease holds its slot all the same, as live requests renew it."""
    start_ms = T0_S * 1000
    lines = [
        as_json(start_ms + 100_000, "10.1.0.1", request_time="100.000"),
        as_json(start_ms + 91_000, "10.1.0.1", request_time="1.000"),
    ]
    policy = policy_file(tmp_path, "principal: client\nrules: [{name: slots, limit: 1 concurrent}]\n")

    assert 1 == answered(policy, write(tmp_path / "log", lines))["refused"]


def test_only_counted_answers_are_charged(tmp_path: Path) -> None:
    """A rule that counts failed logins gives back what succeeded, when it ended."""
    start_ms = T0_S * 1000
    answers = [200, 401, 200, 401, 401, 401]
    lines = [as_json(start_ms + 1000 * at, "10.1.0.1", status=code) for at, code in enumerate(answers)]
    policy = policy_file(tmp_path, "principal: client\nrules: [{name: login, limit: 3/minute, count: [401]}]\n")

    answer = answered(policy, write(tmp_path / "log", lines))

    assert 1 == answer["refused"]
    assert 4 == answer["rules"][0]["smallest_limit"]["nobody"]


calls = st.lists(
    st.tuples(st.integers(0, 2000), clients, st.integers(1, 15), st.integers(0, 10), st.integers(0, 4000)),
    min_size=1,
    max_size=40,
)


@ROOMY
@given(calls)
def test_tokens_are_reserved_and_settled(tmp_path: Path, steps: list[tuple[int, str, int, int, int]]) -> None:
    """Input and the bound of output are reserved at the start, and at the end what was used is charged, dated there."""
    policy = policy_file(tmp_path, "principal: client\nrules: [{name: tokens, limit: 60/10 seconds, tokens: openai}]\n")
    at_ms, calls, lines = T0_S * 1000, [], []
    for gap_ms, client, read, made, took_ms in steps:
        at_ms += gap_ms
        calls.append((at_ms, client, read, made, took_ms))
        told: dict[str, Any] = {
            "prompt_tokens": read,
            "completion_tokens": made,
            "max_tokens": 10,
            "request_time": took_ms / 1000,
        }
        lines.append(as_json(at_ms + took_ms, client, **told))
    held: dict[str, list[list[int]]] = defaultdict(list)  # when, units
    ends: list[tuple[int, list[int], int]] = []
    refused = 0
    for at_ms, client, read, made, took_ms in calls:
        for end in sorted(each for each in ends if each[0] <= at_ms):
            ends.remove(end)
            end[1][1] = end[2]
        used = sum(units for when, units in held[client] if at_ms - WINDOW_MS < when <= at_ms)
        if used + read + 10 > 60:
            refused += 1
            continue
        held[client].append([at_ms, read + 10])
        ends.append((at_ms + took_ms, held[client][-1], read + made))

    answer = answered(policy, write(tmp_path / "log", lines))

    assert (len(calls), refused) == (answer["requests"], answer["refused"])


def test_tokens_need_a_log_that_has_them(tmp_path: Path) -> None:
    """Without the tokens of input and output a rule on tokens is not judged."""
    policy = policy_file(tmp_path, "principal: client\nrules: [{name: tokens, limit: 60/minute, tokens: openai}]\n")
    rule = answered(policy, write(tmp_path / "log", [combined(T0_S, "10.1.0.1")]))["rules"][0]

    assert "needs tokens of each call" == rule["not_judged"]


def test_two_policies_are_compared_caller_by_caller(tmp_path: Path) -> None:
    """`--against` says who is refused by one and not by the other."""
    lines = [as_json(T0_S * 1000 + at, client) for at in range(4) for client in ("10.1.0.1", "10.1.0.2")]
    lines += [as_json(T0_S * 1000 + 5, "10.1.0.2") for _ in range(4)]
    new = policy_file(tmp_path, "principal: client\nrules: [{limit: 6/minute}]\n")
    old = policy_file(tmp_path, "principal: client\nrules: [{limit: 3/minute}]\n", "old.yaml")

    answer = answered(new, write(tmp_path / "log", lines), against=old, names=True)
    against = answer["against"]

    assert (2, 6) == (answer["refused"], against["refused"])
    assert (2, 0, 4) == (
        against["refused_by_both"], against["refused_by_this_only"], against["refused_by_other_only"]
    )  # fmt: skip
    assert ["10.1.0.1"] == [each["caller"] for each in against["callers_by_other_only"]]


def test_states_that_no_longer_count_are_let_go_of(tmp_path: Path, monkeypatch) -> None:  # type: ignore[no-untyped-def]
    """The numbers are the same however often the states are swept."""
    lines = [as_json(T0_S * 1000 + 700 * at, f"10.1.{at % 5}.{at * at % 3}") for at in range(400)]
    policy = policy_file(tmp_path, "principal: client\nrules: [{limit: 1/10 seconds}, {limit: 140/hour}]\n")
    log = write(tmp_path / "log", lines)
    whole = answered(policy, log)

    monkeypatch.setattr("ratelimiter.replay.judge.STATES_MAX", 5)
    monkeypatch.setattr("ratelimiter.replay.judge.ENTRIES_MAX", 3)

    assert whole == answered(policy, log)
    assert whole["refused"] > 0


def test_the_store_of_the_sidecar_says_the_same(tmp_path: Path) -> None:
    """The embedded store, on the clock of the log, gives every request the verdict that the replay gives it."""
    from ratelimiter.config.loader import load
    from ratelimiter.core.planner import Planner
    from ratelimiter.core.request import Request
    from ratelimiter.stores.memory import MemoryStore

    text = (
        "principal: client\nrules: [{limit: 5/10 seconds, burst: 2}, {limit: 300/minute}, {name: b, limit: 4/second}]\n"
    )
    policy = policy_file(tmp_path, text)
    times = [(T0_S * 1000 + 137 * at, f"10.1.0.{at * at % 5}") for at in range(600)]
    replay = replayed(policy, write(tmp_path / "log", [as_json(*each) for each in times]))
    now_ms = [0]
    store = MemoryStore(clock=lambda: now_ms[0])
    planner = Planner(load(policy))
    refused = 0
    for at_ms, client in times:
        now_ms[0] = at_ms
        refused += not store.charge_now(planner.hits(Request("GET", b"/", (), client))).admitted

    assert refused == replay.judge.refused
    assert 0 < refused < len(times)


def test_several_processes_find_the_same(tmp_path: Path) -> None:
    """Parted by callers, a replay finds what it finds whole: every number, caller, step and unread line."""
    addresses = [f"10.1.{at % 11}.{at % 7}" for at in range(70)]
    addresses += ["2001:db8::1", "2001:db8::2", "::ffff:10.1.0.1", "10.1.0.1"]
    chance = random.Random(5)  # noqa: S311  # the same log each time
    lines = [combined(T0_S + at // 3, chance.choice(addresses), f"/v1/{at % 3}") for at in range(4000)]
    lines[1000:1000] = ["not a line", "another: not a line"]
    lines[3000] = lines[3000].replace("GET /v1", "GARBAGE")
    chance.shuffle(lines[200:260])
    rules = "{limit: 4/minute}, {limit: 150/hour}, {name: b, match: {path: /v1/1}, limit: 2/minute, mode: shadow}"
    policy = policy_file(tmp_path, f"principal: client\nrules: [{rules}]\n")
    old = policy_file(tmp_path, "principal: client\nrules: [{limit: 9/minute, burst: 2}]\n", "old.yaml")
    logs = [write(tmp_path / "a", lines[:2500]), write(tmp_path / "b", lines[2500:])]

    def made(part: Part | None = None) -> Replay:
        return Replay(
            load(policy), logs, against=load(old), names=True, compare=("fixed", "two-counter"), part=part
        )  # fmt: skip

    whole, parted = made(), made()
    whole.run()
    run_parted(parted, made, 3)
    one, other = answer_of(whole, top=1000), answer_of(parted, top=1000)
    for answer in (one, other):
        for log in answer["logs"]:
            del log["out_of_order"]  # lines are out of order among those of their part

    assert one == other
    assert one["refused"] > 0
    assert one["unread"] == 3


@pytest.mark.parametrize(
    ("principal", "reason"),
    [("everyone", "something else than the address"), ("[header:X-A, client]", "something else than the address")],
)
def test_callers_that_cannot_be_parted_are_judged_by_one_process(tmp_path: Path, principal: str, reason: str) -> None:
    """Where one key may belong to several addresses, several processes are refused, and none are made by themselves."""
    policy = policy_file(tmp_path, f"principal: {principal}\nrules: [{{limit: 4/minute}}]\n")
    replay = Replay(load(policy), [write(tmp_path / "log", [combined(T0_S, "10.1.0.1")])])

    assert 1 == processes_for(replay, None)
    with pytest.raises(ConfigError, match=reason):
        processes_for(replay, 2)
