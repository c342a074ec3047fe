"""Token budgets end to end, through sidecar and middleware: reserved before the call, settled by the answer."""

from __future__ import annotations

import asyncio
import gzip
import json
import random
import socket
import struct
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any

import pytest

from ratelimiter.config.loader import load
from ratelimiter.proxy.pool import Target
from ratelimiter.proxy.settings import ProxySettings
from ratelimiter.stores.factory import store_for
from tests.engine.settling.ways import MIDDLEWARE, SIDECAR, WAYS, ask, connected, limited, raw
from tests.engine.settling.ways import served as under_uvicorn
from tests.proxy.wire import sidecar
from tests.tokens.answers import (
    AWS,
    BEDROCK_USAGE,
    JSON,
    NDJSON,
    SSE,
    anthropic_events,
    converse_stream,
    events,
    openai_chat,
    openai_chunk,
    openai_stream,
    openai_usage,
    text,
)
from tests.tokens.model_server import ModelServer, Play, playing

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path

    from ratelimiter.core.policy import Policy

LIMIT = 10_000
CHAT = "/v1/chat/completions"
REQUEST = {"model": "gpt-x", "messages": [{"role": "user", "content": "x" * 330}], "max_tokens": 500}


def policy(tmp_path: Path, rules: str = "", preset: str = "openai", limit: str = f"{LIMIT}/minute") -> Policy:
    path = tmp_path / "policy.yaml"
    path.write_text(rules or f"rules:\n  - name: tokens\n    tokens: {preset}\n    limit: {limit}\n")
    return load(path)


def body_of(**others: Any) -> bytes:
    return json.dumps({**REQUEST, **others}).encode()


def reserved(body: bytes, output: int = 500) -> int:
    return -(-len(body) // 4) + output


async def used(port: int) -> int:
    """What is charged now, as the headers of a request that costs nothing tell it."""
    answer = await ask(port, "/v1/models")
    return LIMIT - int(answer.value("x-ratelimit-remaining") or "0")


@asynccontextmanager
async def served(way: str, server: ModelServer, of: Policy) -> AsyncIterator[int]:
    async with limited(way, server, of) as port:
        yield port


def stream(*, usage: Any = None) -> list[bytes]:
    """The events of a chat stream, one by one."""
    whole = openai_stream(usage or openai_usage(21, 13))
    return [event + b"\n\n" for event in whole.split(b"\n\n")[:-1]]


DELTA = {"output_tokens": 120, "output_tokens_details": {"thinking_tokens": 40}}
ANSWERS: dict[str, tuple[str, str, Play, int]] = {
    "plain": ("openai", CHAT, Play([openai_chat(openai_usage(21, 13))], JSON), 34),
    "stream": ("openai", CHAT, Play(stream(), SSE), 34),
    "gzip": (
        "openai",
        CHAT,
        Play([gzip.compress(openai_chat(openai_usage(21, 13)))], [*JSON, (b"content-encoding", b"gzip")]),
        34,
    ),
    "messages": ("anthropic", "/v1/messages", Play([events(anthropic_events(DELTA))], SSE), 2650),
    "converse": ("bedrock", "/model/m/converse-stream", Play([converse_stream(BEDROCK_USAGE)], AWS), 2615),
    "ollama": (
        "ollama",
        "/api/chat",
        Play([b'{"done":false}\n', b'{"done":true,"prompt_eval_count":26,"eval_count":298}\n'], NDJSON),
        324,
    ),
    "no usage": ("openai", CHAT, Play([openai_chat(None)], JSON), -1),
    "no usage in the stream": ("openai", CHAT, Play([openai_stream(None)], SSE), -1),
    "negative": ("openai", CHAT, Play([openai_chat(openai_usage(-5, 13))], JSON), -1),
    "an error of the provider": ("openai", CHAT, Play([b'{"error":{"message":"no"}}'], JSON, 400), 0),
    "too many": ("openai", CHAT, Play([b'{"error":{"message":"no"}}'], JSON, 429), 0),
    "broken": ("openai", CHAT, Play([b"oops"], [(b"content-type", b"text/plain")], 500), 0),
    "late": ("openai", CHAT, Play([b"late"], [(b"content-type", b"text/plain")], 504), -1),
}


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("name", ANSWERS)
async def test_an_answer_settles_what_was_reserved(tmp_path: Path, way: str, name: str) -> None:
    """The usage of an answer is charged; without one the reservation stands, but for errors that used nothing."""
    preset, path, play, expected = ANSWERS[name]
    body = body_of(inferenceConfig={"maxTokens": 500}, options={"num_predict": 500})
    async with served(way, playing(play), policy(tmp_path, preset=preset)) as port:
        answer = await ask(port, path, "POST", body)
        charged = await used(port)

    assert play.status == answer.status
    assert b"".join(play.pieces) == answer.body
    assert (reserved(body) if expected < 0 else expected) == charged


@pytest.mark.parametrize("way", WAYS)
async def test_events_are_passed_on_at_once(tmp_path: Path, way: str) -> None:
    """The client has each event before the model makes the next one, untouched."""
    pieces = stream()
    server = playing(Play(pieces, SSE, paced=True))
    async with served(way, server, policy(tmp_path)) as port, connected(port) as client:
        client.writer.write(raw(CHAT, "POST", body_of()))
        seen = b""
        for index in range(len(pieces)):
            while pieces[index] not in seen:
                seen += await client.reader.read(65_536)
            assert index + 1 == server.sent
            server.go.release()


@pytest.mark.parametrize("way", WAYS)
async def test_while_it_runs_the_reservation_stands(tmp_path: Path, way: str) -> None:
    """Between the call and its end the reserved units are gone for everybody else."""
    server = playing(Play(stream(), SSE, paced=True))
    body = body_of()
    async with served(way, server, policy(tmp_path)) as port, connected(port) as client:
        client.writer.write(raw(CHAT, "POST", body))
        await client.reader.readuntil(b"\n\n")
        assert reserved(body) == await used(port)
        for _ in range(10):
            server.go.release()
        await client.reader.readuntil(b"[DONE]\n\n")
        await until(lambda: used(port), 34)


async def until(figure: Any, expected: int) -> None:
    """Wait until *figure* is *expected*; what keeps it from that is an error, not slowness."""
    async with asyncio.timeout(10):
        while await figure() != expected:  # noqa: ASYNC110  # what it waits for is in another process's words
            await asyncio.sleep(0.01)


@pytest.mark.parametrize("way", WAYS)
async def test_a_cut_stream_keeps_the_reservation(tmp_path: Path, way: str) -> None:
    """If the upstream breaks off before the usage, the reserved units stand."""
    server = playing(Play(stream()[:3], SSE, cut=True))
    body = body_of()
    async with served(way, server, policy(tmp_path)) as port:
        async with connected(port) as client:
            client.writer.write(raw(CHAT, "POST", body))
            await client.reader.read()
        assert reserved(body) == await used(port)


async def begin_and_leave(port: int, body: bytes) -> None:
    """Ask for a stream, read its first event, and reset the connection."""
    async with connected(port) as client:
        client.writer.write(raw(CHAT, "POST", body))
        await client.reader.readuntil(b"\n\n")
        # An end of sending alone might be of a client that still reads.
        client.writer.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    await asyncio.sleep(0.05)


KEEP = "rules:\n  - {name: tokens, tokens: openai, limit: 10000/minute}\n"
DRAIN = "rules:\n  - {name: tokens, tokens: openai, limit: 10000/minute, on_disconnect: drain}\n"


@pytest.mark.parametrize("way", WAYS)
async def test_a_client_that_leaves_keeps_its_reservation(tmp_path: Path, way: str) -> None:
    """With keep, leaving in mid-stream costs what was reserved: it is no way to pay less."""
    server = playing(Play(stream(), SSE, paced=True))
    body = body_of()
    async with served(way, server, policy(tmp_path, KEEP)) as port:
        await begin_and_leave(port, body)
        for _ in range(10):
            server.go.release()
        assert reserved(body) == await used(port)


@pytest.mark.parametrize("way", WAYS)
async def test_a_client_that_leaves_is_settled_after_a_drain(tmp_path: Path, way: str) -> None:
    """With drain the upstream is read to its end, and the truth is charged."""
    server = playing(Play(stream(), SSE, paced=True))
    body = body_of()
    async with served(way, server, policy(tmp_path, DRAIN)) as port:
        await begin_and_leave(port, body)
        assert reserved(body) == await used(port)
        for _ in range(10):
            server.go.release()
        await until(lambda: used(port), 34)
    assert 1 == server.ended


async def test_drains_are_bounded_in_number(tmp_path: Path) -> None:
    """Beyond drains_max the upstream is let go, and the reservation stands."""
    server = playing(Play(stream(), SSE, paced=True))
    body = body_of()
    async with limited_with_settings(server, policy(tmp_path, DRAIN), drains_max=1) as port:
        for _ in range(2):
            await begin_and_leave(port, body)
        for _ in range(10):
            server.go.release()
        await until(lambda: used(port), 34 + reserved(body))


async def test_drains_are_bounded_in_time(tmp_path: Path) -> None:
    """A drain that takes longer than drain_timeout is given up, and the reservation stands."""
    server = playing(Play(stream(), SSE, paced=True))
    body = body_of()
    async with limited_with_settings(server, policy(tmp_path, DRAIN), drain_timeout_ms=100) as port:
        await begin_and_leave(port, body)
        await asyncio.sleep(0.6)
        for _ in range(10):
            server.go.release()
        assert reserved(body) == await used(port)
        assert 0 == server.ended


@asynccontextmanager
async def limited_with_settings(server: ModelServer, of: Policy, **settings: Any) -> AsyncIterator[int]:
    async with under_uvicorn(server) as port:
        store = store_for(of)
        bounds = ProxySettings(lame_duck_ms=0, **settings)
        async with sidecar(Target("127.0.0.1", port), limit=None, config=of, store=store, bounds=bounds) as proxy:
            yield proxy.port
        await proxy.gate.limiter.close()


@pytest.mark.parametrize("way", WAYS)
async def test_requests_without_tokens_cost_nothing(tmp_path: Path, way: str) -> None:
    """Listing models and counting tokens is free."""
    server = playing(Play([b'{"input_tokens":5}'], JSON))
    async with served(way, server, policy(tmp_path, preset="anthropic")) as port:
        await ask(port, "/v1/messages/count_tokens", "POST", body_of())
        assert 0 == await used(port)


@pytest.mark.parametrize("way", WAYS)
async def test_a_cost_that_never_fits_is_told_apart(tmp_path: Path, way: str) -> None:
    """A bound above the limit is refused without a time to come back; a mere guess above it is cut to fit."""
    server = playing(Play([openai_chat(openai_usage(21, 13))], JSON))
    huge = json.dumps({"model": "gpt-x", "messages": "x" * 60_000, "max_tokens": 5}).encode()
    async with served(way, server, policy(tmp_path)) as port:
        refused = await ask(port, CHAT, "POST", body_of(max_tokens=LIMIT + 1))
        assert 429 == refused.status
        assert refused.value("retry-after") is None
        assert 0 == await used(port)
        admitted = await ask(port, CHAT, "POST", huge)
        assert 200 == admitted.status
        assert 34 == await used(port)


@pytest.mark.parametrize("way", WAYS)
async def test_strict_cuts_nothing(tmp_path: Path, way: str) -> None:
    """With estimate: strict a guess above the limit is refused."""
    rules = "rules:\n  - {name: tokens, tokens: openai, limit: 10000/minute, estimate: strict}\n"
    server = playing(Play([openai_chat(openai_usage(21, 13))], JSON))
    huge = json.dumps({"model": "gpt-x", "messages": "x" * 60_000, "max_tokens": 5}).encode()
    async with served(way, server, policy(tmp_path, rules)) as port:
        assert 429 == (await ask(port, CHAT, "POST", huge)).status


@pytest.mark.parametrize("way", WAYS)
async def test_more_than_reserved_overdraws(tmp_path: Path, way: str) -> None:
    """An answer that used more than was reserved is charged in full: the window's next moments pay."""
    server = playing(Play([openai_chat(openai_usage(9_000, 5_000))], JSON))
    async with served(way, server, policy(tmp_path)) as port:
        assert 200 == (await ask(port, CHAT, "POST", body_of())).status
        refused = await ask(port, CHAT, "POST", body_of())
        assert 429 == refused.status
        assert int(refused.value("retry-after") or 0) >= 1


ALL_AT_ONCE = """\
rules:
  - {name: requests, limit: 100/minute, match: {methods: [POST]}}
  - {name: concurrent, limit: 5 concurrent, match: {methods: [POST]}}
  - {name: total, limit: 10000/minute, tokens: openai, match: {methods: [POST]}}
  - {name: input, limit: 9000/minute, tokens: openai, weights: {output: 0}, match: {methods: [POST]}}
  - {name: output, limit: 8000/minute, tokens: openai, weights: {input: 0, output: 1}, match: {methods: [POST]}}
  - {name: weighted, limit: 9500/minute, tokens: openai, match: {methods: [POST]},
     weights: {input: 1, output: 4, cached: 0.1}}
  - {name: money, limit: 7000/day, tokens: openai, match: {methods: [POST]},
     prices: {credit: 0.001, models: {gpt-x: {input: 2500, output: 10000}}}}
headers: [draft-11]
"""


@pytest.mark.parametrize("way", WAYS)
async def test_all_limits_of_a_request_at_once(tmp_path: Path, way: str) -> None:
    """Requests, concurrency, input, output, total, weighted tokens and money: one answer settles all of them."""
    size = reserved(body_of(max_tokens=100), 0)  # the input of each request, which its answer confirms
    server = playing(Play([openai_chat(openai_usage(size, 100, 50, 0))], JSON))
    async with served(way, server, policy(tmp_path, ALL_AT_ONCE)) as port:
        await ask(port, CHAT, "POST", body_of(max_tokens=100))
        told = await ask(port, CHAT, "POST", body_of(max_tokens=100))
    remaining = {
        item.split(";")[0].strip('" '): int(item.split("r=")[1].split(";")[0])
        for item in (told.value("ratelimit") or "").split(",")
    }
    assert {
        "requests": 98,
        "concurrent": 4,
        "total": 10_000 - 2 * (size + 100),
        "input": 9_000 - 2 * size,
        "output": 8_000 - 2 * 100,
        "weighted": 9_500 - (size - 50 + 5 + 400) - (size + 400),
        "money": 7_000 - 2 * -(-(size * 5 + 100 * 20) // 2),
    } == remaining


@pytest.mark.parametrize("way", WAYS)
async def test_a_refusal_charges_no_limit(tmp_path: Path, way: str) -> None:
    """If one of the limits has no room, none of them is charged (invariant 1)."""
    server = playing(Play([openai_chat(openai_usage(200, 100))], JSON))
    rules = (
        "rules:\n  - {name: tokens, limit: 10000/minute, tokens: openai}\n"
        "  - {name: output, limit: 50/minute, tokens: openai, weights: {input: 0, output: 1}, quiet: true}\n"
    )
    async with served(way, server, policy(tmp_path, rules)) as port:
        assert 429 == (await ask(port, CHAT, "POST", body_of(max_tokens=100))).status
        assert 0 == await used(port)
        assert [] == server.asked


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize(
    ("path", "play", "expected"),
    [
        ("usage.total_tokens", Play([openai_chat({"total_tokens": 77})], JSON), 77),
        ("usage.total_tokens", Play([openai_stream({"total_tokens": 77})], SSE), 77),
        ("meta.cost.units", Play([b'{"meta":{"cost":{"units":5.0}}}'], JSON), 5),
        ("meta.cost.units", Play([b'{"meta":{"cost":{"units":"5"}}}'], JSON), 1000),
    ],
)
async def test_any_member_of_an_answer_can_say_the_cost(
    tmp_path: Path, way: str, path: str, play: Play, expected: int
) -> None:
    """`cost_from: response_json PATH` settles by a member of the body or of the events of a stream."""
    rules = f"rules:\n  - {{name: units, limit: 10000/minute, cost: 1000, cost_from: response_json {path}}}\n"
    async with served(way, playing(play), policy(tmp_path, rules + "headers: [draft-11]\n")) as port:
        await ask(port, "/any", "POST", b"{}")
        told = await ask(port, "/any", "POST", b"{}")

    assert f"r={10_000 - expected - 1000};" in (told.value("ratelimit") or "")


@pytest.mark.parametrize("way", WAYS)
async def test_a_budget_holds_under_concurrency(tmp_path: Path, way: str) -> None:
    """Many streams at once, of any length, some cut and some left by their clients: what was used never exceeds the
    budget, nor does what was reserved and not settled beside it.
    """
    chance = random.Random(7)  # noqa: S311  # the same every time
    spent = 0

    def play(_path: str, asked: Any) -> Play:
        nonlocal spent
        output = chance.randrange(1, asked["max_tokens"] + 1)
        spent += 60 + output
        kind = chance.random()
        pieces = stream(usage=openai_usage(60, output))
        return Play(pieces if kind < 0.7 else pieces[:2], SSE, cut=kind >= 0.7, pause_s=chance.random() * 0.01)

    server = ModelServer(play)
    statuses: list[int] = []
    highest = 0

    async def caller(port: int) -> None:
        for _ in range(8):
            async with connected(port) as client:
                client.writer.write(raw(CHAT, "POST", body_of(max_tokens=chance.randrange(50, 900))))
                head = await client.reader.readuntil(b"\r\n\r\n")
                statuses.append(int(head.split(b" ")[1]))
                if chance.random() < 0.7:
                    await client.reader.readuntil(b"[DONE]\n\n") if chance.random() < 0 else await drained(client)

    async def drained(client: Any) -> None:
        async with asyncio.timeout(5):
            while True:
                data = await client.reader.read(65_536)
                if not data or data.endswith((b"0\r\n\r\n", b"}\n", b"}")):
                    return

    async def watcher(port: int) -> None:
        nonlocal highest
        while True:
            highest = max(highest, await used(port))
            await asyncio.sleep(0.005)

    async with served(way, server, policy(tmp_path)) as port:
        watching = asyncio.create_task(watcher(port))
        await asyncio.gather(*(caller(port) for _ in range(20)))
        watching.cancel()
        charged = await used(port)

    assert spent <= charged <= LIMIT
    assert highest <= LIMIT
    assert {200, 429} == set(statuses)


@pytest.mark.parametrize("way", [MIDDLEWARE, SIDECAR])
async def test_a_second_reader_is_not_needed(tmp_path: Path, way: str) -> None:
    """A policy without tokens leaves bodies alone: nothing is read of request or answer."""
    server = playing(Play([text(openai_chunk("x")).encode()], JSON))
    async with served(way, server, policy(tmp_path, "rules: [{name: all, limit: 10000/minute}]\n")) as port:
        assert 200 == (await ask(port, CHAT, "POST", b"\xff" * 100)).status
        assert 2 == await used(port)
