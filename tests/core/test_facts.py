"""Keys and conditions from the query, cookies, the path, JSON and forms: what they read, and what they refuse."""

from __future__ import annotations

import json
from contextlib import suppress
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ratelimiter.config import loader
from ratelimiter.core.client_address import Trust
from ratelimiter.core.facts import host_of
from ratelimiter.core.form import FIELDS_MAX, read_cookies, read_multipart, read_urlencoded
from ratelimiter.core.identity import Identity
from ratelimiter.core.match import Condition, Match
from ratelimiter.core.overrides import parse_pattern
from ratelimiter.core.planner import Planner
from ratelimiter.core.policy import Policy
from ratelimiter.core.principal import CLIENT, Source, parse_source
from ratelimiter.core.request import MalformedRequest, Request
from ratelimiter.core.rule_set import applying
from tests.requesting import per_minute, request

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from ratelimiter.core.form import FormFields

FORM = [("content-type", "application/x-www-form-urlencoded")]
MULTIPART = [("content-type", "multipart/form-data; boundary=xYz")]


def with_body(body: bytes | None, headers: list[tuple[str, str]] | None = None, target: str = "/") -> Request:
    return request(target, method="POST", headers=headers or [])._replace(body=body)


def key(source: str, asked: Request, **rule: Any) -> bytes:
    """The key of the one hit, for a rule with *source* and no other."""
    planner = Planner(Policy((per_minute(principal=(parse_source(source),), **rule),)))
    return planner.hits(asked)[0].key


def by_client(asked: Request) -> bytes:
    return key("client", asked)


FOUND = [
    ("query:q", request("/x?q=a"), request("/y?p=1&q=a"), request("/x?q=b")),
    ("query:q", request("/x?q=a%20b"), request("/x?q=a+b"), request("/x?q=ab")),
    ("query:q", request("/x?q=a;b"), request("/x?q=a%3bb"), request("/x?q=a")),
    ("query:q lower", request("/x?q=Ann"), request("/x?q=aNN"), request("/x?q=bob")),
    (
        "cookie:s",
        request(headers=[("cookie", "s=1")]),
        request(headers=[("cookie", 'a=b; s="1"')]),
        request(headers=[("cookie", "s=2")]),
    ),
    (
        "json:user.id",
        with_body(b'{"user": {"id": 7}}'),
        with_body(b'{"x": [], "user": {"id": "7"}}'),
        with_body(b'{"user": {"id": 8}}'),
    ),
    (
        "json:user.id",
        with_body(b'{"user": {"id": 1}}'),
        with_body(b'{"USER": {"Id": 1.0}}'),
        with_body(b'{"user": {"id": 1.5}}'),
    ),
    (
        "json:n",
        with_body(b'{"n": 12345678901234567890}'),
        with_body(b'{"n": "12345678901234567890"}'),
        with_body(b'{"n": 12345678901234567891}'),
    ),
    ("form:user", with_body(b"user=ann&x=1", FORM), with_body(b"x=2&user=an%6E", FORM), with_body(b"user=bob", FORM)),
    (
        "header:X-A lower",
        request(headers=[("x-a", "Ann")]),
        request(headers=[("X-A", "ann")]),
        request(headers=[("x-a", "bob")]),
    ),
]


@pytest.mark.parametrize(
    ("source", "one", "same", "other"), FOUND, ids=[f"{source}-{n}" for n, (source, *_) in enumerate(FOUND)]
)
def test_a_key_is_what_the_application_reads(source: str, one: Request, same: Request, other: Request) -> None:
    """Equal values, however they are written, are one principal, and others are not; it is not the client."""
    assert key(source, one) == key(source, same)
    assert key(source, one) != key(source, other)
    assert key(source, one) != by_client(one)


def multipart(*parts: tuple[str, bytes]) -> bytes:
    lines = [
        b"--xYz\r\nContent-Disposition: form-data; " + head.encode() + b"\r\n\r\n" + value + b"\r\n"
        for head, value in parts
    ]
    return b"".join(lines) + b"--xYz--\r\n"


def test_a_field_of_a_multipart_form() -> None:
    """Files are not fields, and a value may have line breaks in it."""
    body = multipart(('name="file"; filename="user"', b"\r\nname=\r\n"), ('name="user"', b"ann\r\n--not a boundary"))

    assert {b"user": [b"ann\r\n--not a boundary"]} == read_multipart(body, b"multipart/form-data; boundary=xYz")
    plain = with_body(multipart(('name="user"', b"ann")), MULTIPART)
    assert key("form:user", plain) == key("form:user", with_body(b"user=ann", FORM))


ABSENT = [
    ("query:q", request("/x")),
    ("query:q", request("/x?q=")),
    ("cookie:s", request(headers=[("cookie", "S=1; ss=2")])),
    ("json:a.b", with_body(b'{"a": {"c": 1}}')),
    ("json:a.b", with_body(b'{"a": [1]}')),
    ("json:a", with_body(b'{"a": null}')),
    ("json:a", with_body(b"")),
    ("json:a", with_body(b"a=1", FORM)),
    ("json:a", with_body(b'{"a": "cut sho')),
    ("form:a", with_body(b'{"a": 1}', [("content-type", "application/json")])),
    ("form:a", with_body(b"a=1")),
    ("identified", request()),
]


@pytest.mark.parametrize(("source", "asked"), ABSENT)
def test_the_client_is_charged_where_the_key_is_absent(source: str, asked: Request) -> None:
    """There is never a request that is charged to no one."""
    assert by_client(asked) == key(source, asked)


REFUSED = [
    ("query:q", request("/x?q=a&q=b"), "query:q is there more than once"),
    ("query:q", request("/x?q=a&q=a"), "query:q is there more than once"),
    ("query:q", request("/x?a=1;q=b&q=c"), "query:q is there more than once"),
    ("query:q", request("/x?q=%zz"), "query has a percent sign without two hexadecimal digits"),
    ("query:q", request("/x?" + "a&" * FIELDS_MAX), "query has more than 1000 fields"),
    ("query:q", request("/x?q=" + "a" * 1025), "query:q is longer than 1024 bytes"),
    ("cookie:s", request(headers=[("cookie", "s=1"), ("cookie", "s=2")]), "cookie:s is there more than once"),
    ("cookie:s", request(headers=[("cookie", "a;" * FIELDS_MAX)]), "cookie has more than 1000 cookies"),
    ("json:a", with_body(b'{"a": 1, "A": 2}'), "json:a is there more than once"),
    ("json:a.b", with_body(b'{"a": {"b": 1}, "a": {"b": 2}}'), "json:a.b is there more than once"),
    ("json:a", with_body(b'{"a": {"b": 1}}'), "json:a must be text or a number"),
    ("json:a", with_body(b'{"a": [1]}'), "json:a must be text or a number"),
    ("json:a", with_body(b'{"a": true}'), "json:a must be text or a number"),
    ("json:a", with_body(b'{"a": "x\\u0000y"}'), "json:a has a control character"),
    ("json:a", with_body(b'{"a\\u0000": 1, "a": 2}'), "body has a name with a control character"),
    ("json:a", with_body(b'{"a": "' + b"x" * 1_000_000 + b'"}'), "body is longer than 65536 bytes"),
    ("json:a", with_body(None, [("content-length", "1000000")]), "body is longer than 65536 bytes"),
    ("json:a", with_body(b"x", [("content-encoding", "gzip")]), "body must not be encoded"),
    ("json:a", with_body(b"[" * 60_000), "body is nested too deeply"),
    (
        "json:a",
        with_body(b"{}", [("content-type", "text/a"), ("content-type", "text/b")]),
        "content-type is there more than once",
    ),
    ("form:a", with_body(b"a=1&a=2", FORM), "form:a is there more than once"),
    ("form:a", with_body(b"a&" * 10_000, FORM), "body has more than 1000 fields"),
    (
        "form:a",
        with_body(multipart(('name="a"', b"1"), ('name="a"', b"2")), MULTIPART),
        "form:a is there more than once",
    ),
    ("form:a", with_body(multipart(('name="a"; name="b"', b"1")), MULTIPART), "body has a part without one name"),
    ("form:a", with_body(multipart(("name*=utf-8''a", b"1")), MULTIPART), "body has a part without one name"),
    ("form:a", with_body(b"x", [("content-type", "multipart/form-data")]), "content-type must name one boundary"),
    ("form:a", with_body(b"--xYz\r\n" * (FIELDS_MAX + 1), MULTIPART), "body has more than 1000 fields"),
    ("form:a", with_body(b"--xYz\r\nX: y\r\n\r\n1\r\n", MULTIPART), "body has a part without one Content-Disposition"),
]


@pytest.mark.parametrize(("source", "asked", "told"), REFUSED)
def test_what_can_be_read_in_two_ways_is_refused(source: str, asked: Request, told: str) -> None:
    """No reader is told one thing and the limiter another; the value itself is in no message (8)."""
    with pytest.raises(MalformedRequest) as fault:
        key(source, asked)

    assert told == str(fault.value)


def test_path_parameters_are_keys() -> None:
    """The value is that of the rule's own path, in whichever of its paths fits, however it is spelled."""
    match = Match(paths=("/orders/{id}/verify", "/v2/{any}/orders/{id}"))
    asked = [request(path) for path in ("/orders/7/verify", "/orders/%37/verify", "/v2/x/orders/7", "/orders/8/verify")]
    keys = [key("path:id", each, match=match) for each in asked]

    assert 1 == len(set(keys[:3]))
    assert keys[0] != keys[3]


def test_two_paths_with_two_values_are_refused() -> None:
    """Where the application routes by another path than the one that was sent, there is no one value."""
    asked = request("/orders/7", routed_path="/orders/8")
    with pytest.raises(MalformedRequest, match="path:id can be read in two ways"):
        key("path:id", asked, match=Match(path="/orders/{id}"))


def test_combinations_are_injective() -> None:
    """Parts are never taken for each other, and all of them must be there."""
    both = (Source("all", parts=(parse_source("header:X-A"), parse_source("query:q"))), CLIENT)
    planner = Planner(Policy((per_minute(principal=both),)))

    def of(target: str, value: str | None) -> bytes:
        return planner.hits(request(target, headers=[] if value is None else [("x-a", value)]))[0].key

    keys = {of("/?q=bc", "a"), of("/?q=c", "ab"), of("/?q=a", "bc"), of("/", "a"), of("/?q=1:b", "1:a")}
    assert 5 == len(keys)
    assert of("/?q=x", None) == of("/", "y") == by_client(request())


@given(
    st.lists(st.tuples(st.text("ab:+ ", max_size=4), st.text("ab:+ ", max_size=4)), min_size=2, max_size=2, unique=True)
)
def test_no_two_combinations_share_a_key(pairs: list[tuple[str, str]]) -> None:
    """Whatever the parts hold (7)."""
    source = Source("all", parts=(parse_source("json:a"), parse_source("json:b")))
    planner = Planner(Policy((per_minute(principal=(source,)),)))
    keys = [planner.hits(with_body(json.dumps({"a": a, "b": b}).encode()))[0].key for a, b in pairs]

    assert keys[0] != keys[1] or any("" in pair for pair in pairs)


def test_the_identified_caller_is_charged_however_it_was_identified() -> None:
    """By the first credential that is good, or as the application says."""
    planner = Planner(Policy((per_minute(principal=(parse_source("identified"), CLIENT)),)))
    rules = planner.rule_set(request())
    ann = rules.hits_of(request(), Identity(verified=(("header:x-api-key", "ann"), ("org", "acme"))))
    same = rules.hits_of(request(peer="192.0.2.1"), Identity(verified=(("application", "ann"),)))

    assert ann[0].key == same[0].key
    assert ann[0].key != rules.hits_of(request(), Identity())[0].key


# --- Conditions ------------------------------------------------------------------------------------------------------


def wanting(kind: str, name: str, *values: str) -> Condition:
    patterns = [pattern for pattern in map(parse_pattern, values) if pattern is not None]
    return Condition(kind, name, frozenset(v.encode() for v in values if "*" not in v), tuple(patterns))


CONDITIONS = [
    (
        Match(conditions=(wanting("host", "", "api.example.com"),)),
        request(headers=[("host", "API.example.com:8080")]),
        True,
    ),
    (Match(conditions=(wanting("host", "", "*.example.com"),)), request(headers=[("host", "a.b.example.com.")]), True),
    (Match(conditions=(wanting("host", "", "*.example.com"),)), request(headers=[("host", "example.com")]), False),
    (Match(conditions=(wanting("header", "x-beta", "1"),)), request(headers=[("X-Beta", " 1 ")]), True),
    (Match(conditions=(wanting("header", "x-beta", "1"),)), request(headers=[("X_Beta", "1")]), True),
    (Match(conditions=(wanting("header", "x-beta", "1"),)), request(headers=[("x-beta", "2"), ("x-beta", "1")]), True),
    (Match(conditions=(wanting("header", "x-beta", "1"),)), request(), False),
    (Match(conditions=(wanting("query", "format", "csv", "xls*"),)), request("/?format=xlsx"), True),
    (Match(conditions=(wanting("query", "format", "csv"),)), request("/?format=json&form%61t=csv"), True),
    (Match(conditions=(wanting("query", "format", "csv"),)), request("/?format=%zz"), False),
    (Match(conditions=(wanting("cookie", "tier", "*"),)), request(headers=[("cookie", "tier=")]), True),
    (Match(conditions=(wanting("cookie", "tier", "*"),)), request(headers=[("cookie", "tears=1")]), False),
    (Match(excepted_methods=frozenset({"GET"})), request(method="HEAD"), False),
    (Match(excepted_methods=frozenset({"GET"})), request(method="POST"), True),
    (Match(paths=("/a", "/b/**")), request("/b/c"), True),
    (Match(paths=("/a", "/b/**")), request("/c"), False),
    (Match(identified=True), request(), False),
    (Match(identified=False), request(), True),
]


@pytest.mark.parametrize(("match", "asked", "expected"), CONDITIONS)
def test_a_condition_holds_if_some_reader_sees_it_hold(match: Match, asked: Request, expected: bool) -> None:
    """Whichever of several values an application takes, the rule applies."""
    assert expected == bool(Planner(Policy((per_minute(match=match),))).hits(asked))


@pytest.mark.parametrize(
    ("peer", "expected"), [("10.1.2.3", True), ("::ffff:10.1.2.3", True), ("11.0.0.1", False), (None, False)]
)
def test_a_network_is_the_clients(peer: str | None, expected: bool) -> None:
    """As far as trusted proxies say, and never another version's."""
    import ipaddress

    networks = (ipaddress.ip_network("10.0.0.0/8"), ipaddress.ip_network("2001:db8::/32"))
    policy = Policy((per_minute(match=Match(networks=networks)),), trust=Trust(hops=0))

    assert expected == bool(Planner(policy).hits(request(peer=peer)))


@pytest.mark.parametrize(
    ("body", "expected"),
    [
        (b'{"user": {"role": "guest"}}', True),
        (b'{"User": {"ROLE": "guest"}}', True),
        (b'{"user": {"role": "admin"}}', False),
        (b'{"user": {"role": "admin"}, "user": {"role": "guest"}}', True),
        (b'{"user.role": "guest"}', True),
        (b'{"role": "guest"}', False),
        (b"", False),
        (b"no JSON", True),
        (None, True),
    ],
)
def test_dotted_paths_into_json(body: bytes | None, expected: bool, tmp_path: Path) -> None:
    """Every reading counts, and a body that cannot be read meets the condition."""
    file = tmp_path / "p.yaml"
    file.write_text("rules: [{limit: 9/minute, match: {json: {user.role: guest}}}]\n")

    assert expected == bool(Planner(loader.load(file)).hits(with_body(body)))


def test_a_plan_is_a_condition(tmp_path: Path) -> None:
    """The plan that a trusted header names, or the default."""
    file = tmp_path / "p.yaml"
    file.write_text(
        "trusted_hops: 1\nplan: {from: [header:X-Plan], default: free}\n"
        "rules: [{name: all, limit: 9/minute}, {name: free, limit: 5/minute, match: {plan: free}},"
        " {name: pro, limit: 7/minute, match: {plan: [pro, team]}},"
        " {name: by-plan, limit: {free: 1/hour, pro: 2/hour, team: 3/hour}}]\n"
    )
    planner = Planner(loader.load(file))

    def names(plan: str) -> list[str]:
        return [hit.rule.name for hit in planner.hits(request(headers=[("x-plan", plan)] if plan else []))]

    assert (["all", "free", "by-plan"], ["all", "pro", "by-plan"]) == (names(""), names("pro"))


# --- Rules that stand in for others ----------------------------------------------------------------------------------


def named(text: str, **more: Any) -> Any:
    return per_minute(name=text, **more)


def test_instead_puts_away_the_rules_before_it() -> None:
    """But those that say `always`, and those after it."""
    rules = [named("a"), named("b", always=True), named("c", instead=True), named("d")]

    assert ["b", "c", "d"] == [rule.name for rule in applying(rules, ())]
    assert ["a", "b", "c", "d"] == [rule.name for rule in applying(rules, {rules[2]})]


@pytest.mark.parametrize(
    ("asked", "expected"),
    [
        (request("/v1/x"), ["general"]),
        (request("/v1/exports/1"), ["exports"]),
        (request("/v1/exports/1?format=csv"), ["csv"]),
    ],
)
def test_a_rule_replaces_those_that_match_the_same_request(asked: Request, expected: list[str]) -> None:
    """The more special one holds, be it chosen by path or by what the query says."""
    csv = Match(path="/v1/exports/**", conditions=(wanting("query", "format", "csv"),))
    rules = (
        named("general"),
        named("exports", match=Match(path="/v1/exports/**"), instead=True),
        named("csv", match=csv, instead=True),
    )

    assert expected == [hit.rule.name for hit in Planner(Policy(rules)).hits(asked)]


def test_what_is_not_sure_to_match_replaces_nothing() -> None:
    """A body that cannot be read, or a path that the application may route otherwise, is no way out of a limit."""
    by_body = (
        named("strict"),
        named("lax", instead=True, match=loader.build(limit="1/hour", environ={}).rules[0].match),
    )
    from ratelimiter.core.json_body import JsonField

    by_body = (by_body[0], named("lax", instead=True, match=Match(json=(JsonField("a", ("1.0",)),))))
    by_path = (named("strict"), named("lax", instead=True, match=Match(path="/lax")))

    def names(rules: tuple[Any, ...], asked: Request) -> list[str]:
        return [hit.rule.name for hit in Planner(Policy(rules)).hits(asked)]

    assert ["lax"] == names(by_body, with_body(b'{"a": 1}'))
    assert ["strict", "lax"] == names(by_body, with_body(b"no JSON"))
    assert ["lax"] == names(by_path, request("/lax"))
    assert ["strict", "lax"] == names(by_path, request("/lax", routed_path="/strict"))


@pytest.mark.parametrize(
    ("sent", "host"),
    [(b"a.Example", b"a.example"), (b"a:80", b"a"), (b"[::1]:80", b"[::1]"), (b" a. ", b"a"), (b"", b"")],
)
def test_hosts(sent: bytes, host: bytes) -> None:
    """Without port, final dot and case."""
    assert host == host_of(sent)


@given(st.binary(max_size=200))
def test_no_form_makes_a_reader_fail(text: bytes) -> None:
    """Whatever is sent, there is an answer or a refusal."""
    readers: tuple[Callable[[], FormFields], ...] = (
        lambda: read_urlencoded(text, "body"),
        lambda: read_multipart(text, b"multipart/form-data;boundary=a"),
        lambda: read_cookies([text]),
    )
    for read in readers:
        with suppress(MalformedRequest):
            assert all(isinstance(value, bytes) for values in read().values() for value in values)


def test_several_fields_of_one_place_are_one_key() -> None:
    """A combination takes each of its parts from the same query."""
    planner = Planner(
        Policy((per_minute(principal=(Source("all", parts=(parse_source("query:a"), parse_source("query:b"))),)),))
    )
    one, same, other = (planner.hits(request(target))[0].key for target in ("/?a=1&b=2", "/?b=2&a=1", "/?a=1&b=3"))

    assert one == same != other
