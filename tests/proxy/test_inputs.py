"""Goal: what was limited is what the upstream saw, or nothing was forwarded. Method: raw bytes through a real sidecar
to an upstream that records what it sees.
"""

from __future__ import annotations

import json
import re
from typing import TYPE_CHECKING

import pytest

from tests.proxy.inputs import PATHS, ROWS, Row, get
from tests.proxy.wire import Upstream, sidecar

if TYPE_CHECKING:
    from pathlib import Path

ID = re.compile("[A-Za-z0-9_-]+")


@pytest.mark.parametrize("row", ROWS, ids=lambda row: f"{row.number}-{row.what.replace(' ', '-')}")
async def test_rows(row: Row) -> None:
    """Each input gets the answers of its row, in our words and with an id; the upstream sees no more than the row says,
    and a connection that is kept is in step.
    """
    async with (
        Upstream().serving() as upstream,
        sidecar(upstream, dialect="intrace") as proxy,
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
