"""Goal: a client that does as it is told finishes its batch, one that does not gains nothing, and no outage helps.

Method: the scripted client of the transcripts, against copies of the policy files in which a minute is shorter, and
nothing else is different.
"""

from __future__ import annotations

import asyncio
import io
import re
from collections import Counter
from typing import TYPE_CHECKING, Any, NamedTuple

import pytest

from ratelimiter.config.loader import load
from tests.stores.redis_server import wait_until
from tests.systems.client import make_batch
from tests.systems.documented import DOCUMENTED, filled
from tests.systems.scene import Scene
from tests.systems.serving import WAYS
from tests.systems.system import SYSTEMS

if TYPE_CHECKING:
    from collections.abc import Coroutine, Iterator
    from pathlib import Path

    from tests.systems.client import Report

pytestmark = pytest.mark.wall_clock  # it waits for real servers or timers


class Short(NamedTuple):
    """A system on a quicker clock, and a batch that meets its limit there."""

    minute_s: int
    calls: int
    pauses: int = 1  # at least


SHORT = {
    "intrace": Short(2, 150, pauses=2),
    "trace": Short(12, 200),
    "tracefinance": Short(12, 200),
    "sentinel": Short(1, 70, pauses=2),
    "tracefinance-v1": Short(60, 30),
}


def shorten(policy: Path, minute_s: int) -> None:
    """Make a minute last *minute_s* seconds in a policy file, and an hour sixty times as long."""
    text, before = policy.read_text(), load(policy)
    for unit, seconds in (("minute", minute_s), ("hour", 60 * minute_s)):
        text = re.sub(rf"([\d}}])/{unit}\b", rf"\1 per {seconds} seconds", text)
    policy.write_text(text)
    windows = [[rule.quota.window_ms for rule in one.rules] for one in (before, load(policy))]
    assert [window_ms * minute_s // 60 for window_ms in windows[0]] == windows[1]


@pytest.fixture(scope="module", params=[(name, way) for name in SHORT for way in WAYS], ids="-".join)
def scene(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Scene]:
    name, way = request.param
    scene = Scene(SYSTEMS[name], way, tmp_path_factory.mktemp(f"{name}-{way}-short"))
    if SHORT[name].minute_s < 60:
        shorten(scene.deployment.policy, SHORT[name].minute_s)
    with scene:
        yield scene


async def make_both(scene: Scene, short: Short, transcript: io.StringIO) -> tuple[Report, Report]:
    """The batch of who heeds what he is told and, at the same time, of somebody else who does not."""
    system = scene.system

    def batch(manner: str, out: io.StringIO | None) -> Coroutine[Any, Any, Report]:
        headers = scene.deployment.headers()
        settings: dict[str, Any] = {
            "headers": headers,
            "manner": manner,
            "calls": short.calls,
            "used": system.used,
            "out": out,
        }
        return make_batch(scene.served.url, system.call, **settings)

    return await asyncio.gather(batch("polite", transcript), batch("rude", None))


def test_batches(scene: Scene) -> None:
    """Who heeds Retry-After is refused once in each window and never after having come back when told; who does not is
    refused again and again. Every call of both is answered in the end.
    """
    short, transcript = SHORT[scene.system.name], io.StringIO()
    polite, rude = asyncio.run(make_both(scene, short, transcript))

    assert ({200: short.calls}, 0, 0) == (polite.statuses, polite.surplus, polite.unheeded), transcript.getvalue()
    assert short.pauses <= len(polite.waits_s)
    assert len(polite.waits_s) + 1 == len([line for line in transcript.getvalue().splitlines() if " s to " in line])
    assert {200: short.calls} == rude.statuses
    assert rude.unheeded > polite.refused
    assert not rude.waits_s


def test_redis_stops_in_the_middle_of_a_batch(scene: Scene) -> None:
    """Nobody gets a 5xx of ours for it, but where the policy says deny, as of credits: a 503 with Retry-After in the
    words of the API. Who is over the limit is refused meanwhile, too. When Redis is back, so is everything.
    """
    name = scene.system.name
    denied = any(rule.quota.credits for rule in load(scene.deployment.policy).rules)
    admitted = DOCUMENTED[name].admitted
    caller = scene.caller()
    before = [scene.call(caller).status_code for _ in range(3)]
    scene.redis.kill()
    during = [scene.call(caller) for _ in range(20 if denied else 3 if name == "tracefinance-v1" else admitted + 5)]
    scene.redis.start()
    wait_until(lambda: scene.call(scene.caller()).status_code == 200, "all is well again", within_s=5)

    assert [200] * 3 == before
    statuses = Counter(response.status_code for response in during)
    if denied:
        assert set(statuses) <= {503, 200}
        assert statuses[503] >= 15
        assert all("retry-after" in response.headers for response in during if response.status_code == 503)
        assert {"service_unavailable"} == {response.json()["error"] for response in during[-15:]}
    elif name == "tracefinance-v1":
        assert {200} == set(statuses)  # one after the other
    else:
        assert {200, 429} == set(statuses)
        assert 1 <= statuses[429]
        refusal = next(response for response in during if response.status_code == 429)
        assert filled(DOCUMENTED[name].refusal, refusal) == refusal.json()
