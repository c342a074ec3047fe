"""A rate limit service for Envoy that answers OK to everything, unread: what asking over gRPC costs at the least.

    python -m tests.benchmarks.grpc_limiter PORT

It speaks as much HTTP/2 (RFC 9113) as that takes. Nobody has a cheaper one, so this is Envoy at its best.
"""

from __future__ import annotations

import asyncio
import sys

import uvloop

PREFACE = len(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n")
DATA, HEADERS, SETTINGS, PING, WINDOW_UPDATE = 0, 1, 4, 6, 8
ACK = END_STREAM = 0x1
END_HEADERS = 0x4
WINDOW = 1 << 30  # bytes that we are ready to read; told again when half of them have come

# HPACK (RFC 7541) without its tables: `:status: 200`, `content-type: application/grpc`; then `grpc-status: 0`.
ANSWER = b"\x88\x0f\x10\x10application/grpc"
TRAILERS = b"\x00\x0bgrpc-status\x010"
OVERALL_OK = b"\x00\x00\x00\x00\x02\x08\x01"  # one uncompressed message: field 1, overall_code, is 1


def frame(kind: int, flags: int, stream: bytes, payload: bytes) -> bytes:
    """One frame (RFC 9113 section 4.1)."""
    return len(payload).to_bytes(3, "big") + bytes((kind, flags)) + stream + payload


class Connection(asyncio.Protocol):
    """One connection of Envoy's."""

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]  # it is one
        self.transport = transport
        self.buffer = b""
        self.to_skip = PREFACE
        self.unsaid = 0  # bytes of DATA that no window was opened for
        opened = frame(WINDOW_UPDATE, 0, bytes(4), WINDOW.to_bytes(4, "big"))
        transport.write(frame(SETTINGS, 0, bytes(4), b"") + opened)

    def data_received(self, data: bytes) -> None:
        data = self.buffer + data
        at, self.to_skip = self.to_skip, 0
        if len(data) < at:
            self.buffer, self.to_skip = data, at
            return
        out = []
        while len(data) - at >= 9 and len(data) - at >= (end := 9 + int.from_bytes(data[at : at + 3], "big")):
            kind, flags = data[at + 3], data[at + 4]
            stream, payload = data[at + 5 : at + 9], data[at + 9 : at + end]
            at += end
            if kind == DATA:
                self.unsaid += len(payload)
            if kind in (DATA, HEADERS) and flags & END_STREAM:
                out.append(frame(HEADERS, END_HEADERS, stream, ANSWER))
                out.append(frame(DATA, 0, stream, OVERALL_OK))
                out.append(frame(HEADERS, END_HEADERS | END_STREAM, stream, TRAILERS))
            elif kind in (SETTINGS, PING) and not flags & ACK:
                out.append(frame(kind, ACK, stream, payload if kind == PING else b""))
        if self.unsaid > WINDOW // 2:
            out.append(frame(WINDOW_UPDATE, 0, bytes(4), self.unsaid.to_bytes(4, "big")))
            self.unsaid = 0
        self.buffer = data[at:]
        self.transport.write(b"".join(out))


async def main() -> None:
    """Serve until killed."""
    server = await asyncio.get_running_loop().create_server(Connection, "127.0.0.1", int(sys.argv[1]))
    await server.serve_forever()


if __name__ == "__main__":
    uvloop.run(main())
