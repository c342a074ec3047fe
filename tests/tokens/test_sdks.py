"""The official SDKs against sidecar and middleware: they parse what is charged, and they wait as they are told."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import anthropic
import anyio
import openai
import pytest
from google import genai

from tests.engine.settling.ways import WAYS
from tests.tokens.answers import (
    GEMINI_USAGE,
    JSON,
    SSE,
    anthropic_events,
    events,
    gemini_chunk,
    openai_chat,
    openai_stream,
    openai_usage,
    text,
)
from tests.tokens.model_server import ModelServer, Play, playing
from tests.tokens.test_settling import policy, served, stream, until, used

if TYPE_CHECKING:
    from pathlib import Path

pytestmark = pytest.mark.slow  # each SDK takes seconds to import and to make a client

MESSAGES: Any = [{"role": "user", "content": "hi"}]
DELTA = {"output_tokens": 120}


def openai_client(port: int, **others: Any) -> openai.AsyncOpenAI:
    return openai.AsyncOpenAI(base_url=f"http://127.0.0.1:{port}/v1", api_key="k", **others)


def anthropic_client(port: int, **others: Any) -> anthropic.AsyncAnthropic:
    return anthropic.AsyncAnthropic(base_url=f"http://127.0.0.1:{port}", api_key="k", **others)


TOOLS: Any = {
    "id": "c",
    "object": "chat.completion",
    "created": 1,
    "model": "gpt-x",
    "choices": [
        {
            "index": 0,
            "finish_reason": "tool_calls",
            "message": {
                "role": "assistant",
                "content": None,
                "tool_calls": [
                    {
                        "id": "t",
                        "type": "function",
                        "function": {"name": "f", "arguments": '{"usage": {"prompt_tokens": 1}}'},
                    }
                ],
            },
        }
    ],
    "usage": openai_usage(40, 20, 0, 0),
}


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize(
    "play",
    [Play([openai_chat(openai_usage(21, 13))], JSON), Play([text(TOOLS).encode()], JSON)],
    ids=["plain", "tools"],
)
async def test_openai_parses_what_is_charged(tmp_path: Path, way: str, play: Play) -> None:
    """The usage that the SDK parses out of an answer is what the budget is charged."""
    async with served(way, playing(play), policy(tmp_path)) as port, openai_client(port) as client:
        answer = await client.chat.completions.create(model="gpt-x", messages=MESSAGES)
        assert answer.usage is not None
        assert answer.usage.prompt_tokens + answer.usage.completion_tokens == await used(port)


@pytest.mark.parametrize("way", WAYS)
async def test_openai_parses_what_is_charged_of_a_stream(tmp_path: Path, way: str) -> None:
    """So it is of a stream with include_usage."""
    async with served(way, playing(Play(stream(), SSE)), policy(tmp_path)) as port, openai_client(port) as client:
        chunks = [
            chunk
            async for chunk in await client.chat.completions.create(
                model="gpt-x", messages=MESSAGES, stream=True, stream_options={"include_usage": True}
            )
        ]
        usages = [chunk.usage for chunk in chunks if chunk.usage is not None]
        await until(lambda: used(port), usages[-1].prompt_tokens + usages[-1].completion_tokens)


RESPONSES = {
    "input_tokens": 310,
    "input_tokens_details": {"cached_tokens": 256, "cache_write_tokens": 0},
    "output_tokens": 95,
    "output_tokens_details": {"reasoning_tokens": 64},
    "total_tokens": 405,
}


@pytest.mark.parametrize("way", WAYS)
async def test_openai_responses(tmp_path: Path, way: str) -> None:
    """The responses API streams its usage in its last event."""
    response = {"id": "r", "object": "response", "created_at": 1, "model": "gpt-x", "output": [], "tools": []}
    body = events(
        [
            {"type": "response.created", "sequence_number": 0, "response": {**response, "usage": None}},
            {"type": "response.completed", "sequence_number": 1, "response": {**response, "usage": RESPONSES}},
        ]
    )
    preset = policy(tmp_path, preset="openai-responses")
    async with served(way, playing(Play([body], SSE)), preset) as port, openai_client(port) as client:
        seen = [event async for event in await client.responses.create(model="gpt-x", input="hi", stream=True)]
        assert 405 == seen[-1].response.usage.total_tokens  # type: ignore[union-attr]
        await until(lambda: used(port), 405)


@pytest.mark.parametrize("way", WAYS)
async def test_anthropic_parses_what_is_charged(tmp_path: Path, way: str) -> None:
    """Cache reads and writes are input beside input_tokens; the final message's figures add up to the charge."""
    start, block, ping, _, stop, delta, end = anthropic_events(DELTA)
    start["message"] |= {"model": "claude-x", "stop_reason": None, "stop_sequence": None}
    delta["delta"]["stop_sequence"] = None
    body = events([start, block, ping, stop, delta, end])
    preset = policy(tmp_path, preset="anthropic")
    async with served(way, playing(Play([body], SSE)), preset) as port, anthropic_client(port) as client:
        async with client.messages.stream(model="claude-x", max_tokens=200, messages=MESSAGES) as streamed:
            usage = (await streamed.get_final_message()).usage
        total = usage.input_tokens + (usage.cache_creation_input_tokens or 0) + (usage.cache_read_input_tokens or 0)
        await until(lambda: used(port), total + usage.output_tokens)
        assert 2650 == await used(port)


@pytest.mark.filterwarnings("ignore:Inheritance class:DeprecationWarning")  # of the SDK's own making
@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("streamed", [False, True])
async def test_gemini_parses_what_is_charged(tmp_path: Path, way: str, streamed: bool) -> None:
    """Gemini's total, thoughts and tools included, is the charge."""
    whole = text(gemini_chunk(GEMINI_USAGE)).encode()
    play = Play([b"data: " + whole + b"\r\n\r\n"], SSE) if streamed else Play([whole], JSON)
    async with served(way, playing(play), policy(tmp_path, preset="gemini")) as port:
        client = genai.Client(api_key="k", http_options={"base_url": f"http://127.0.0.1:{port}"})
        ask: dict[str, Any] = {"model": "gemini-x", "contents": "hi"}
        if streamed:
            parts = [part async for part in await client.aio.models.generate_content_stream(**ask)]
            usage = parts[-1].usage_metadata
        else:
            usage = (await client.aio.models.generate_content(**ask)).usage_metadata
        assert usage is not None
        await until(lambda: used(port), usage.total_token_count or 0)


OPENAI_429 = """\
dialect: openai
headers: [openai]
rules:
  - {name: requests, limit: 100/minute, match: {methods: [POST]}}
  - {name: tokens, limit: 1000 per 2 seconds, tokens: openai, match: {methods: [POST]}}
"""
ANTHROPIC_429 = OPENAI_429.replace("openai", "anthropic")


class Sleeps:
    """Waits that an SDK asks for, noted and not shortened."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, module: Any) -> None:
        self.seconds: list[float] = []
        sleep = module.sleep

        async def noted(seconds: float) -> None:
            self.seconds.append(seconds)
            await sleep(seconds)

        monkeypatch.setattr(module, "sleep", noted)


@pytest.mark.parametrize("way", WAYS)
async def test_openai_comes_back_when_told_and_gets_in(
    tmp_path: Path, way: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On a 429 the SDK waits as retry-after-ms says, and its next try is admitted."""
    server = playing(Play([openai_chat(openai_usage(500, 400))], JSON))
    sleeps = Sleeps(monkeypatch, anyio)
    async with served(way, server, policy(tmp_path, OPENAI_429)) as port, openai_client(port) as client:
        ask: Any = {"model": "gpt-x", "messages": MESSAGES, "max_tokens": 500}
        await client.chat.completions.create(**ask)
        told = await client.chat.completions.with_raw_response.create(**ask)

    assert 200 == told.status_code
    assert 1 == len(sleeps.seconds)
    assert 0.5 < sleeps.seconds[0] <= 2.1
    assert 2 == len(server.asked)
    assert {"1000", "100"} == {told.headers[f"x-ratelimit-limit-{unit}"] for unit in ("tokens", "requests")}


@pytest.mark.parametrize("way", WAYS)
async def test_anthropic_comes_back_when_told_and_gets_in(
    tmp_path: Path, way: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """So does Anthropic's."""
    message = {
        "id": "msg",
        "type": "message",
        "role": "assistant",
        "model": "claude-x",
        "content": [{"type": "text", "text": "hi"}],
        "stop_reason": "end_turn",
        "stop_sequence": None,
        "usage": {"input_tokens": 500, "output_tokens": 400},
    }
    server = playing(Play([text(message).encode()], JSON))
    sleeps = Sleeps(monkeypatch, anyio)
    async with served(way, server, policy(tmp_path, ANTHROPIC_429)) as port, anthropic_client(port) as client:
        ask: Any = {"model": "claude-x", "messages": MESSAGES, "max_tokens": 500}
        await client.messages.create(**ask)
        told = await client.messages.with_raw_response.create(**ask)

    assert 200 == told.status_code
    assert 1 == len(sleeps.seconds)
    assert "1000" == told.headers["anthropic-ratelimit-tokens-limit"]


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("max_tokens", [5000, 500])
async def test_sdks_do_not_retry_in_vain(
    tmp_path: Path, way: str, max_tokens: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A request that never fits, or only after more than a minute, is not tried again."""
    server = playing(Play([openai_chat(openai_usage(500, 400))], JSON))
    rules = OPENAI_429.replace("1000 per 2 seconds", "1000/hour")
    sleeps = Sleeps(monkeypatch, anyio)
    async with served(way, server, policy(tmp_path, rules)) as port, openai_client(port) as client:
        await client.chat.completions.create(model="gpt-x", messages=MESSAGES, max_tokens=500)
        with pytest.raises(openai.RateLimitError) as caught:
            await client.chat.completions.create(model="gpt-x", messages=MESSAGES, max_tokens=max_tokens)

    assert [] == sleeps.seconds
    assert "false" == caught.value.response.headers["x-should-retry"]
    assert "rate_limit_exceeded" == caught.value.code
    assert "tokens" == caught.value.type


@pytest.mark.parametrize("way", WAYS)
async def test_anthropic_raises_its_own_error(tmp_path: Path, way: str) -> None:
    """The refusal's body is one that the SDK knows, with the request's id."""
    server = playing(Play([b"{}"], JSON))
    async with served(way, server, policy(tmp_path, ANTHROPIC_429)) as port, anthropic_client(port) as client:
        with pytest.raises(anthropic.RateLimitError) as caught:
            await client.messages.create(model="claude-x", messages=MESSAGES, max_tokens=5000)

    body = json.loads(caught.value.response.content)
    assert "rate_limit_error" == body["error"]["type"]
    assert body["request_id"] == caught.value.request_id


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::UserWarning", "ignore::ResourceWarning")  # its own
@pytest.mark.parametrize("way", WAYS)
async def test_litellm_parses_what_is_charged(tmp_path: Path, way: str) -> None:
    """Litellm's normalised total is the charge, plain and streamed."""
    litellm = pytest.importorskip("litellm")
    server = ModelServer(
        lambda _path, asked: (
            Play([openai_stream(openai_usage(21, 13), ["Hel", "lo"])], SSE)
            if asked.get("stream")
            else Play([openai_chat(openai_usage(21, 13))], JSON)
        )
    )
    async with served(way, server, policy(tmp_path)) as port:
        ask: Any = {
            "model": "openai/gpt-x",
            "messages": MESSAGES,
            "api_base": f"http://127.0.0.1:{port}/v1",
            "api_key": "k",
        }
        answer = await litellm.acompletion(**ask)
        assert 34 == answer.usage.total_tokens
        await until(lambda: used(port), 34)
        parts = [
            part async for part in await litellm.acompletion(**ask, stream=True, stream_options={"include_usage": True})
        ]
        assert 34 == parts[-1].usage.total_tokens
        await until(lambda: used(port), 68)
