"""Each format, on lines that the real servers wrote for the same six requests (tests/replay/data)."""

from __future__ import annotations

import json
import re
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ratelimiter.errors import ConfigError
from ratelimiter.replay.formats import format_of, text_named
from ratelimiter.replay.record import NO_REQUEST, Record, Unread
from ratelimiter.replay.times import timezone

if TYPE_CHECKING:
    from ratelimiter.replay.format import ReadLine

DATA = Path(__file__).parent / "data"
DETECTED = {
    "alb.log": "alb",
    "apache_combined.log": "combined",
    "apache_common.log": "common",
    "apache_vhost.log": "vhost",
    "caddy_json.log": "caddy",
    "cloudfront.tsv": "cloudfront",
    "envoy_default.log": "envoy",
    "envoy_json.log": "envoy-json",
    "gunicorn.log": "combined",
    "haproxy.log": "haproxy",
    "iis.log": "iis",
    "nginx_combined.log": "combined",
    "nginx_json.log": "json",
    "ours.log": "ours",
    "traefik_clf.log": "traefik",
    "traefik_json.log": "traefik-json",
}
EPOCH = datetime(1970, 1, 1, tzinfo=UTC)


def lines_of(name: str) -> list[str]:
    return (DATA / name).read_text(encoding="utf-8").split("\n")[:-1]


def is_read_or_unread(read: ReadLine, line: str) -> bool:
    try:
        return isinstance(read(line), Record)
    except Unread as fault:
        return bool(fault.kind)


def read_all(name: str, wanted: str = "auto", principal: str = "") -> list[Record | Unread]:
    lines = lines_of(name)
    read = format_of(wanted, lines, place=name, principal=principal).open()
    found: list[Record | Unread] = []
    for line in lines:
        try:
            record = read(line)
        except Unread as fault:
            found.append(fault)
            continue
        if record is not None:
            found.append(record)
    return found


def expected_of(name: str) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = json.loads((DATA / f"{name.rsplit('.', 1)[0]}.expected.json").read_text())
    return found


@pytest.mark.parametrize("name", sorted(DETECTED))
def test_the_format_is_found(name: str) -> None:
    """Each format is told from its own lines."""
    assert DETECTED[name] == format_of("auto", lines_of(name), place=name).name


@pytest.mark.parametrize("name", sorted(DETECTED))
def test_every_field_is_read(name: str) -> None:
    """Client, user, method, target, status, bytes, agent and referer are what the server was asked and answered."""
    records, expected = read_all(name), expected_of(name)

    assert len(expected) == len(records)
    for wanted, record in zip(expected, records, strict=True):
        if wanted["method"] is None:
            assert isinstance(record, Unread)
            assert NO_REQUEST == record.kind
            continue
        assert isinstance(record, Record)
        told = (record.client, record.user, record.method, record.target, record.status, record.agent, record.referer)
        names = ("client", "user", "method", "target", "status", "user_agent", "referer")
        assert tuple(wanted[each] for each in names) == told
        assert (wanted["bytes"] or 0) == (record.size or 0)


@pytest.mark.parametrize("name", sorted(DETECTED))
def test_requests_are_dated_at_their_start(name: str) -> None:
    """A time of the end becomes one of the start where the duration stands in the line; else it is taken as it is."""
    for wanted, record in zip(expected_of(name), read_all(name), strict=True):
        if isinstance(record, Record):
            at = datetime.fromisoformat(wanted["start"] or wanted["time"])
            assert (at - EPOCH) // timedelta(milliseconds=1) == record.start_ms
            if wanted["duration_ms"] is not None:
                assert record.duration_ms == pytest.approx(wanted["duration_ms"], abs=0.001)


def test_uvicorn_is_refused_for_want_of_times() -> None:
    """A log without times is refused, and the error says what to log instead."""
    with pytest.raises(ConfigError, match="no times"):
        format_of("auto", lines_of("uvicorn.log"), place="uvicorn.log")


def test_an_unknown_format_is_refused_with_its_place_and_what_would_do() -> None:
    """The error names the log, shows its first line and lists the formats."""
    with pytest.raises(ConfigError, match=r"x\.log: .*'what is this'.*--format.*combined"):
        format_of("auto", ["what is this"], place="x.log")


def test_a_forged_user_agent_shifts_no_field_of_envoy() -> None:
    """Envoy writes quotes as they came: what a client puts into its user agent changes neither status nor client."""
    honest = lines_of("envoy_default.log")[0]
    forged = honest.replace('"curl/8.9"', '"x" 200 - 0 6 1 0 "198.51.100.1" "y" "z"')
    read = text_named("envoy", UTC, "").open()

    one, other = read(honest), read(forged)

    assert one is not None
    assert other is not None
    assert one[:8] == other[:8]
    assert one.host == other.host


def test_columns_change_within_a_w3c_log() -> None:
    """A second `#Fields` line names the columns from there on."""
    last = read_all("iis.log")[-1]

    assert isinstance(last, Record)
    assert ("10.0.0.1", "203.0.113.7, 10.0.0.1") == (last.client, last.forwarded)


@pytest.mark.parametrize(
    ("wanted", "line", "expected"),
    [
        (
            '$remote_addr - $remote_user [$time_local] "$request" $status $bytes_sent $request_time "$http_x_api_key"',
            '203.0.113.7 - al ice [28/Nov/2026:11:29:36 +0000] "GET /a HTTP/1.1" 200 6 0.250 "k1"',
            ("203.0.113.7", "al ice", "GET", "/a", 200, 250.0, (("x-api-key", "k1"),)),
        ),
        (
            "$msec $http_x_forwarded_for|$request_method $request_uri $status",
            "1795865376.495 203.0.113.8, 10.0.0.1|POST /b?c=d 401",
            (None, None, "POST", "/b?c=d", 401, None, ()),
        ),
        (
            '%{msec}t %a %m %U%q %>s %D "%{X-Plan}i"',
            '1795865376495 203.0.113.9 GET /c?x=1 200 1500 "gold"',
            ("203.0.113.9", None, "GET", "/c?x=1", 200, 1.5, (("x-plan", "gold"),)),
        ),
        (
            '{"at":"$time_iso8601","who":"$remote_addr","r":"$request","took":$request_time}',
            '{"at":"2026-11-28T11:29:36+00:00","who":"203.0.113.7","r":"GET /d HTTP/1.1","took":0.5}',
            ("203.0.113.7", None, "GET", "/d", 0, 500.0, ()),
        ),
        (
            "json:time=t,client=c.ip,method=m,target=p,duration=d:ms,header:X-Plan=plan,stamp=start",
            '{"t":1795865376495,"c":{"ip":"203.0.113.7"},"m":"PUT","p":"/e","d":3,"plan":"gold"}',
            ("203.0.113.7", None, "PUT", "/e", 0, 3.0, (("x-plan", "gold"),)),
        ),
    ],
)
def test_a_format_can_be_told(wanted: str, line: str, expected: tuple[object, ...]) -> None:
    """Format strings of nginx and Apache, and named JSON fields, are read."""
    record = format_of(wanted, [line], place="x").open()(line)

    assert record is not None
    told = (record.client, record.user, record.method, record.target, record.status, record.duration_ms, record.headers)
    assert expected == told


@pytest.mark.parametrize(
    ("wanted", "match"),
    [
        ("$remote_addr $request", "has no time"),
        ("$remote_addr $msec", "has no request"),
        ("$msec $remote_addr$http_x $request", "side by side"),
        ("json:time", "FIELD=KEY"),
        ("json:client=ip", "no field is known as time"),
        ("nginx2", "not a format"),
        ("iis", "#Fields"),
    ],
)
def test_a_format_that_cannot_be_is_refused(wanted: str, match: str) -> None:
    """The error names the flag and says what is missing."""
    with pytest.raises(ConfigError, match=match):
        format_of(wanted, ['{"path": "/"}'], place="x")


def test_the_principal_is_a_field_of_the_line() -> None:
    """`--principal` takes a key of JSON, a variable of a format string, or a field by our name for it."""
    assert ["k1", None] == [each.principal for each in read_all("nginx_json.log", principal="api_key")[:2]]  # type: ignore[union-attr]
    assert "alice" == read_all("nginx_combined.log", principal="user")[1].principal  # type: ignore[union-attr]
    with pytest.raises(ConfigError, match="--principal: 'plan' is not in the"):
        read_all("nginx_json.log", principal="plan")


@pytest.mark.parametrize(
    ("name", "principal", "expected"),
    [
        ("nginx_combined.log", "remote_user", "alice"),
        ("nginx_combined.log", "$remote_addr", "10.0.0.1"),
        ("nginx_json.log", "http_x_forwarded_for", "203.0.113.8, 10.0.0.1"),
        ("nginx_json.log", "xff", "203.0.113.8, 10.0.0.1"),
        ("envoy_json.log", "x_forwarded_for", "203.0.113.8, 10.0.0.1"),
        ("traefik_clf.log", "remote_addr", "203.0.113.8"),
        ("haproxy.log", "User-Agent", 'Mozilla/5.0 (X11; Linux) "quoted" \\back'),
        ("iis.log", "cs-username", "alice"),
        ("caddy_json.log", "request.client_ip", "203.0.113.8"),
    ],
)
def test_the_principal_may_be_called_as_the_server_calls_it(name: str, principal: str, expected: str) -> None:
    """Variables of nginx, keys, columns and header names all name a field."""
    record = read_all(name, principal=principal)[1]

    assert isinstance(record, Record)
    assert expected == record.principal


@pytest.mark.parametrize(
    ("name", "wanted"),
    [
        ("nginx_json.log", "nginx"), ("nginx_combined.log", "nginx"), ("nginx_combined.log", "nginx_combined"),
        ("traefik_json.log", "traefik"), ("traefik_clf.log", "traefik"), ("envoy_json.log", "envoy"),
        ("envoy_default.log", "envoy"), ("envoy_json.log", "istio"), ("apache_vhost.log", "apache-vhost"),
        ("cloudfront.tsv", "cloudfront"), ("iis.log", "iis"), ("alb.log", "alb"), ("caddy_json.log", "caddy"),
        ("haproxy.log", "haproxy"), ("ours.log", "ours"), ("apache_common.log", "common"),
    ],
)  # fmt: skip
def test_a_server_is_named_whatever_it_writes(name: str, wanted: str) -> None:
    """A name finds the format that the log is in, text or JSON, with hyphens or underscores."""
    assert 3 <= sum(isinstance(each, Record) for each in read_all(name, wanted))


def test_haproxy_times_are_of_the_zone_that_was_named() -> None:
    """HAProxy writes local times without saying which."""
    line = lines_of("haproxy.log")[0]
    utc = text_named("haproxy", UTC, "").open()(line)
    berlin = text_named("haproxy", timezone("Europe/Berlin"), "").open()(line)

    assert utc is not None
    assert berlin is not None
    assert 3_600_000 == utc.start_ms - berlin.start_ms


def test_captures_of_haproxy_can_be_named() -> None:
    """With names, captured headers are those, whatever they look like."""
    record = text_named("haproxy:x-api-key|user-agent", UTC, "").open()(lines_of("haproxy.log")[0])

    assert record is not None
    assert (("x-api-key", "203.0.113.7"),) == record.headers


TEXTS = [text_named(name, UTC, "").open() for name in ("combined", "vhost", "traefik", "envoy", "haproxy", "alb")]
TEXTS.append(
    format_of('$http_a "$http_b" - $remote_user [$time_local] "$request" $status', [], place="x").open()
)  # fmt: skip
HOSTILE = st.text(alphabet=' "\\[]-:,/#{}|0aG\x00\r\té\ud800', max_size=200)


@given(HOSTILE)
def test_no_line_is_more_than_unread(text: str) -> None:
    """Whatever stands in a line, it is a record or unread, and nothing else happens."""
    for read in TEXTS:
        for line in (text, lines_of("nginx_combined.log")[0] + text, text + lines_of("envoy_default.log")[0]):
            assert is_read_or_unread(read, line)


@pytest.mark.parametrize("seed", ["a ", ", ", '" ', "\\", '"', "[", "a, ", " [", "{", "%", "x\\x", "- - [", '" "'])
def test_a_long_hostile_line_is_read(seed: str) -> None:
    """A line of 400 kB of what makes patterns try again is done with at once: quadratic work would take hours."""
    for read in TEXTS:
        for line in (f'203.0.113.7 - - [28/Nov/2026:11:29:36 +0000] "GET /{seed * 200_000}', seed * 200_000):
            assert is_read_or_unread(read, line)


def test_patterns_are_possessive() -> None:
    """No pattern has a plain repetition inside of another one, which is what makes matching exponential."""
    source = "".join(path.read_text() for path in (DATA.parents[2] / "ratelimiter/replay").glob("*_format*.py"))

    assert [] == re.findall(r"\)[*+](?![+?])", "".join(re.findall(r'r"(?:[^"\\]|\\.)*"', source)))
