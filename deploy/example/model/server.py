"""A stand-in for a language model: it answers POST /v1/chat/completions as OpenAI's API does, streamed or not.

It counts words where a model counts tokens, says as many as it is asked for, and tells its usage. It needs nothing but
Python: `python server.py [PORT]`.
"""

from __future__ import annotations

import json
import sys
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

WORDS_MAX = 4096
PAUSE_S = 0.02  # between two words of a stream


class Model(BaseHTTPRequestHandler):
    """One connection."""

    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:  # as the library calls it
        """List the models."""
        self._answer(200, {"object": "list", "data": [{"id": "stand-in", "object": "model"}]})

    def do_POST(self) -> None:
        """Complete a chat."""
        try:
            asked = json.loads(self.rfile.read(int(self.headers.get("content-length", "0"))))
            said = sum(len(str(message.get("content", "")).split()) for message in asked["messages"])
            output = min(int(asked.get("max_completion_tokens") or asked.get("max_tokens") or 16), WORDS_MAX)
        except (ValueError, KeyError, TypeError, AttributeError):
            self._answer(400, {"error": {"message": "no chat", "type": "invalid_request_error"}})
            return
        words = [f"word{number}" for number in range(output)]
        usage = {"prompt_tokens": said, "completion_tokens": output, "total_tokens": said + output}
        if asked.get("stream"):
            self._stream(asked, words, usage)
        else:
            message = {"role": "assistant", "content": " ".join(words)}
            choice = {"index": 0, "message": message, "finish_reason": "stop"}
            self._answer(200, _document("chat.completion", asked, [choice], usage))

    def _stream(self, asked: dict[str, Any], words: list[str], usage: dict[str, int]) -> None:
        self.send_response(200)
        self.send_header("content-type", "text/event-stream")
        self.send_header("transfer-encoding", "chunked")
        self.end_headers()
        for word in words:
            choice = {"index": 0, "delta": {"content": f"{word} "}, "finish_reason": None}
            self._event(json.dumps(_document("chat.completion.chunk", asked, [choice], None)))
            time.sleep(PAUSE_S)
        if (asked.get("stream_options") or {}).get("include_usage"):
            self._event(json.dumps(_document("chat.completion.chunk", asked, [], usage)))
        self._event("[DONE]")
        self.wfile.write(b"0\r\n\r\n")

    def _event(self, data: str) -> None:
        event = f"data: {data}\n\n".encode()
        self.wfile.write(b"%x\r\n%s\r\n" % (len(event), event))
        self.wfile.flush()

    def _answer(self, status: int, document: dict[str, Any]) -> None:
        body = json.dumps(document).encode()
        self.send_response(status)
        self.send_header("content-type", "application/json")
        self.send_header("content-length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: Any) -> None:  # noqa: A002  # as the library names it
        """Log nothing."""


def _document(kind: str, asked: dict[str, Any], choices: list[Any], usage: dict[str, int] | None) -> dict[str, Any]:
    return {
        "id": "chatcmpl-1",
        "object": kind,
        "created": int(time.time()),
        "model": asked.get("model", "stand-in"),
        "choices": choices,
        "usage": usage,
    }


if __name__ == "__main__":
    server = ThreadingHTTPServer(("", int(sys.argv[1]) if len(sys.argv) > 1 else 8000), Model)
    print(server.server_address[1], flush=True)
    server.serve_forever()
