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
    rules = [{"limit": PLENTY}, {"name": "other", "limit": PLENTY, "match": {"path": "/other"}}]
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


JUDGED = [row for row in PATHS if row.seen and not {"%", ";"} & set(row.seen[0])]  # no rule's path is spelled so


@pytest.mark.parametrize("row", JUDGED, ids=lambda row: str(row.number))
async def test_the_path_that_is_judged_is_the_path_that_is_forwarded(row: Row, tmp_path: Path) -> None:
    """A limit on exactly what the upstream was asked for is met by the same input."""
    path = row.seen[0].split(" ")[1].partition("?")[0]
    file = tmp_path / "policy.yaml"
    file.write_text(json.dumps({"rules": [{"limit": "1/minute", "match": {"path": path.rstrip("/")}}]}))
    async with (
        Upstream().serving() as upstream,
        sidecar(upstream, limit=None, config=str(file)) as proxy,
        proxy.client() as client,
    ):
        assert [200, 429] == [(await client.exchange(row.raw)).status for _ in range(2)]


@pytest.mark.parametrize(
    "target",
    ["/y%2f..%2fx", "/@scope%2Fname", "/a/../b%5c?c=%zz", "//a%ff", "/./%2e%c0%ae", "http://api.example/a%2Fb"],
)
async def test_where_no_rule_looks_at_paths_the_upstream_reads_them_itself(target: str) -> None:
    """A path that readers may read differently is forwarded as it is: it made no difference to what was limited."""
    async with Upstream().serving() as upstream, sidecar(upstream, limit="1/minute") as proxy, proxy.client() as client:
        assert [200, 429] == [(await client.exchange(get(target.encode()))).status for _ in range(2)]
    assert ["GET " + target.removeprefix("http://api.example")] == [seen.request for seen in upstream.seen]


@pytest.mark.parametrize("target", [b"/x%00", b"/x%0d%0aX:1", b"/x%7f", b"/x%", b"/x%zz", b"/x\\y", b'/x"', b"/x#y"])
async def test_what_is_no_path_is_none(target: bytes) -> None:
    """Not even where no rule looks: RFC 3986 knows no such path, or it holds what an upstream may break a line at."""
    async with Upstream().serving() as upstream, sidecar(upstream) as proxy, proxy.client() as client:
        assert 400 == (await client.exchange(get(target))).status
        assert b"" == await client.closed()
    assert [] == upstream.seen
