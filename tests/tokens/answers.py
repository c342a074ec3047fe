"""Answers of language model APIs, made here in their documented shapes."""

from __future__ import annotations

import base64
import json
import struct
import zlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Iterable

    Header = tuple[bytes, bytes]

JSON = [(b"content-type", b"application/json")]
SSE = [(b"content-type", b"text/event-stream; charset=utf-8")]
NDJSON = [(b"content-type", b"application/x-ndjson")]
AWS = [(b"content-type", b"application/vnd.amazon.eventstream")]

DECOY = '"usage": {"prompt_tokens": 1, "completion_tokens": 1, "input_tokens": 1, "output_tokens": 1}, "eval_count": 1'


def text(value: Any) -> str:
    return json.dumps(value, separators=(",", ":"))


def openai_usage(input_: Any = 21, output: Any = 13, cached: Any = 16, reasoning: Any = 4) -> dict[str, Any]:
    return {
        "prompt_tokens": input_,
        "completion_tokens": output,
        "total_tokens": 34,
        "prompt_tokens_details": {"cached_tokens": cached, "audio_tokens": 0},
        "completion_tokens_details": {"reasoning_tokens": reasoning, "rejected_prediction_tokens": 0},
    }


def openai_chat(usage: Any, content: str = "Hello.") -> bytes:
    return text(
        {
            "id": "chatcmpl-1",
            "object": "chat.completion",
            "model": "gpt-x",
            "choices": [
                {"index": 0, "message": {"role": "assistant", "content": content}, "finish_reason": "stop"},
            ],
            "usage": usage,
        }
    ).encode()


def openai_chunk(content: str, usage: Any = None, *, finish: str | None = None) -> dict[str, Any]:
    return {
        "id": "chatcmpl-1",
        "object": "chat.completion.chunk",
        "created": 1795859003,
        "model": "gpt-x",
        "choices": [{"index": 0, "delta": {"content": content}, "finish_reason": finish}],
        "usage": usage,
    }


def openai_chunks(usage: Any, contents: Iterable[str] = ("Hel", "lo", DECOY)) -> list[dict[str, Any]]:
    chunks = [openai_chunk(content) for content in contents]
    return [*chunks, openai_chunk("", finish="stop"), {**openai_chunk(""), "choices": [], "usage": usage}]


def openai_stream(
    usage: Any, contents: Iterable[str] = ("Hel", "lo", DECOY), end: str = "\n", *, done: bool = True
) -> bytes:
    lines = [f"data: {text(chunk)}{end}{end}" for chunk in openai_chunks(usage, contents)]
    return "".join([*lines, f"data: [DONE]{end}{end}" if done else ""]).encode()


def events(items: Iterable[dict[str, Any]], end: str = "\n") -> bytes:
    """Return *items* as events named by their type."""
    return "".join(f"event: {item['type']}{end}data: {text(item)}{end}{end}" for item in items).encode()


ANTHROPIC_USAGE = {
    "input_tokens": 30,
    "cache_creation_input_tokens": 500,
    "cache_read_input_tokens": 2000,
    "cache_creation": {"ephemeral_5m_input_tokens": 500, "ephemeral_1h_input_tokens": 0},
    "output_tokens": 1,
}


def anthropic_events(delta: dict[str, Any] | None = None, *, stop: bool = True) -> list[dict[str, Any]]:
    message = {"id": "msg_1", "type": "message", "role": "assistant", "content": [], "usage": ANTHROPIC_USAGE}
    found: list[dict[str, Any]] = [
        {"type": "message_start", "message": message},
        {"type": "content_block_start", "index": 0, "content_block": {"type": "text", "text": ""}},
        {"type": "ping"},
        {"type": "content_block_delta", "index": 0, "delta": {"type": "text_delta", "text": DECOY}},
        {"type": "content_block_stop", "index": 0},
    ]
    if delta is not None:
        found.append({"type": "message_delta", "delta": {"stop_reason": "end_turn"}, "usage": delta})
    return [*found, {"type": "message_stop"}] if stop else found


GEMINI_USAGE = {
    "promptTokenCount": 900,
    "toolUsePromptTokenCount": 30,
    "candidatesTokenCount": 50,
    "thoughtsTokenCount": 70,
    "cachedContentTokenCount": 512,
    "totalTokenCount": 1050,
}


def gemini_chunk(usage: Any, content: str = DECOY) -> dict[str, Any]:
    return {"candidates": [{"content": {"parts": [{"text": content}], "role": "model"}}], "usageMetadata": usage}


def frame(payload: dict[str, Any], event: str, kind: str = "event") -> bytes:
    """Return one frame of an AWS event stream."""
    named = {":event-type" if kind == "event" else ":exception-type": event, ":content-type": "application/json"}
    headers = b"".join(
        bytes([len(name)]) + name.encode() + b"\x07" + struct.pack(">H", len(value)) + value.encode()
        for name, value in {**named, ":message-type": kind}.items()
    )
    body = text(payload).encode()
    prelude = struct.pack(">II", 12 + len(headers) + len(body) + 4, len(headers))
    message = prelude + struct.pack(">I", zlib.crc32(prelude)) + headers + body
    return message + struct.pack(">I", zlib.crc32(message))


def in_base64(item: dict[str, Any]) -> dict[str, Any]:
    return {"bytes": base64.b64encode(text(item).encode()).decode(), "p": "abc"}


BEDROCK_USAGE = {
    "inputTokens": 40,
    "outputTokens": 75,
    "totalTokens": 115,
    "cacheReadInputTokens": 2000,
    "cacheWriteInputTokens": 500,
}


def converse_stream(usage: Any) -> bytes:
    return b"".join(
        [
            frame({"role": "assistant"}, "messageStart"),
            frame({"contentBlockIndex": 0, "delta": {"text": DECOY}}, "contentBlockDelta"),
            frame({"stopReason": "end_turn"}, "messageStop"),
            frame({"metrics": {"latencyMs": 9}, "usage": usage}, "metadata"),
        ]
    )
