"""CPU of reading the usage of streams, against passing them on unread.

    python -m tests.benchmarks.tokens [--rounds N]

A stream of 1 MB of events is relayed by a bare asyncio relay (a transport that writes what it receives: the cheapest
way to pass a stream on in Python), once as it is and once with a `UsageReader` beside it. The events come one by one,
as models send them, and in pieces of 16 KiB, as a fast upstream would. Printed is the CPU of the relay's process, the
least of the rounds.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import multiprocessing
import socket
import time
from typing import TYPE_CHECKING, Any

from ratelimiter.core.usage import Usage
from ratelimiter.tokens import presets
from ratelimiter.tokens.usage_reader import UsageReader
from tests.tokens.answers import anthropic_events, openai_chunk, openai_usage, text

if TYPE_CHECKING:
    from collections.abc import Callable

STREAM_BYTES = 1_000_000
SSE = [(b"content-type", b"text/event-stream")]


def openai(*, running: bool, escaped: bool = False) -> list[bytes]:
    """Return a chat stream, with figures in its last chunk only or in every one."""
    word = "caf\u00e9 na\u00efve " if escaped else "and so on "
    made: list[bytes] = []
    size = 0
    while size < STREAM_BYTES:
        chunk = openai_chunk(word, openai_usage(21, len(made), 16, 0) if running else None)
        made.append(b"data: " + text(chunk).encode() + b"\n\n")
        size += len(made[-1])
    last = {**openai_chunk(""), "choices": [], "usage": openai_usage()}
    return [*made, b"data: " + text(last).encode() + b"\n\n", b"data: [DONE]\n\n"]


def anthropic() -> list[bytes]:
    """Return a messages stream."""
    start, *_, delta, stop = anthropic_events({"output_tokens": 120})
    middle = {"type": "content_block_delta", "index": 0, "delta": {"type": "text_delta", "text": "and so on "}}
    written = [b"event: %s\ndata: %s\n\n" % (item["type"].encode(), text(item).encode()) for item in (start, middle)]
    count = STREAM_BYTES // len(written[1])
    ends = [b"event: %s\ndata: %s\n\n" % (item["type"].encode(), text(item).encode()) for item in (delta, stop)]
    return [written[0], *[written[1]] * count, *ends]


class Relay(asyncio.Protocol):
    """Passes on what it receives to *out*, shows it to *read*, and asks for the next piece."""

    def __init__(self, out: asyncio.Transport, read: Callable[[bytes], None] | None) -> None:
        self.out = out
        self.read = read
        self.done = asyncio.get_running_loop().create_future()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Keep the way back to the sender."""
        self.back = transport

    def data_received(self, data: bytes) -> None:
        """Pass *data* on."""
        self.out.write(data)
        if self.read is not None:
            self.read(data)
        self.back.write(b".")  # keeps pieces apart, as time does in real streams

    def connection_lost(self, exc: Exception | None) -> None:
        """The stream is over."""
        self.done.set_result(None)


class Out(asyncio.Protocol):
    """Says when everything is sent."""

    def __init__(self, sent: asyncio.Future[None]) -> None:
        self.sent = sent

    def connection_lost(self, exc: Exception | None) -> None:
        """Everything is sent."""
        self.sent.set_result(None)


def sender(ours: socket.socket, pieces: list[bytes]) -> None:
    """Send piece by piece, as the relay asks for them."""
    for piece in pieces:
        ours.sendall(piece)
        ours.recv(1)


def receiver(ours: socket.socket) -> None:
    """Throw everything away."""
    while ours.recv(1 << 20):
        pass


async def relay(near: socket.socket, out: socket.socket, read: Callable[[bytes], None] | None) -> float:
    """Return the CPU seconds of one stream."""
    loop = asyncio.get_running_loop()
    sent = loop.create_future()
    transport, _ = await loop.create_connection(lambda: Out(sent), sock=out)
    started_s = time.process_time()
    _, protocol = await loop.create_connection(lambda: Relay(transport, read), sock=near)
    await protocol.done
    spent_s = time.process_time() - started_s
    transport.close()
    await sent
    return spent_s


def relayed_s(pieces: list[bytes], read: Callable[[bytes], None] | None) -> float:
    """Return the CPU seconds of relaying *pieces* between two other processes."""
    (near, upstream), (out, downstream) = socket.socketpair(), socket.socketpair()
    fork = multiprocessing.get_context("fork")
    processes = [
        fork.Process(target=_alone, args=(sender, (upstream, pieces), (near, out, downstream))),
        fork.Process(target=_alone, args=(receiver, (downstream,), (near, out, upstream))),
    ]
    for process in processes:
        process.start()
    upstream.close()
    downstream.close()
    spent_s = asyncio.run(relay(near, out, read))
    for process in processes:
        process.join()
    return spent_s


def _alone(run: Callable[..., None], arguments: tuple[Any, ...], others: tuple[socket.socket, ...]) -> None:
    for other in others:
        other.close()
    run(*arguments)


def in_pieces(events: list[bytes], size: int) -> list[bytes]:
    """Return *events* as they are, or joined and cut in pieces of *size*."""
    if not size:
        return events
    whole = b"".join(events)
    return [whole[start : start + size] for start in range(0, len(whole), size)]


def measure(name: str, preset: str, events: list[bytes], size: int, rounds: int) -> dict[str, object]:
    """Return the figures of one stream, the least of *rounds*."""
    pieces = in_pieces(events, size)
    unread, read = [], []
    for _ in range(rounds):
        unread.append(relayed_s(pieces, None))
        reader = UsageReader(presets.load(preset), SSE)
        read.append(relayed_s(pieces, reader.feed))
        if not isinstance(reader.end(clean=True), Usage):
            msg = f"{name}: the usage was not found"
            raise SystemExit(msg)
    reader_s = []
    for _ in range(rounds):
        reader = UsageReader(presets.load(preset), SSE)
        started_s = time.process_time()
        for piece in pieces:
            reader.feed(piece)
        reader_s.append(time.process_time() - started_s)
    return {
        "stream": name,
        "events": len(events),
        "pieces": len(pieces),
        "relay_ms": round(min(unread) * 1000, 1),
        "relay_and_read_ms": round(min(read) * 1000, 1),
        "ratio": round(min(read) / min(unread), 2),
        "reader_ms": round(min(reader_s) * 1000, 2),
        "reader_us_per_event": round(min(reader_s) / len(events) * 1e6, 2),
    }


def main() -> None:
    """Measure each stream and print a line of JSON for each."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    rounds = parser.parse_args().rounds
    streams = {
        "openai, figures at the end": ("openai", openai(running=False)),
        "openai, accents in escapes": ("openai", openai(running=False, escaped=True)),
        "openai, running figures": ("openai", openai(running=True)),
        "anthropic": ("anthropic", anthropic()),
    }
    for name, (preset, events) in streams.items():
        for size in (0, 16_384):
            told = f"{name}, {'event by event' if not size else '16 KiB pieces'}"
            print(json.dumps(measure(told, preset, events, size, rounds)))


if __name__ == "__main__":
    main()
