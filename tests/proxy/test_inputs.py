"""Goal: what was limited is what the upstream saw, or nothing was forwarded. Method: raw bytes through a real sidecar
to an upstream that records what it sees.
"""

from __future__ import annotations

import json
import re
from typing import TYPE_CHECKING

import pytest

from tests.proxy.inputs import PATHS, ROWS, Row, get
from tests.proxy.wire import PLENTY, Upstream, sidecar

if TYPE_CHECKING:
    from pathlib import Path

ID = re.compile("[A-Za-z0-9_-]+")


@pytest.mark.parametrize("row", ROWS, ids=lambda row: f"{row.number}-{row.what.replace(' ', '-')}")
async def test_rows(row: Row, tmp_path: Path) -> None:
    """Each input gets the answers of its row, in our words and with an id; the upstream sees no more than the row says,
    and a connection that is kept is in step.
    """
    file = tmp_path / "policy.yaml"
    rules = [{"limit": PLENTY}, {"name": "x", "limit": PLENTY, "match": {"path": "/x"}}]
    file.write_text(json.dumps({"dialect": "intrace", "rules": rules}))
    async with (
        Upstream().serving() as upstream,
        sidecar(upstream, limit=None, config=str(file)) as proxy,
        proxy.client() as client,
    ):
        client.send(row.raw)
        answers = [await client.response() for _ in row.statuses]

        assert row.statuses == tuple(answer.status for answer in answers)
        assert all(ID.fullmatch(answer.value("x-request-id") or "") for answer in answers)
        if row.closed:
            assert "application/json" == answers[-1].value("content-type")
            assert b"" == await client.closed()
            assert "close" == answers[-1].value("connection")
        else:
            assert 200 == (await client.exchange(get(b"/probe"))).status
        expected = [*row.seen] if row.closed else [*row.seen, "GET /probe"]
        assert expected == [seen.request for seen in upstream.seen]


# No rule's path is spelled with these.
JUDGED = [row for row in PATHS if row.seen and row.number != 69 and not {"%", ";"} & set(row.seen[0])]


@pytest.mark.parametrize("row", JUDGED, ids=lambda row: str(row.number))
async def test_the_path_that_is_judged_is_the_path_that_is_forwarded(row: Row, tmp_path: Path) -> None:
    """A limit on exactly what the upstream was asked for is met by the same input."""
    path = "/" + row.seen[0].split(" ")[1].partition("?")[0].strip("/")
    file = tmp_path / "policy.yaml"
    file.write_text(json.dumps({"rules": [{"limit": "1/minute", "match": {"path": path}}]}))
    async with (
        Upstream().serving() as upstream,
        sidecar(upstream, limit=None, config=str(file)) as proxy,
        proxy.client() as client,
    ):
        assert [200, 429] == [(await client.exchange(row.raw)).status for _ in range(2)]


@pytest.mark.parametrize(
    "target",
    [
        "/y%2f..%2fx", "/@scope%2Fname", "/a/../b%5c?c=%zz", "//a%ff", "/./%2e%c0%ae", "http://api.example/a%2Fb",
        "/fetch/https://example.com/a.png", "/files/a%3Bb%26%2C%3A%40%28.txt", "/%7Euser/%41", "/files/a[1]|b.txt",
        '/a^{b}"c"<d>`e`', "/x%00", "/x%0d%0aX:1", "/x%7f", "/x%", "/x%zz", "/x%E9",
    ],
)  # fmt: skip
async def test_where_no_rule_looks_at_paths_the_upstream_reads_them_itself(target: str) -> None:
    """A path that readers may read differently is forwarded as it is: it made no difference to what was limited."""
    async with Upstream().serving() as upstream, sidecar(upstream, limit="1/minute") as proxy, proxy.client() as client:
        assert [200, 429] == [(await client.exchange(get(target.encode()))).status for _ in range(2)]
    assert ["GET " + target.removeprefix("http://api.example")] == [seen.request for seen in upstream.seen]


@pytest.mark.parametrize(
    ("target", "seen"),
    [
        ("/api/v4/projects/group%2Fproj", "/api/v4/projects/group%2Fproj"),
        ("/fetch/https://example.com/a.png", "/fetch/https://example.com/a.png"),
        ("/files/a%3Bb.txt", "/files/a%3Bb.txt"),
        ("/files/a[1].txt", "/files/a[1].txt"),
        ("/files/%E9", "/files/%E9"),
        ("/files/x%00", "/files/x%00"),
        ("/v1/reports%2F1", None),  # below the rule to one server, beside it to another
        ("/v1/x%2F..%2Freports", None),
        ("/v1/reports%00", None),
        ("/x/%2e%2e/v1/reports/a%3Bb", "/v1/reports/a%3Bb"),  # one meaning, but not to a server that resolves nothing
        ("/v1//reports/1", "/v1/reports/1"),
        ("/v1/reports//1", "/v1/reports//1"),
        ("/v1/reports/a/../%7e", "/v1/reports/a/../%7e"),
    ],
)
async def test_what_differs_for_no_rule_passes_as_it_came(target: str, seen: str | None, tmp_path: Path) -> None:
    """Where a rule looks at paths, only what two servers could take for different rules is refused, or made plain; a
    reserved character is never decoded.
    """
    file = tmp_path / "policy.yaml"
    rules = [{"limit": PLENTY}, {"name": "reports", "limit": PLENTY, "match": {"path": "/v1/reports/**"}}]
    file.write_text(json.dumps({"rules": rules}))
    async with (
        Upstream().serving() as upstream,
        sidecar(upstream, limit=None, config=str(file)) as proxy,
        proxy.client() as client,
    ):
        assert (400 if seen is None else 200) == (await client.exchange(get(target.encode()))).status
    assert ([] if seen is None else [f"GET {seen}"]) == [each.request for each in upstream.seen]


@pytest.mark.parametrize(
    "target", ["/v1/reports%2F1", "/v1/x%2F..%2Freports", "/v1/reports%00", "/v1/%E9/..%5Creports"]
)
async def test_ambiguous_paths_may_meet_the_rules_of_all_readings(target: str, tmp_path: Path) -> None:
    """With `ambiguous_paths: match` such a path is forwarded as it came, and charged to what any reading meets."""
    file = tmp_path / "policy.yaml"
    rules = [{"name": "reports", "limit": "1/minute", "match": {"path": "/v1/reports/**"}}]
    file.write_text(json.dumps({"ambiguous_paths": "match", "rules": rules}))
    async with (
        Upstream().serving() as upstream,
        sidecar(upstream, limit=None, config=str(file)) as proxy,
        proxy.client() as client,
    ):
        assert [200, 429] == [(await client.exchange(get(target.encode()))).status for _ in range(2)]
    assert [f"GET {target}"] == [each.request for each in upstream.seen]


@pytest.mark.parametrize("target", [b"/x\\y", b"/x#y"])
async def test_what_is_no_path_is_none(target: bytes) -> None:
    """Not even where no rule looks: RFC 3986 knows no such path, and browsers send none."""
    async with Upstream().serving() as upstream, sidecar(upstream) as proxy, proxy.client() as client:
        assert 400 == (await client.exchange(get(target))).status
        assert b"" == await client.closed()
    assert [] == upstream.seen
