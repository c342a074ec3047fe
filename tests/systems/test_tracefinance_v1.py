"""Goal: the older Trace Finance API as documented, from config/tracefinance-v1.yaml: its 429 is about requests in
flight. Method: what its documentation says is asked of the system at work, in both ways.
"""

from __future__ import annotations

import asyncio
import json
import os
import re
import signal
import socket
import time
from collections import Counter
from contextlib import ExitStack, contextmanager
from typing import TYPE_CHECKING, Any

import httpx
import pytest
from websockets.sync.client import connect

from tests.stores.redis_server import wait_until
from tests.systems.scene import Scene, fresh_address
from tests.systems.serving import Served
from tests.systems.system import SYSTEMS

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

IN_FLIGHT = 10
UUID = re.compile("[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}")
TOO_MANY = {"code": "TOO_MANY_CONCURRENT_REQUESTS", "message": "Too many concurrent requests", "details": {}}


@pytest.fixture
def scene(running: Callable[[str, str], Scene], way: str) -> Scene:
    return running("tracefinance-v1", way)


@contextmanager
def held(url: str, headers: dict[str, str], count: int, seconds: int = 60) -> Iterator[list[socket.socket]]:
    """*count* requests in flight for so many *seconds*, each on a connection of its own."""
    host, port = url.removeprefix("http://").split(":")
    lines = "".join(f"{name}: {value}\r\n" for name, value in headers.items())
    with ExitStack() as stack:
        connections = []
        for _ in range(count):
            connection = stack.enter_context(socket.create_connection((host, int(port))))
            connection.sendall(f"GET /v1/transfers?seconds={seconds} HTTP/1.1\r\nHost: api\r\n{lines}\r\n".encode())
            connections.append(connection)
        yield connections


def status(caller: httpx.Client) -> int:
    return caller.get("/v1/transfers").status_code


def free(caller: httpx.Client) -> int:
    """How many more requests might be in flight."""
    response = caller.get("/v1/transfers")
    return int(response.headers["x-ratelimit-remaining"]) + 1 if response.status_code == 200 else 0


def test_429_means_too_many_in_flight(scene: Scene) -> None:
    """Ten may be under way; another is the documented 429, with a wait in whole seconds; who ends makes room."""
    headers = scene.deployment.headers()
    caller = scene.stranger(headers)
    with held(scene.served.url, headers, IN_FLIGHT, seconds=2):
        wait_until(lambda: status(caller) == 429, "all are in flight")
        refusal = caller.get("/v1/transfers")
        assert TOO_MANY == refusal.json()
        assert re.fullmatch("[1-9][0-9]*", refusal.headers["retry-after"])
        assert ["10", "0"] == [refusal.headers[f"x-ratelimit-{word}"] for word in ("limit", "remaining")]
        assert abs(int(refusal.headers["x-ratelimit-reset"]) - time.time()) < 61
        assert UUID.fullmatch(refusal.headers["x-request-id"])
        assert 200 == status(scene.caller())  # somebody else

    wait_until(lambda: free(caller) == IN_FLIGHT, "those who have ended have made room")


def test_who_hangs_up_is_in_flight_no_longer_than_the_work(scene: Scene) -> None:
    """The sidecar hangs up on the application, too, and the slot is free; behind the middleware the application works
    on, and holds its slot until it is done.
    """
    headers, seconds = scene.deployment.headers(), 3
    caller = scene.stranger(headers)
    began = time.monotonic()
    with held(scene.served.url, headers, IN_FLIGHT, seconds):
        wait_until(lambda: status(caller) == 429, "all are in flight")
    wait_until(lambda: free(caller) == IN_FLIGHT, "all slots are free")
    held_s = time.monotonic() - began

    assert held_s < seconds if scene.way == "sidecar" else held_s >= seconds


def test_it_is_no_limit_on_a_rate(scene: Scene) -> None:
    """One after the other there may be any number of them."""
    caller = scene.caller()
    statuses = Counter(status(caller) for _ in range(20 * IN_FLIGHT))

    assert statuses[200] >= 19 * IN_FLIGHT  # a slot is free again a moment after the answer


def test_who_waits_is_admitted(scene: Scene) -> None:
    """Fifty callers of one key, each coming back when told: all are answered, and never more than ten at once."""
    headers = scene.deployment.headers()

    async def persist(client: httpx.AsyncClient) -> int:
        for tries in range(60):
            response = await client.get("/v1/transfers", params={"seconds": 0.02})
            if response.status_code == 200:
                return tries
            assert TOO_MANY == response.json()
            await asyncio.sleep(float(response.headers["retry-after"]))
        raise AssertionError

    async def all_of_them() -> list[int]:
        limits = httpx.Limits(max_connections=50)
        async with httpx.AsyncClient(base_url=scene.served.url, headers=headers, limits=limits, timeout=30) as client:
            return await asyncio.gather(*(persist(client) for _ in range(30)))

    tries = asyncio.run(all_of_them())
    assert max(tries) > 0


def test_a_stream_is_in_flight_until_it_ends(scene: Scene) -> None:
    """A slot is held for as long as lines come, and is free when the last has come, or the client has left."""
    caller = scene.caller()
    for lines, left in ((4, False), (600, True)):
        with caller.stream("GET", "/v1/statement", params={"lines": lines, "seconds": 0.05}) as stream:
            taken = iter(stream.iter_lines())
            assert "data: 0" == next(taken)
            assert IN_FLIGHT - 1 == free(caller)
            if not left:
                assert "data: 3" in list(taken)
        wait_until(lambda: free(caller) == IN_FLIGHT, "the slot is free")


def test_a_websocket_is_in_flight_while_it_is_open(scene: Scene) -> None:
    """Its handshake takes a slot, and its end gives it back."""
    headers = scene.deployment.headers()
    caller = scene.stranger(headers)
    url = scene.served.url.replace("http:", "ws:") + "/v1/ticker"
    with connect(url, additional_headers=headers) as websocket:
        websocket.send("tick")
        assert "tick" == websocket.recv(5)
        assert IN_FLIGHT - 1 == free(caller)
    wait_until(lambda: free(caller) == IN_FLIGHT, "the slot is free")


@pytest.mark.parametrize("path", ["/v1/broken", "/v1/reports", "/v1/nowhere"])
def test_errors_give_their_slot_back(scene: Scene, path: str) -> None:
    """However a request ends: unhandled, timed out, not found."""
    caller = scene.caller()
    for _ in range(2 * IN_FLIGHT):
        caller.get(path, headers={"Connection": "close"})
    wait_until(lambda: free(caller) == IN_FLIGHT, "all slots are free")


def test_a_crash_leaks_no_slot(tmp_path: Path, way: str) -> None:
    """Of a limiter that is killed the slots are free when their leases have run out."""
    with Scene(SYSTEMS["tracefinance-v1"], way, tmp_path) as scene:
        policy = scene.deployment.policy
        text = policy.read_text()
        assert "lease_ttl: 30s" in text
        policy.write_text(text.replace("lease_ttl: 30s", "lease_ttl: 1s"))
        headers = scene.deployment.headers()
        with Served(scene.system.api, policy, scene.redis.url, way) as crashing:
            with held(crashing.url, headers, IN_FLIGHT):
                here = httpx.Client(base_url=crashing.url, headers=headers)
                wait_until(lambda: status(here) == 429, "all are in flight")
                time.sleep(1.5)
                assert 429 == status(here)  # renewed
                os.kill(crashing.limiter.pid, signal.SIGKILL)
            killed = time.monotonic()
            there = scene.stranger(headers)
            wait_until(lambda: free(there) == IN_FLIGHT, "the leases have run out", within_s=5)
            assert time.monotonic() - killed < 3
            here.close()


# Errors


def error(response: httpx.Response) -> dict[str, Any]:
    body: dict[str, Any] = json.loads(response.text)
    assert ["code", "details", "message"] == sorted(body)
    assert UUID.fullmatch(response.headers["x-request-id"])
    return body


def test_a_400_nests_its_findings(scene: Scene) -> None:
    """As documented: code, message, place and parameters of each."""
    response = scene.caller().post("/v1/transfers", json={})

    assert 400 == response.status_code
    assert {
        "code": "INVALID_DATA",
        "message": "Object contains invalid data",
        "details": {
            "errors": [
                {
                    "code": "REQUIRED",
                    "message": "Parameter 'amount' not found in request",
                    "field": "body:amount",
                    "params": {},
                }
            ]
        },
    } == error(response)


def test_408_is_a_request_that_timed_out(scene: Scene) -> None:
    """And was terminated."""
    response = scene.caller().get("/v1/reports")

    assert (408, "The request timed out and was terminated") == (response.status_code, error(response)["message"])


def test_without_credentials(scene: Scene) -> None:
    """A 401 in the same form."""
    response = scene.stranger({"Authorization": "Bearer made-up"}).get("/v1/transfers")

    assert (401, "UNAUTHORIZED") == (response.status_code, error(response)["code"])


def test_made_up_keys_meet_a_limit_on_their_address(scene: Scene) -> None:
    """Sixty failures a minute, and then the 429; who has a good key at the same address is not affected."""
    address = fresh_address()
    guesser = scene.stranger(address=address)
    headers = [{"Authorization": f"Bearer guess-{number}"} for number in range(70)]
    statuses = [guesser.get("/v1/transfers", headers=one).status_code for one in headers]

    assert [401] * 60 + [429] * 10 == statuses
    assert 200 == status(scene.caller(address=address))
