"""CPU of reading the usage of streams, against passing them on unread.

    python -m tests.benchmarks.tokens [--rounds N] [--sidecar]

A stream of 1 MB of events is relayed by a bare asyncio relay (a transport that writes what it receives: the cheapest
way to pass a stream on in Python), once as it is and once with a `UsageReader` beside it. The events come one by one,
as models send them, and in pieces of 16 KiB, as a fast upstream would. Printed is the CPU of the relay's process, the
least of the rounds.

With `--sidecar` the stream goes through `ratelimiter proxy` instead, under a policy that counts requests and under one
that counts tokens, too, event by event. Printed is the CPU of its process for each stream.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import multiprocessing
import os
import socket
import subprocess
import sys
import tempfile
import time
from pathlib import Path
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
    piece = {"type": "text_delta", "text": "and so on "}
    middle: dict[str, Any] = {"type": "content_block_delta", "index": 0, "delta": piece}
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
        assert isinstance(transport, asyncio.Transport)
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


REQUESTS = "rules: [{name: requests, limit: 1000000/minute}]\n"
TOKENS = REQUESTS.replace("]", ", {name: tokens, tokens: %s, limit: 1000000000/minute}]")


async def upstream(events: list[bytes], pause_s: float) -> asyncio.Server:
    """Return a server that answers everything with *events*, each in a packet of its own."""

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(OSError, asyncio.IncompleteReadError):
            while True:
                head = await reader.readuntil(b"\r\n\r\n")
                await reader.readexactly(int(head.lower().partition(b"content-length: ")[2].partition(b"\r\n")[0]))
                writer.write(
                    b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n"
                )
                for event in events:
                    writer.write(b"%x\r\n%b\r\n" % (len(event), event))
                    await asyncio.sleep(pause_s)
                writer.write(b"0\r\n\r\n")
        writer.close()

    return await asyncio.start_server(answer, "127.0.0.1", 0)


def cpu_s(pid: int) -> float:
    """Return the CPU seconds of a process so far."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


async def sidecar_s(policy: str, events: list[bytes], streams: int) -> float:
    """Return the CPU seconds that the sidecar spends on one stream under *policy*."""
    body = json.dumps({"model": "m", "max_tokens": 1000, "messages": [{"role": "user", "content": "hi"}]}).encode()
    head = b"POST /v1/chat/completions HTTP/1.1\r\nHost: a\r\nContent-Length: %d\r\n\r\n" % len(body)
    server = await upstream(events, 0.0001)
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "policy.yaml"
        file.write_text(policy)
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        target = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
        words = ["proxy", "--upstream", target, "--config", str(file), "--admin", "none"]
        command = [sys.executable, "-m", "ratelimiter", *words, "--listen", f"127.0.0.1:{port}"]
        process = await asyncio.create_subprocess_exec(*command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        try:
            spent_s = 0.0
            for turn in range(streams + 1):  # the first one warms up
                reader, writer = await connected(port)
                before_s = cpu_s(process.pid)
                writer.write(head + body)
                while not (await reader.read(65_536)).endswith(b"0\r\n\r\n"):
                    pass
                spent_s += (cpu_s(process.pid) - before_s) * (turn > 0)
                writer.close()
        finally:
            process.terminate()
            await process.wait()
            server.close()
    return spent_s / streams


async def connected(port: int) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    """Return a connection, as soon as there is somebody to connect to."""
    while True:
        try:
            return await asyncio.open_connection("127.0.0.1", port)
        except OSError:
            await asyncio.sleep(0.05)


def measure_sidecar(name: str, preset: str, events: list[bytes], rounds: int) -> dict[str, object]:
    """Return the figures of one stream through the sidecar."""
    plain_s = asyncio.run(sidecar_s(REQUESTS, events, rounds))
    read_s = asyncio.run(sidecar_s(TOKENS % preset, events, rounds))
    return {
        "stream": f"{name}, sidecar",
        "events": len(events),
        "unread_ms": round(plain_s * 1000, 1),
        "read_ms": round(read_s * 1000, 1),
        "ratio": round(read_s / plain_s, 2),
    }


def main() -> None:
    """Measure each stream and print a line of JSON for each."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--sidecar", action="store_true")
    given = parser.parse_args()
    rounds = given.rounds
    streams = {
        "openai, figures at the end": ("openai", openai(running=False)),
        "openai, accents in escapes": ("openai", openai(running=False, escaped=True)),
        "openai, running figures": ("openai", openai(running=True)),
        "anthropic": ("anthropic", anthropic()),
    }
    for name, (preset, events) in streams.items():
        if given.sidecar:
            print(json.dumps(measure_sidecar(name, preset, events, rounds)), flush=True)
            continue
        for size in (0, 16_384):
            told = f"{name}, {'event by event' if not size else '16 KiB pieces'}"
            print(json.dumps(measure(told, preset, events, size, rounds)))


if __name__ == "__main__":
    main()
