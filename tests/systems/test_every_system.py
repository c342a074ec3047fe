"""Goal: what all five documented systems have in common holds in each, from its file in config/, in both ways.

Method: the file as it is, a real Redis, real processes. Where a test has to wait for a window to end, the windows are
those of a copy of the file, minutes made seconds and nothing else changed.
"""

from __future__ import annotations

import asyncio
import re
import time
from collections import Counter
from typing import TYPE_CHECKING

import httpx
import pytest

from tests.systems.documented import DOCUMENTED, MINUTE_S, filled
from tests.systems.scene import fresh_address

if TYPE_CHECKING:
    from tests.systems.scene import Scene

RATES = ["intrace", "sentinel", "trace", "tracefinance"]  # those whose 429 is about a rate
X_RATELIMIT = ("x-ratelimit-limit", "x-ratelimit-remaining", "x-ratelimit-reset")

rates = pytest.mark.parametrize("scene", RATES, indirect=True)


def figures(response: httpx.Response) -> tuple[int, int, int]:
    """Limit, remaining and reset, each of them there once."""
    found = [response.headers.get_list(name) for name in X_RATELIMIT]
    assert all(len(values) == 1 and values[0].isdigit() for values in found), response.headers
    limit, remaining, reset = (int(values[0]) for values in found)
    return limit, remaining, reset


def spent(scene: Scene, caller: httpx.Client) -> httpx.Response:
    """The first refusal, once *caller* has spent its limit."""
    for _ in range(DOCUMENTED[scene.system.name].admitted):
        assert 200 == scene.call(caller).status_code
    return scene.call(caller)


@rates
def test_refusals_are_429s_as_documented(scene: Scene) -> None:
    """The documented limit is admitted and not one more; then the documented body, Retry-After in whole seconds, and
    figures that say what to wait for.
    """
    documented = DOCUMENTED[scene.system.name]
    refusal = spent(scene, scene.caller())
    retry_after = refusal.headers["retry-after"]
    limit, remaining, reset = figures(refusal)
    now = time.time()

    assert 429 == refusal.status_code
    assert filled(documented.refusal, refusal) == refusal.json()
    assert "application/json" == refusal.headers["content-type"]
    assert re.fullmatch("[1-9][0-9]*", retry_after)
    assert int(retry_after) <= MINUTE_S + 1  # of a limit above 128 the window is up to 1/128 longer
    assert (documented.limit, 0) == (limit, remaining)
    assert abs(reset - (now + int(retry_after))) < 2


@rates
def test_admissions_tell_what_is_left(scene: Scene) -> None:
    """Every response has the three headers: the limit a minute, one less remaining each time, and the Unix time in
    seconds at which the window resets; no Retry-After, and no 429 before nothing remains.
    """
    limit = DOCUMENTED[scene.system.name].limit
    caller = scene.caller()
    for call in range(1, 6):
        response = scene.call(caller)
        assert 200 == response.status_code
        assert (limit, limit - call) == figures(response)[:2]
        assert 0 <= figures(response)[2] - time.time() <= MINUTE_S + 2
        assert "retry-after" not in response.headers


@rates
def test_one_callers_limit_is_no_other_callers(scene: Scene) -> None:
    """Another principal at the same address is admitted, the same principal elsewhere is not."""
    address, who = fresh_address(), scene.deployment.headers()
    assert 429 == spent(scene, scene.stranger(who, address)).status_code

    assert 429 == scene.call(scene.stranger(who)).status_code
    assert 200 == scene.call(scene.caller(address=address)).status_code


def test_answers_are_quoted_by_an_id_where_one_is_documented(scene: Scene) -> None:
    """The id is another on each response, and what a client sends as one is quoted back if it may be an id."""
    form = DOCUMENTED[scene.system.name].request_id
    caller = scene.caller()
    told = [scene.call(caller).headers.get("x-request-id", "") for _ in range(3)]

    assert all(re.fullmatch(form, one) for one in told)
    assert (3 if form else 1) == len(set(told))


def test_unhandled_errors_leak_nothing(scene: Scene) -> None:
    """A bug in the application is the documented 500, with the figures of the limit, and not a word about itself."""
    path = "/broken" if scene.system.name == "sentinel" else "/v1/broken"
    response = scene.caller().get(path)

    assert 500 == response.status_code
    assert "hunter2" not in response.text
    assert DOCUMENTED[scene.system.name].limit == figures(response)[0]


def test_a_thousand_at_once_are_admitted_to_the_limit(scene: Scene) -> None:
    """One principal from ten addresses, a thousand calls at once: the limit is admitted, all others get the 429."""
    documented = DOCUMENTED[scene.system.name]
    headers, (method, path, body) = scene.deployment.headers(), scene.system.call

    async def calls() -> list[httpx.Response]:
        clients = [
            httpx.AsyncClient(
                base_url=scene.served.url,
                headers=headers,
                timeout=60,
                transport=httpx.AsyncHTTPTransport(
                    local_address=fresh_address(), limits=httpx.Limits(max_connections=100)
                ),
            )
            for _ in range(10)
        ]
        found = await asyncio.gather(*(clients[n % 10].request(method, path, json=body) for n in range(1000)))
        for client in clients:
            await client.aclose()
        return found

    found = asyncio.run(calls())
    statuses = Counter(response.status_code for response in found)
    if scene.system.name == "trace":  # no more credits are reserved at once than there are
        assert {200, 402} <= set(statuses) <= {200, 402, 429}
        assert statuses[200] <= documented.admitted
    elif scene.system.name == "tracefinance-v1":  # whoever ends makes room for another
        assert {200, 429} == set(statuses)
    else:
        assert {200: documented.admitted, 429: 1000 - documented.admitted} == statuses
    for refusal in found:
        if refusal.status_code == 429:
            assert filled(documented.refusal, refusal) == refusal.json()
            assert "retry-after" in refusal.headers
