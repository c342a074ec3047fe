"""Log lines for tests, in the combined format or as JSON with milliseconds."""

from __future__ import annotations

import json
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

from ratelimiter.config.loader import load
from ratelimiter.replay.answer import answer_of
from ratelimiter.replay.run import Replay

if TYPE_CHECKING:
    from collections.abc import Iterable
    from pathlib import Path

T0_S = 1_795_865_376


def combined(at_s: int, client: str, target: str = "/", *, method: str = "GET", status: int = 200) -> str:
    at = datetime.fromtimestamp(at_s, UTC).strftime("%d/%b/%Y:%H:%M:%S +0000")
    return f'{client} - - [{at}] "{method} {target} HTTP/1.1" {status} 6 "-" "curl/8.9"'


def as_json(at_ms: int, client: str, target: str = "/", **more: Any) -> str:
    told = {"msec": f"{at_ms // 1000}.{at_ms % 1000:03}", "remote_addr": client, "request_uri": target}
    return json.dumps({**told, "request_method": "GET", "status": 200, **more})


def write(path: Path, lines: Iterable[str]) -> str:
    path.write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")
    return str(path)


def policy_file(folder: Path, text: str, name: str = "policy.yaml") -> str:
    path = folder / name
    path.write_text(text)
    return str(path)


def replayed(policy: str, *logs: str, **settings: Any) -> Replay:
    against = settings.pop("against", None)
    replay = Replay(load(policy), logs, against=load(against) if against else None, **settings)
    replay.run()
    return replay


def answered(policy: str, *logs: str, **settings: Any) -> dict[str, Any]:
    return answer_of(replayed(policy, *logs, **settings))
