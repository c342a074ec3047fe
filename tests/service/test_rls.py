"""Goal: the whole of the rate limit service protocol, as a tester who knows it would try it. Method: grpcio asks."""

from __future__ import annotations

import signal
import time
from typing import TYPE_CHECKING, Any

import grpc
import pytest
from google.protobuf import struct_pb2

from tests.service.calls import OK, OVER, codes, descriptor, should
from tests.service.serving import Served, redis, served

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

POLICY = """\
domain: edge
dialect: plain
headers: [x-ratelimit, draft-11]
rules:
  - {name: wide, descriptors: [key], limit: 10/minute}
  - {name: narrow, descriptors: [key, path], limit: 3/minute}
  - {name: watched, descriptors: [shadow], limit: 1/minute, mode: shadow}
  - {name: free, descriptors: [free], limit: unlimited}
  - {name: banned, descriptors: [{who: mallory}], limit: blocked}
  - {name: two-windows, descriptors: [two], limit: 5/minute, burst: 2}
  - {name: returned, descriptors: [returned], limit: 5/minute, refunds: true}
  - {name: kept, descriptors: [kept], limit: 5/minute}
  - {name: slots, descriptors: [slots], limit: 2 concurrent, refunds: true}
  - {name: first, descriptors: [{model: a}, user], limit: 1/minute, candidate: true}
  - {name: second, descriptors: [{model: b}, user], limit: 2/minute, candidate: true}
  - {name: gold, descriptors: [gold], limit: 100/minute, replaces: wide}
  - {name: by-wild, descriptors: [{host: {each: "*.example.com"}}], limit: 1/minute}
  - {name: together, descriptors: [{net: {any: "10.*", except: "10.1.*"}}], limit: 1/minute}
"""


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    with served(tmp_path_factory.mktemp("rls"), POLICY) as service:
        yield service


@pytest.fixture(scope="module")
def channel(service: Served) -> Iterator[grpc.Channel]:
    with grpc.insecure_channel(f"127.0.0.1:{service.grpc}") as channel:
        yield channel


def test_all_descriptors_or_none(channel: grpc.Channel) -> None:
    """One key, 10 a minute, and 3 a minute of each path: 12 calls of /a, 3 of /b, 6 of /c, 4 of /d admit 3, 3, 3, 1, as
    no refusal uses up the wide limit.
    """
    admitted = {}
    for path, count in (("/a", 12), ("/b", 3), ("/c", 6), ("/d", 4)):
        both = descriptor(("key", "all"), ("path", path)), descriptor(("key", "all"))
        admitted[path] = [should(channel, *both).overall_code for _ in range(count)].count(OK)

    assert {"/a": 3, "/b": 3, "/c": 3, "/d": 1} == admitted


def test_statuses_are_in_order_and_true(channel: grpc.Channel) -> None:
    """Each descriptor has its status in its place, with the limit, what is left of it and the seconds to wait."""
    narrow, wide = descriptor(("path", "/p"), ("key", "order")), descriptor(("key", "order"))
    for _ in range(3):
        answer = should(channel, narrow, descriptor(("nothing", "x")), wide)
    refused = should(channel, narrow, descriptor(("nothing", "x")), wide)

    assert [OK, OK, OK, OK] == codes(answer)
    told = [(s.current_limit.name, s.current_limit.requests_per_unit, s.limit_remaining) for s in answer.statuses]
    assert [("narrow", 3, 0), ("", 0, 0), ("wide", 10, 7)] == told
    assert 2 == answer.statuses[0].current_limit.unit
    assert not answer.statuses[1].HasField("current_limit")
    assert [OVER, OVER, OK, OK] == codes(refused)
    assert 55 <= refused.statuses[0].duration_until_reset.seconds <= 60
    assert 7 == refused.statuses[2].limit_remaining


def test_a_refusal_has_the_documented_body_and_headers(channel: grpc.Channel) -> None:
    """raw_body is the dialect's, with its content type, Retry-After and both families of headers; an admission has the
    families only.
    """
    entry = descriptor(("key", "body"), ("path", "/p"))
    admitted = [should(channel, entry) for _ in range(3)][-1]
    refused = should(channel, entry)

    headers = {header.key: header.value for header in refused.response_headers_to_add}
    assert b"Too Many Requests\n" == refused.raw_body or b"" != refused.raw_body
    assert "0" == headers["x-ratelimit-remaining"]
    assert headers["content-type"].startswith("text/plain")
    assert 55 <= int(headers["retry-after"]) <= 60
    assert '"narrow";q=3;w=60' == headers["ratelimit-policy"]
    assert b"" == admitted.raw_body
    names = ["x-ratelimit-limit", "x-ratelimit-remaining", "x-ratelimit-reset", "ratelimit-policy", "ratelimit"]
    assert names == [header.key for header in admitted.response_headers_to_add]
    told = struct_pb2.Struct.FromString(refused.dynamic_metadata)
    assert ("over_limit", True) == (told["reason"], told["rules"]["narrow"]["over"])
    assert 55 <= told["rules"]["narrow"]["reset_seconds"] <= 60
    told = struct_pb2.Struct.FromString(admitted.dynamic_metadata)
    assert ("within_limit", False, 0) == (
        told["reason"],
        told["rules"]["narrow"]["over"],
        told["rules"]["narrow"]["remaining"],
    )


@pytest.mark.parametrize(
    ("message", "others"),
    [
        ((), {}),
        ((descriptor(("key", "a")),), {"domain": ""}),
        ((descriptor(("", "a")),), {}),
        ((descriptor(("key", "a"), limit=(1, 9)),), {}),
    ],
)
def test_a_call_that_asks_nothing_is_an_error(channel: grpc.Channel, message: Any, others: dict[str, Any]) -> None:
    """No descriptors, no domain, an entry without a key, and a limit per nothing are told as such."""
    with pytest.raises(grpc.RpcError) as caught:
        should(channel, *message, **others)

    assert grpc.StatusCode.INVALID_ARGUMENT is caught.value.code()


def test_bytes_that_are_no_message(channel: grpc.Channel) -> None:
    """Broken wire format, and text that is not UTF-8, are the caller's fault."""
    from ratelimiter.service.rls import PATH

    for message in (b"\x0a\x05ab", b"\x0a\x01\xff\x12\x00", b"\xff", b"\x0b", b"\x0a\x01a\x12\x04\x0a\x02\x0a\xff"):
        with pytest.raises(grpc.RpcError) as caught:
            channel.unary_unary(PATH)(message, timeout=5)
        assert grpc.StatusCode.INVALID_ARGUMENT is caught.value.code(), message


def test_what_no_rule_means_is_admitted(channel: grpc.Channel, service: Served) -> None:
    """Unmatched descriptors and foreign domains are OK without a limit, and counted as unmatched."""
    before = service.metrics().count('outcome="unmatched"')
    for answer in (should(channel, descriptor(("x", "y"))), should(channel, descriptor(("key", "a")), domain="other")):
        assert [OK, OK] == codes(answer)
        assert not answer.statuses[0].HasField("current_limit")

    assert before <= service.metrics().count('outcome="unmatched"')
    assert 'ratelimiter_requests_total{outcome="unmatched"' in service.metrics()


def test_a_descriptor_twice_is_charged_twice(channel: grpc.Channel) -> None:
    """Duplicates add up, and refuse together if there is no room for both."""
    twice = [descriptor(("key", "dup"), ("path", "/p"))] * 2

    assert [OK, OK, OK] == codes(should(channel, *twice))
    assert [OVER, OVER, OVER] == codes(should(channel, *twice))
    assert 0 == should(channel, twice[0]).statuses[0].limit_remaining


def test_hits_of_call_and_descriptor(channel: grpc.Channel) -> None:
    """A call's hits are each descriptor's, but for those that have their own; more than the limit never fits."""
    own, common = descriptor(("key", "hits"), hits=4), descriptor(("key", "hits2"))

    answer = should(channel, own, common, hits=3)
    assert [6, 7] == [status.limit_remaining for status in answer.statuses]
    assert [OVER, OVER] == codes(should(channel, descriptor(("key", "hits3"), hits=11)))
    assert 9 == should(channel, descriptor(("key", "hits3"))).statuses[0].limit_remaining


def test_no_hits_are_a_look(channel: grpc.Channel) -> None:
    """0 charges nothing, and is over the limit once not one unit more would fit; the call is then charged nothing."""
    look, take = descriptor(("key", "look"), hits=0), descriptor(("key", "look"))
    other = descriptor(("key", "look-other"))

    assert (OK, 10) == (should(channel, look).overall_code, should(channel, look).statuses[0].limit_remaining)
    for _ in range(10):
        should(channel, take)
    refused = should(channel, look, other)

    assert [OVER, OVER, OK] == codes(refused)
    assert 55 <= refused.statuses[0].duration_until_reset.seconds <= 60
    assert 9 == should(channel, other).statuses[0].limit_remaining


def test_negative_hits_give_back(channel: grpc.Channel) -> None:
    """Where the policy allows it, units come back, never more than were charged; elsewhere nothing does."""
    for key, left in (("returned", 4), ("kept", 1)):
        for _ in range(4):
            should(channel, descriptor((key, "a")))
        answer = should(channel, descriptor((key, "a"), hits=3, negative=True))
        assert [OK, OK] == codes(answer)
        assert left == answer.statuses[0].limit_remaining, key
    answer = should(channel, descriptor(("returned", "a"), hits=99, negative=True))
    assert 5 == answer.statuses[0].limit_remaining


def test_slots_are_taken_and_returned(channel: grpc.Channel) -> None:
    """A limit of what runs at the same time: one at the beginning, and as negative hits at the end."""
    slot = descriptor(("slots", "a"))
    assert [OK, OK, OVER] == [should(channel, slot).overall_code for _ in range(3)]

    should(channel, descriptor(("slots", "a"), negative=True))

    assert [OK, OVER] == [should(channel, slot).overall_code for _ in range(2)]


def test_a_limit_of_the_caller(channel: grpc.Channel) -> None:
    """An override counts in place of the policy's rules, in any unit, also for an unmatched descriptor; 0 bans."""
    for entries, limit in (((("key", "own"),), (2, 1)), ((("unknown", "own"),), (2, 3))):
        answers = [should(channel, descriptor(*entries, limit=limit)) for _ in range(3)]
        assert [OK, OK, OVER] == [answer.overall_code for answer in answers]
        assert (2, limit[1]) == (
            answers[0].statuses[0].current_limit.requests_per_unit,
            answers[0].statuses[0].current_limit.unit,
        )
    assert [OVER, OVER] == codes(should(channel, descriptor(("key", "own"), limit=(0, 2))))


def test_shadow_unlimited_and_blocked(channel: grpc.Channel) -> None:
    """Shadow counts and admits, unlimited has four billion left, and blocked refuses and charges no other."""
    assert [OK] * 3 == [should(channel, descriptor(("shadow", "a"))).overall_code for _ in range(3)]
    assert 0xFFFFFFFF == should(channel, descriptor(("free", "a"))).statuses[0].limit_remaining
    other = descriptor(("key", "with-mallory"))
    refused = should(channel, descriptor(("who", "mallory")), other)
    assert [OVER, OVER, OK] == codes(refused)
    assert b"" != refused.raw_body
    assert 9 == should(channel, other).statuses[0].limit_remaining


def test_candidates_refuse_only_together(channel: grpc.Channel) -> None:
    """Of several choices some may be used up; the metadata says which. When all are, nothing else is charged."""
    choices = descriptor(("model", "a"), ("user", "u")), descriptor(("model", "b"), ("user", "u"))
    other = descriptor(("key", "chooser"))

    assert [[OK, OK, OK, OK], [OK, OVER, OK, OK], [OVER, OVER, OVER, OK]] == [
        codes(should(channel, *choices, other)) for _ in range(3)
    ]
    assert 7 == should(channel, other).statuses[0].limit_remaining


def test_a_rule_replaces_others(channel: grpc.Channel) -> None:
    """A call that meets the replacing rule is not charged to the replaced one, whichever descriptor met it."""
    answer = should(channel, descriptor(("key", "replaced")), descriptor(("gold", "g")))

    assert ["", "gold"] == [status.current_limit.name for status in answer.statuses]
    assert 9 == should(channel, descriptor(("key", "replaced"))).statuses[0].limit_remaining


def test_patterns(channel: grpc.Channel) -> None:
    """`each` counts every value by itself, `any` all together, `except` leaves some out."""
    hosts = [
        should(channel, descriptor(("host", host))).overall_code
        for host in ("a.example.com", "b.example.com", "a.example.com", "c")
    ]
    nets = [should(channel, descriptor(("net", net))).overall_code for net in ("10.0.0.1", "10.2.0.1", "10.1.0.1")]

    assert [OK, OK, OVER, OK] == hosts
    assert [OK, OVER, OK] == nets


def test_a_burst(channel: grpc.Channel) -> None:
    """A burst of a rule on descriptors is one of any rule: so many more at first, and the limit is what is told."""
    answers = [should(channel, descriptor(("two", "a"))) for _ in range(8)]

    assert [OK] * 7 + [OVER] == [answer.overall_code for answer in answers]
    assert 5 == answers[0].statuses[0].current_limit.requests_per_unit


def test_large_calls(channel: grpc.Channel) -> None:
    """A hundred descriptors, and values of 8 KB, are one call like any other."""
    many = [descriptor(("key", f"many{number}")) for number in range(100)]

    assert [OK] * 101 == codes(should(channel, *many))
    assert [OK, OK] == codes(should(channel, descriptor(("key", "v" * 8192))))
    assert 8 == should(channel, descriptor(("key", "v" * 8192))).statuses[0].limit_remaining


def test_reload_under_calls(tmp_path: Path) -> None:
    """A changed policy is in force without a failed call, and what was counted stays."""
    policy = "rules:\n  - {name: r, descriptors: [key], limit: 1000/minute}\n"
    with served(tmp_path, policy) as service, grpc.insecure_channel(f"127.0.0.1:{service.grpc}") as channel:
        for _ in range(5):
            should(channel, descriptor(("key", "a")))
        service.policy.write_text(policy.replace("1000", "50"))
        service.process.send_signal(signal.SIGHUP)
        end_s = time.monotonic() + 20
        answer = should(channel, descriptor(("key", "a")))
        asked = 6
        while answer.statuses[0].current_limit.requests_per_unit != 50 and time.monotonic() < end_s and asked < 40:
            time.sleep(0.2)
            answer = should(channel, descriptor(("key", "a")))
            asked += 1

    assert 50 == answer.statuses[0].current_limit.requests_per_unit
    assert 50 - asked == answer.statuses[0].limit_remaining


@pytest.mark.parametrize(
    ("mode", "answers"), [("allow", [OK, OK, OK]), ("deny", [OVER] * 3), ("local", [OK, OK, OVER])]
)
def test_without_the_store_an_answer_comes_in_time(tmp_path: Path, mode: str, answers: list[int]) -> None:
    """With Redis stopped, a caller that waits 200 ms hears what on_store_error says, also of the first call."""
    with redis(tmp_path) as (port, process):
        policy = f"""\
store: redis://127.0.0.1:{port}/0
rules:
  - {{name: r, descriptors: [key], limit: 2/minute, on_store_error: {mode}}}
"""
        with served(tmp_path, policy) as service, grpc.insecure_channel(f"127.0.0.1:{service.grpc}") as channel:
            assert OK == should(channel, descriptor(("key", "warm"))).overall_code
            process.send_signal(signal.SIGSTOP)
            try:
                heard = [should(channel, descriptor(("key", "a")), timeout=0.2).overall_code for _ in range(3)]
            finally:
                process.send_signal(signal.SIGCONT)

    assert answers == heard
