"""Usage out of answers: the figures of each API, in any pieces, and nothing out of what only looks like figures."""

from __future__ import annotations

import gzip
import sys
import tracemalloc
import zlib
from typing import TYPE_CHECKING, Any

import brotli
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ratelimiter.core.usage import Usage
from ratelimiter.tokens import presets
from ratelimiter.tokens.figures import Cause
from ratelimiter.tokens.usage_reader import UsageReader
from tests.tokens.answers import (
    ANTHROPIC_USAGE,
    AWS,
    BEDROCK_USAGE,
    DECOY,
    GEMINI_USAGE,
    JSON,
    NDJSON,
    SSE,
    anthropic_events,
    converse_stream,
    events,
    frame,
    gemini_chunk,
    in_base64,
    openai_chat,
    openai_chunk,
    openai_stream,
    openai_usage,
    text,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

    Header = tuple[bytes, bytes]


def read(
    preset: str, headers: Sequence[Header], pieces: Iterable[bytes], *, clean: bool = True, disconnected: bool = False
) -> Usage | Cause:
    reader = UsageReader(presets.load(preset), headers)
    for piece in pieces:
        reader.feed(piece)
    return reader.end(clean=clean, disconnected=disconnected)


def cut(body: bytes, sizes: Sequence[int]) -> list[bytes]:
    """Return *body* in pieces of *sizes*, over and over."""
    pieces: list[bytes] = []
    position = 0
    while position < len(body):
        size = sizes[len(pieces) % len(sizes)]
        pieces.append(body[position : position + size])
        position += size
    return pieces


OPENAI = Usage(21, 13, 16, 0, 4)
CLAUDE = Usage(2530, 120, 2000, 500, 40)
DELTA = {**ANTHROPIC_USAGE, "output_tokens": 120, "output_tokens_details": {"thinking_tokens": 40}}
RESPONSES = {
    "input_tokens": 310,
    "input_tokens_details": {"cached_tokens": 256},
    "output_tokens": 95,
    "output_tokens_details": {"reasoning_tokens": 64},
    "total_tokens": 405,
}
METRICS = {"inputTokenCount": 30, "outputTokenCount": 120, "cacheReadInputTokenCount": 2000}


def responses(terminal: str, usage: Any) -> bytes:
    running: dict[str, Any] = {"id": "resp_1", "status": "in_progress", "output": [], "usage": None}
    return events(
        [
            {"type": "response.created", "response": running},
            {"type": "response.output_text.delta", "delta": DECOY},
            {"type": terminal, "response": {**running, "output": [{"text": DECOY}], "usage": usage}},
        ]
    )


def ollama(*, done: bool = True, **figures: Any) -> bytes:
    lines = [{"model": "llama-x", "message": {"content": content}, "done": False} for content in ("Yes", DECOY)]
    return b"".join(text(line).encode() + b"\n" for line in [*lines, {"model": "llama-x", "done": done, **figures}])


CASES: dict[str, tuple[str, list[Header], bytes, Usage | Cause]] = {
    "chat": ("openai", JSON, openai_chat(openai_usage(), DECOY), OPENAI),
    "embeddings": ("openai", JSON, b'{"data":[{"embedding":[0.1,-2e-3]}],"usage":{"prompt_tokens":18}}', Usage(18, 0)),
    "chat without usage": ("openai", JSON, openai_chat(None), Cause.MISSING),
    "an error": ("openai", JSON, b'{"error":{"message":"no","type":"server_error"}}', Cause.FAILED),
    "chat stream": ("openai", SSE, openai_stream(openai_usage()), OPENAI),
    "chat stream, CRLF": ("openai", SSE, openai_stream(openai_usage(), end="\r\n"), OPENAI),
    "chat stream, CR": ("openai", SSE, openai_stream(openai_usage(), end="\r"), OPENAI),
    "chat stream without its end": ("openai", SSE, openai_stream(openai_usage(), done=False), OPENAI),
    "chat stream that says nothing": ("openai", SSE, openai_stream(None), Cause.MISSING),
    "after the end": (
        "openai",
        SSE,
        openai_stream(openai_usage()) + b"data: " + text(openai_chunk("", openai_usage(9, 9))).encode() + b"\n\n",
        OPENAI,
    ),
    "running totals": (
        "openai",
        SSE,
        b"".join(
            b"data: " + text(openai_chunk("x", openai_usage(21, done, 16, min(done, 4)))).encode() + b"\n\n"
            for done in range(1, 14)
        )
        + b"data: [DONE]\n\n",
        OPENAI,
    ),
    "comments": (
        "openai",
        SSE,
        b": hello\n\n" + openai_stream(openai_usage()).replace(b"\n\n", b"\n\n: ping\n"),
        OPENAI,
    ),
    "byte order mark": (
        "openai",
        SSE,
        b"\xef\xbb\xbfdata: " + text(openai_chunk("", openai_usage())).encode() + b"\n\ndata: [DONE]\n\n",
        OPENAI,
    ),
    "no blank": ("openai", SSE, openai_stream(openai_usage()).replace(b"data: ", b"data:"), OPENAI),
    "many lines": (
        "openai",
        SSE,
        openai_stream(openai_usage()).replace(b',"usage"', b',\ndata: "usage"').replace(b'"prompt', b'\ndata:"prompt'),
        OPENAI,
    ),
    "escapes": (
        "openai",
        SSE,
        openai_stream(openai_usage())
        .replace(b'"usage"', b'"\\u0075s\\u0061ge"')
        .replace(b'"prompt_tokens"', b'"prompt\\u005f\\u0074okens"')
        .replace(b'"completion_tokens"', b'"\\u0063ompletion\\u005ftokens"'),
        OPENAI,
    ),
    "an error in mid-stream": (
        "openai",
        SSE,
        b'data: {"usage":{"prompt_tokens":5,"completion_tokens":1}}\n\ndata: {"error":{"message":"x"}}\n\n',
        Cause.FAILED,
    ),
    "another's place": ("openai", SSE, b'data: {"x_groq":{"usage":{"prompt_tokens":5}}}\n\n', Cause.MISSING),
    "responses": ("openai-responses", JSON, text({"id": "r", "usage": RESPONSES}).encode(), Usage(310, 95, 256, 0, 64)),
    "queued": ("openai-responses", JSON, b'{"id":"r","status":"queued","usage":null}', Cause.MISSING),
    "responses stream": (
        "openai-responses",
        SSE,
        responses("response.completed", RESPONSES),
        Usage(310, 95, 256, 0, 64),
    ),
    "incomplete": ("openai-responses", SSE, responses("response.incomplete", RESPONSES), Usage(310, 95, 256, 0, 64)),
    "failed": ("openai-responses", SSE, responses("response.failed", None), Cause.MISSING),
    "error event": (
        "openai-responses",
        SSE,
        events([{"type": "response.created", "response": {"usage": None}}, {"type": "error", "code": "x"}]),
        Cause.FAILED,
    ),
    "messages": ("anthropic", JSON, text({"id": "msg", "usage": DELTA, "content": DECOY}).encode(), CLAUDE),
    "messages stream": ("anthropic", SSE, events(anthropic_events(DELTA)), CLAUDE),
    "short delta": ("anthropic", SSE, events(anthropic_events({"output_tokens": 120})), CLAUDE._replace(reasoning=0)),
    "null delta": (
        "anthropic",
        SSE,
        events(anthropic_events({"input_tokens": None, "output_tokens": 120})),
        CLAUDE._replace(reasoning=0),
    ),
    "two deltas": (
        "anthropic",
        SSE,
        events([*anthropic_events({"output_tokens": 60}, stop=False), *anthropic_events(DELTA)[-2:]]),
        CLAUDE,
    ),
    "messages stream that fails": (
        "anthropic",
        SSE,
        events([*anthropic_events(stop=False), {"type": "error", "error": {"type": "overloaded_error"}}]),
        Cause.FAILED,
    ),
    "messages stream that just ends": ("anthropic", SSE, events(anthropic_events(stop=False)), Cause.CUT),
    "gemini": ("gemini", JSON, text(gemini_chunk(GEMINI_USAGE)).encode(), Usage(930, 120, 512, 0, 70)),
    "blocked": ("gemini", JSON, b'{"promptFeedback":{},"usageMetadata":{"promptTokenCount":15}}', Usage(15, 0)),
    "gemini stream": (
        "gemini",
        SSE,
        b"".join(
            b"data: " + text(gemini_chunk(usage)).encode() + b"\r\n\r\n"
            for usage in ({**GEMINI_USAGE, "candidatesTokenCount": 1}, GEMINI_USAGE)
        ),
        Usage(930, 120, 512, 0, 70),
    ),
    "gemini array": (
        "gemini",
        JSON,
        text([gemini_chunk({**GEMINI_USAGE, "candidatesTokenCount": 1}), 1, gemini_chunk(GEMINI_USAGE)]).encode(),
        Usage(930, 120, 512, 0, 70),
    ),
    "mistral": ("mistral", JSON, b'{"usage":{"prompt_tokens":16,"completion_tokens":34}}', Usage(16, 34)),
    "cohere": (
        "cohere",
        JSON,
        (
            b'{"usage":{"billed_units":{"input_tokens":5,"output_tokens":40},"tokens":{"input_tokens":71.0,'
            b'"output_tokens":43.0},"cached_tokens":32}}'
        ),
        Usage(71, 43, 32),
    ),
    "cohere stream": (
        "cohere",
        SSE,
        events(
            [
                {"type": "content-delta", "delta": {"message": {"content": {"text": DECOY}}}},
                {"type": "message-end", "delta": {"usage": {"tokens": {"input_tokens": 71, "output_tokens": 43}}}},
            ]
        ),
        Usage(71, 43),
    ),
    "converse": ("bedrock", JSON, text({"usage": BEDROCK_USAGE}).encode(), Usage(2540, 75, 2000, 500)),
    "converse stream": ("bedrock", AWS, converse_stream(BEDROCK_USAGE), Usage(2540, 75, 2000, 500)),
    "invoke stream": (
        "bedrock",
        AWS,
        b"".join(frame(in_base64(item), "chunk") for item in anthropic_events(DELTA)),
        CLAUDE,
    ),
    "invoke stream of another model": (
        "bedrock",
        AWS,
        frame(in_base64({"generation": DECOY}), "chunk")
        + frame(in_base64({"generation": "", "amazon-bedrock-invocationMetrics": METRICS}), "chunk"),
        Usage(2030, 120, 2000),
    ),
    "invoke, by headers": (
        "bedrock",
        [
            *JSON,
            (b"X-Amzn-Bedrock-Input-Token-Count", b"30"),
            (b"x-amzn-bedrock-output-token-count", b"120"),
        ],
        b'{"generation":"Moons."}',
        Usage(30, 120),
    ),
    "throttled in mid-stream": (
        "bedrock",
        AWS,
        frame({"role": "assistant"}, "messageStart") + frame({"message": "x"}, "throttlingException", "exception"),
        Cause.FAILED,
    ),
    "ollama": ("ollama", JSON, b'{"done":true,"prompt_eval_count":26,"eval_count":298}', Usage(26, 298)),
    "ollama stream": ("ollama", NDJSON, ollama(prompt_eval_count=26, eval_count=298), Usage(26, 298)),
    "ollama, prompt cached": ("ollama", NDJSON, ollama(eval_count=298), Cause.MISSING),
    "ollama fails": ("ollama", NDJSON, b'{"done":false}\n{"error":"x"}\n', Cause.FAILED),
    "no JSON": ("openai", JSON, b"<html>it works</html>", Cause.NOT_JSON),
    "JSON and more": ("openai", JSON, openai_chat(openai_usage()) + b"x", Cause.NOT_JSON),
    "nothing": ("openai", JSON, b"", Cause.CUT),
    "usage twice": (
        "openai",
        JSON,
        b'{"usage":{"prompt_tokens":1,"completion_tokens":2},"usage":{"prompt_tokens":3}}',
        Usage(3, 0),
    ),
    "usage twice, then null": ("openai", JSON, b'{"usage":{"prompt_tokens":1},"usage":null}', Cause.MISSING),
    "nested": (
        "openai",
        JSON,
        b'{"choices":[{"usage":{"prompt_tokens":1}}],"meta":{"usage":{"prompt_tokens":2}}}',
        Cause.MISSING,
    ),
    "in an array": ("openai", JSON, b'[{"usage":{"prompt_tokens":1,"completion_tokens":2}}]', Cause.MISSING),
    "deep": ("openai", JSON, b'{"a":' * 50_000 + b"1" + b"}" * 50_000, Cause.MISSING),
    "deep, then usage": (
        "openai",
        JSON,
        b'{"a":' + b'[{"a":' * 20_000 + b"1" + b"}]" * 20_000 + b',"usage":{"prompt_tokens":3,"completion_tokens":4}}',
        Usage(3, 4),
    ),
}


@pytest.mark.parametrize("name", CASES)
def test_each_shape_in_three_packetings(name: str) -> None:
    """An answer yields its figures, whole, byte by byte and in odd pieces."""
    preset, headers, body, expected = CASES[name]

    assert expected == read(preset, headers, [body])
    assert expected == read(preset, headers, cut(body, [1]))
    assert expected == read(preset, headers, cut(body, [7, 1, 100, 3, 1000]))


@settings(max_examples=150, deadline=None)
@given(name=st.sampled_from(sorted(CASES)), sizes=st.lists(st.integers(1, 300), min_size=1, max_size=20))
def test_pieces_make_no_difference(name: str, sizes: list[int]) -> None:
    """However an answer is cut into pieces, its usage is the same."""
    preset, headers, body, expected = CASES[name]

    assert expected == read(preset, headers, cut(body, sizes))


@settings(max_examples=150, deadline=None)
@given(name=st.sampled_from(sorted(CASES)), share=st.floats(0, 1), sizes=st.lists(st.integers(1, 300), min_size=1))
def test_a_cut_answer_is_believed_only_after_its_end(name: str, share: float, sizes: list[int]) -> None:
    """A stream that breaks off yields its usage if its last word was said, else a cause: never part of it."""
    preset, headers, body, expected = CASES[name]
    if preset in ("gemini", "cohere", "bedrock") and isinstance(expected, Usage) and headers is not SSE:
        return  # read by headers or as one document: covered below
    found = read(preset, headers, cut(body[: int(len(body) * share)], sizes), clean=False)

    assert found == expected or isinstance(found, Cause)


NO_FIGURES = ["-5", "10.5", "1e999", "-1e999", "NaN", "Infinity", '"10"', "true", "{}", "[1]", "1e3", "01"]


@pytest.mark.parametrize("figure", [*NO_FIGURES, "1" + "0" * 30, "1" + "0" * 5000])
@pytest.mark.parametrize("member", ["prompt_tokens", "completion_tokens"])
def test_what_is_no_whole_number_is_no_figure(member: str, figure: str) -> None:
    """A figure that is no whole number from 0 to 10^9 makes the usage unknown: it is neither credit nor 0."""
    usage = {"prompt_tokens": "7", "completion_tokens": "8", member: figure}
    usage_text = ",".join(f'"{name}":{value}' for name, value in usage.items())
    body = f'{{"usage":{{{usage_text}}}}}'.encode()
    stream = b"data: " + body + b"\n\ndata: [DONE]\n\n"

    for found in (read("openai", JSON, [body]), read("openai", SSE, [stream]), read("openai", SSE, cut(stream, [1]))):
        assert found in (Cause.BAD_FIGURE, Cause.NOT_JSON, Cause.MISSING)


def test_a_bad_figure_does_not_replace_a_good_one() -> None:
    """A later event with a figure that is none leaves what was said before."""
    later = text(openai_chunk("", openai_usage(-5, 2.5, "x", None))).encode()
    stream = openai_stream(openai_usage(), done=False) + b"data: " + later + b"\n\ndata: [DONE]\n\n"

    assert read("openai", SSE, [stream]) == OPENAI


def test_parts_are_never_more_than_the_whole() -> None:
    """A cached figure above the input, or reasoning above the output, is cut to it: no weighted sum is negative."""
    assert Usage(10, 5, 10, 0, 5) == read("openai", JSON, [openai_chat(openai_usage(10, 5, 99, 99))])


@pytest.mark.parametrize("encoding", ["gzip", "deflate", "raw deflate", "br", "x-gzip"])
@pytest.mark.parametrize("name", ["chat", "chat stream", "gemini stream", "messages stream"])
def test_encodings_are_decoded_aside(name: str, encoding: str) -> None:
    """gzip, deflate (with and without its header) and br are read like the plain bytes."""
    preset, headers, body, expected = CASES[name]
    raw = zlib.compressobj(wbits=-15)
    encoded = {
        "gzip": gzip.compress(body),
        "x-gzip": gzip.compress(body[:100]) + gzip.compress(body[100:]),
        "deflate": zlib.compress(body),
        "raw deflate": raw.compress(body) + raw.flush(),
        "br": brotli.compress(body),
    }[encoding]
    headers = [*headers, (b"Content-Encoding", encoding.removeprefix("raw ").encode())]

    for sizes in ([len(encoded)], [1], [7, 1, 100]):
        assert expected == read(preset, headers, cut(encoded, sizes))


@pytest.mark.parametrize("encoding", [b"zstd", b"gzip, br", b"unheard-of"])
def test_an_unknown_encoding_is_told(encoding: bytes) -> None:
    """What cannot be decoded leaves the usage unknown, and says why."""
    assert Cause.ENCODING == read("openai", [*JSON, (b"content-encoding", encoding)], [b"\x28\xb5\x2f\xfd"])


def test_a_damaged_encoding_is_told() -> None:
    """What is not what its Content-Encoding says leaves the usage unknown."""
    headers = [*JSON, (b"content-encoding", b"gzip")]

    assert Cause.ENCODING == read("openai", headers, [b"{}" * 100])
    assert Cause.ENCODING == read("openai", [*JSON, (b"content-encoding", b"br")], [b"\xff" * 100])


@pytest.mark.parametrize("encoding", ["gzip", "br"])
def test_a_bomb_is_given_up(encoding: str) -> None:
    """An answer that expands beyond 100 times its size and 4 MiB is not decoded to its end."""
    bomb = b'{"a":"' + b" " * 64_000_000 + b'"}'
    encoded = gzip.compress(bomb) if encoding == "gzip" else brotli.compress(bomb, quality=5)
    headers = [*JSON, (b"content-encoding", encoding.encode())]
    tracemalloc.start()
    found = read("openai", headers, [encoded])
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()

    assert Cause.TOO_LARGE == found
    assert peak < 4_000_000


@pytest.mark.parametrize("place", [0, 3, 9, 20, -1, -40])
def test_a_wrong_checksum_stops_reading(place: int) -> None:
    """After a frame that is damaged anywhere nothing of an AWS event stream is believed."""
    stream = bytearray(converse_stream(BEDROCK_USAGE))
    stream[place] ^= 0x40

    assert read("bedrock", AWS, [bytes(stream)]) in (Cause.DAMAGED, Cause.TOO_LARGE)


def test_a_frame_of_any_length_is_bounded() -> None:
    """A frame that announces more than a payload can be is not gathered."""
    huge = frame({"text": "x" * 2_000_000}, "chunk")

    assert Cause.TOO_LARGE == read("bedrock", AWS, cut(huge, [65_536]))


def test_the_client_that_left_is_told_apart() -> None:
    """A stream that ends because the client left has a cause of its own."""
    body = openai_stream(openai_usage())[:-200]

    assert Cause.DISCONNECTED == read("openai", SSE, [body], clean=False, disconnected=True)
    assert Cause.CUT == read("openai", SSE, [body], clean=False)
    assert Cause.DISCONNECTED == read("openai", JSON, [b'{"choices":['], clean=False, disconnected=True)


LONG = DECOY * 12_000  # about 1.4 MB


@pytest.mark.slow
@pytest.mark.parametrize(
    ("preset", "headers", "body", "expected"),
    [
        ("openai", JSON, openai_chat(openai_usage(), LONG), OPENAI),
        ("openai", SSE, openai_stream(openai_usage(), ["a", LONG, "b"]), OPENAI),
        (
            "openai",
            SSE,
            b"data: " + text({**openai_chunk(LONG, openai_usage())}).encode() + b"\n\ndata: [DONE]\n\n",
            OPENAI,
        ),
        ("ollama", NDJSON, ollama(prompt_eval_count=1, eval_count=2, context=LONG), Usage(1, 2)),
        (
            "gemini",
            JSON,
            text([gemini_chunk(None, LONG), gemini_chunk(GEMINI_USAGE)]).encode(),
            Usage(930, 120, 512, 0, 70),
        ),
        ("openai", SSE, b":" + b"x" * 1_000_000 + b"\n\n" + openai_stream(openai_usage()), OPENAI),
    ],
)
@pytest.mark.parametrize("size", [1_460, 65_536])
def test_memory_is_bounded(preset: str, headers: list[Header], body: bytes, expected: Usage, size: int) -> None:
    """However long a member, an event or a line is, a few hundred kilobytes are enough to read past it."""
    pieces = cut(body, [size])
    tracemalloc.start()
    found = read(preset, headers, pieces)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()

    assert expected == found
    assert peak < 700_000


@pytest.mark.slow
def test_steps_are_linear_in_the_length() -> None:
    """Twice the bytes are at most about twice the steps, for input that is made to be slow."""

    def steps(body: bytes, headers: list[Header], size: int) -> int:
        count = 0

        def trace(frame: Any, event: str, arg: Any) -> Any:
            nonlocal count
            count += 1
            return trace

        pieces = cut(body, [size])
        sys.settrace(trace)
        try:
            read("openai", headers, pieces)
        finally:
            sys.settrace(None)
        return count

    slow: dict[str, tuple[Callable[[int], bytes], list[tuple[bytes, bytes]]]] = {
        "quotes": (lambda n: b'{"a":"' + b'\\"' * n + b'"}', JSON),
        "backslashes": (lambda n: b'{"a":"' + b"\\\\" * n + b'"}', JSON),
        "brackets": (lambda n: b'{"a":' + b"[{}" * n, JSON),
        "names": (lambda n: b"{" + b'"usage":{},' * n, JSON),
        "line ends": (lambda n: b"\r\n\n" * n, SSE),
        "no line end": (lambda n: b"data: " + b"_tokens" * n, SSE),
        "needles": (lambda n: b'data: {"usage":{"prompt_tokens":1}}\n\n' * n, SSE),
        "escapes": (lambda n: b"data: \\u00\n\n" * n, SSE),
    }
    for name, (make, headers) in slow.items():
        for size in (97, 65_536):
            single, double = steps(make(10_000), headers, size), steps(make(20_000), headers, size)
            assert double <= 3 * single + 2000, (name, size)  # 4 times as many if they were quadratic
