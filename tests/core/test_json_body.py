"""Goal: no body is read by an application as what a rule is about without meeting the rule. Method: the readings of
parsers that differ, and those of Python's own for bodies that nobody thought of.
"""

from __future__ import annotations

import json
import time
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ratelimiter.core.json_body import JsonField, Scalar, read_fields, spelled
from ratelimiter.core.match import Match
from ratelimiter.core.planner import Planner
from ratelimiter.core.policy import Policy
from ratelimiter.core.rule_set import BODIES_MAX
from tests.requesting import per_minute, request

DEEP = (JsonField("depth", (spelled("deep"),)),)
MEBIBYTE = 1 << 20


def wanting(**fields: Any) -> tuple[JsonField, ...]:
    return tuple(
        JsonField(name, tuple(map(spelled, value if isinstance(value, list) else [value])))
        for name, value in fields.items()
    )


def meets(body: bytes, wanted: tuple[JsonField, ...] = DEEP) -> bool:
    """Whether a rule that wants this is met, by whatever can be made of the body."""
    fields = read_fields(body)
    return fields is None or fields.meet(wanted)


@pytest.mark.parametrize(
    "body",
    [
        b'{"depth": "deep"}',
        b'\r\n\t {"a": [1], "depth"\n:"deep"}  ',
        b'{"depth": "d\\u0065ep"}',
        b'{"\\u0064epth": "deep"}',
        b'{"DEPTH": "deep"}',  # Go's encoding/json
        '{"dept\u0048": "deep"}'.encode(),
        b'{"depth": "deep", "depth": "shallow"}',  # some take the first
        b'{"depth": "shallow", "depth": "deep"}',  # some the last
        b'{"depth": {"a": 1}, "Depth": "deep"}',
        b'{"depth\\u0000": "deep"}',  # in C it ends there
        b'{"depth\\ud800": "deep"}',  # no character
        b'{"depth": "deep\\u0000"}',
        b'{"depth": "deep\\udfff"}',
    ],
)
def test_every_reading_counts(body: bytes) -> None:
    """What any parser takes for the wanted field is the wanted field."""
    fields = read_fields(body)

    assert fields is None or fields.meet(DEEP)


@pytest.mark.parametrize(
    "body",
    [
        '{"depth": "deep"}'.encode("utf-16"),
        '{"depth": "deep"}'.encode("utf-16-le"),
        '{"depth": "deep"}'.encode("utf-32-be"),
        '\ufeff{"depth": "x"}'.encode(),
        b'{"depth": "x\xff"}',
        b'{"depth": "x",}',
        b"{'depth': 'x'}",
        b'{"depth": NaN}',
        b'{"depth": -Infinity}',
        b'{"depth": "x"} {"depth": "deep"}',
        b'{"depth": /**/ "x"}',
        b'{"depth": "x"',
        b"depth=x",
        b" ",
        b"[" * 65_536,
        b'{"a":' * 13_000,
    ],
)
def test_what_is_no_json_may_be_anything(body: bytes) -> None:
    """Nobody can say what an application makes of it."""
    assert read_fields(body) is None


@pytest.mark.parametrize(
    "body",
    [
        b"{}",
        b'{"depth": "shallow"}',
        b'{"depth": "Deep"}',  # a value is what it is
        b'{"depth": ["deep"]}',
        b'{"a": {"depth": "deep"}}',
        b'[{"depth": "deep"}]',
        b'"deep"',
        b"null",
        b'{"text": "line\\nline", "depth": null}',
        b'{"depths": "deep", "dept": "deep"}',
    ],
)
def test_other_bodies_do_not_meet_it(body: bytes) -> None:
    """Only the field itself, at the top level."""
    fields = read_fields(body)

    assert fields is not None
    assert not fields.meet(DEEP)


@pytest.mark.parametrize(
    ("value", "body", "expected"),
    [
        (1, b'{"n": 1}', True),
        (1, b'{"n": 1.0}', True),
        (1, b'{"n": 10e-1}', True),
        (1, b'{"n": true}', False),
        (1, b'{"n": "1"}', False),
        (True, b'{"n": true}', True),
        (True, b'{"n": 1}', False),
        (False, b'{"n": 0}', False),
        (0, b'{"n": -0.0}', True),
        (None, b'{"n": null}', True),
        (None, b"{}", False),
        ("", b'{"n": ""}', True),
        (2**53, b'{"n": 9007199254740993}', True),  # the same to every parser that keeps doubles
        (0.1, b'{"n": 0.1000000000000000055}', True),
        (["a", 2], b'{"n": 2}', True),
        (["a", 2], b'{"n": "b"}', False),
        ("é", '{"n": "é"}'.encode(), True),
        ("é", b'{"n": "\\u00e9"}', True),
    ],
)
def test_values(value: Any, body: bytes, expected: bool) -> None:
    """Types are told apart as JSON does, numbers compared as doubles."""
    assert expected == meets(body, wanting(n=value))


def test_all_fields_must_be_there() -> None:
    """Several fields narrow a rule."""
    wanted = wanting(a=1, b="x")

    assert meets(b'{"b": "x", "a": 1}', wanted)
    assert not meets(b'{"b": "x"}', wanted)
    assert not meets(b'{"b": "x", "a": 2}', wanted)


scalars = st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text()
documents = st.dictionaries(
    st.sampled_from(["depth", "a", "é", "DEPTH"]) | st.text(), scalars | st.lists(scalars, max_size=3), max_size=5
)


@given(document=documents, value=scalars, indent=st.sampled_from([None, 0, 2]), ascii_only=st.booleans())
def test_a_field_that_is_there_is_found(
    document: dict[str, Any], value: Scalar, indent: int | None, ascii_only: bool
) -> None:
    """However it is written down."""
    try:
        wanted = wanting(depth=value)
    except ValueError:
        return  # a number that no double holds
    text = json.dumps({**document, "depth": value}, indent=indent, ensure_ascii=ascii_only)

    assert meets(text.encode("utf-8", "surrogatepass"), wanted)


PIECES = [b'"depth"', b'"deep"', b'"x"', b":", b",", b"{", b"}", b"[", b"]", b"1", b"\\u0064", b'"', b" ", b"\x00"]


@given(
    pieces=st.lists(st.sampled_from(PIECES) | st.binary(max_size=2), max_size=12),
    encoding=st.sampled_from(["utf-8", "utf-16", "utf-32", "utf-8-sig"]),
    wrapped=st.booleans(),
)
def test_what_python_reads_is_met(pieces: list[bytes], encoding: str, wrapped: bool) -> None:
    """If an application's json.loads finds it in a body, whatever the body is, the rule does."""
    body = b"".join(pieces)
    if wrapped:
        body = b'{"depth": "deep", ' + body + b"}"
    body = body.decode("utf-8", "replace").encode(encoding)
    try:
        read = json.loads(body)
    except ValueError:
        return

    assert not (isinstance(read, dict) and read.get("depth") == "deep") or meets(body)


@pytest.mark.parametrize(
    "body",
    [
        b"[" * MEBIBYTE,
        b'{"a":' * (MEBIBYTE // 5),
        b"9" * MEBIBYTE,
        b'{"n": 0.' + b"9" * MEBIBYTE + b"}",
        b"[" + b"1e99999999," * (MEBIBYTE // 11) + b"1]",
        b"[" + b"{}," * (MEBIBYTE // 3) + b"{}]",
        b'{"' + b"\\u0061" * (MEBIBYTE // 6) + b'": 1}',
        b"{" + b'"a":1,' * (MEBIBYTE // 6) + b'"a":1}',
    ],
)
def test_no_body_takes_long(body: bytes) -> None:
    """Neither depth nor digits nor many small parts hold up others: the most a policy may allow, on any machine."""
    begun_s = time.process_time()
    read_fields(body)

    assert time.process_time() - begun_s < 2


def test_numbers_that_no_parser_holds_are_refused() -> None:
    """A rule that could never be met would be a hole that nobody sees."""
    for number in (10**400, float("inf"), float("nan")):
        with pytest.raises(ValueError, match="no number"):
            spelled(number)


# --- In a policy -----------------------------------------------------------------------------------------------------

LOOKUPS = Match(methods=frozenset({"POST"}), path="/lookup", json=DEEP)
POLICY = Policy((per_minute(name="deep", match=LOOKUPS), per_minute(name="all")), json_bytes_max=1024)


def met(body: bytes | None, path: str = "/lookup", **headers: str) -> list[str]:
    pairs = [(name.replace("_", "-"), value) for name, value in headers.items()]
    asked = request(path, method="POST", headers=pairs)._replace(body=body)
    return [hit.rule.name for hit in Planner(POLICY).hits(asked)]


@pytest.mark.parametrize(
    ("body", "headers", "expected"),
    [
        (b'{"depth": "deep"}', {}, True),
        (b'{"depth": "x"}', {}, False),
        (b"", {}, False),
        (b"", {"content_encoding": "gzip"}, False),  # nothing stays nothing
        (b'{"depth": "x"}', {"content_encoding": "gzip"}, True),
        (b'{"depth": "x"}', {"content_encoding": "identity"}, True),
        (b'{"depth": "x"}' + b" " * 1010, {}, False),
        (b'{"depth": "x"}' + b" " * 1011, {}, True),  # 1025 bytes
        (None, {}, True),  # nobody has looked
    ],
)
def test_when_in_doubt_the_rule_is_met(body: bytes | None, headers: dict[str, str], expected: bool) -> None:
    """Only what can be read in one way and says something else is spared."""
    assert expected == ("deep" in met(body, **headers))


@pytest.mark.parametrize(
    ("path", "method", "headers", "expected"),
    [
        ("/lookup", "POST", {}, 1025),
        ("/lookup", "POST", {"content-length": "1024"}, 1025),
        ("/lookup", "POST", {"content-length": "1025"}, 0),  # it is too long: no byte of it matters
        ("/lookup", "POST", {"content-length": "9" * 5000}, 0),
        ("/lookup", "POST", {"content-length": "nonsense"}, 1025),
        ("/lookup", "POST", {"content-encoding": "br"}, 1),  # whether it is empty
        ("/other", "POST", {}, 0),
        ("/lookup", "GET", {}, 0),
        ("/%zz", "POST", {}, 0),  # is refused unread
    ],
)
def test_only_what_matters_is_read(path: str, method: str, headers: dict[str, str], expected: int) -> None:
    """A body is read for requests that a rule about bodies is otherwise met by, up to where it is too long."""
    assert expected == Planner(POLICY).body_wanted(request(path, method=method, headers=list(headers.items())))


def test_a_body_that_never_matters_is_never_asked_for() -> None:
    """Plain policies pay nothing."""
    assert Planner(POLICY).looks_at_bodies
    assert not Planner(Policy((per_minute(),))).looks_at_bodies


def test_combinations_are_remembered_boundedly() -> None:
    """Bodies are the client's to write, so what they make of a policy must not fill the memory."""
    rules = [per_minute(name=f"r{n}", match=Match(json=wanting(**{f"f{n}": 1}))) for n in range(8)]
    planner = Planner(Policy(tuple(rules)))
    for number in range(256):
        body = json.dumps({f"f{n}": 1 for n in range(8) if number >> n & 1}).encode()
        names = [hit.rule.name for hit in planner.hits(request()._replace(body=body))]
        assert [f"r{n}" for n in range(8) if number >> n & 1] == names
    (plan,) = planner._rule_sets.values()

    assert len(plan._decided) <= BODIES_MAX


@pytest.mark.parametrize("size", [0, 1023, 1_048_577])
def test_the_cap_has_bounds(size: int) -> None:
    """What is held for a request is bounded by the policy, and the policy by us."""
    with pytest.raises(ValueError, match="json_bytes_max"):
        Policy((per_minute(),), json_bytes_max=size)
