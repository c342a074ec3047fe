from __future__ import annotations

import json
from typing import TYPE_CHECKING

from ratelimiter.config import loader
from ratelimiter.logs.access_log import AccessLog
from ratelimiter.proxy.exchange_record import JUDGE, ExchangeRecord
from ratelimiter.sidecar.judge import LimiterJudge
from ratelimiter.stores.memory import MemoryStore
from tests.requesting import request

if TYPE_CHECKING:
    from pathlib import Path

    from ratelimiter.proxy.interfaces import Verdict


def written(folder: Path, verdict: Verdict) -> dict[str, object]:
    """Return the line of the access log for *verdict*."""
    log = AccessLog(str(folder / "access.log"))
    log.exchanged(
        ExchangeRecord("GET", b"/", 429, JUDGE, 0, 0, 1.0, 0.0, verdict.request_id, decision=verdict.decision)
    )
    log.close()
    return dict(json.loads((folder / "access.log").read_text()))


async def test_a_refusal_is_explained_by_its_line(tmp_path: Path) -> None:
    """Reason, rule, limit, what remained, and when to come back; an admission has none of it."""
    gate = LimiterJudge(loader.build(limit=["1/hour", "100/day"], environ={}), MemoryStore())
    admitted, refused = await gate.judge(request()), await gate.judge(request())

    line = written(tmp_path, refused)
    assert ("over_limit", "per-hour", 1, 0) == tuple(line[name] for name in ("reason", "rule", "limit", "remaining"))
    assert 0 < int(str(line["retry_after_ms"])) <= 3_600_000
    assert admitted.decision is None
