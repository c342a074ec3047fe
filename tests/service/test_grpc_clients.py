"""Goal: clients that are not ours find a gRPC server. Method: grpcio, h2load, curl, and all cases of h2spec."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import grpc
import pytest

from ratelimiter.service.grpc.calls import prefixed
from tests.service.clients import ECHO, LATER, served

if TYPE_CHECKING:
    from collections.abc import Iterator

H2SPEC = shutil.which("h2spec") or str(Path(sys.executable).parent / "h2spec")


@pytest.fixture(scope="module")
def port() -> Iterator[int]:
    """Where a server listens."""
    with served() as (port, _):
        yield port


def test_grpcio_calls(port: int) -> None:
    """The reference implementation is answered, with messages up to the largest, and refused beyond."""
    with grpc.insecure_channel(f"127.0.0.1:{port}") as channel:
        echo = channel.unary_unary(ECHO)
        for size in (0, 1, 70_000, 1_048_576 - 5):
            assert b"m" * size == echo(b"m" * size, timeout=10)
        with pytest.raises(grpc.RpcError) as refused:
            echo(b"m" * 1_100_000, timeout=10)
        with pytest.raises(grpc.RpcError) as unknown:
            channel.unary_unary("/test.Echo/Nothing")(b"")
        with pytest.raises(grpc.RpcError) as compressed:
            channel.unary_unary(ECHO)(b"m" * 100, compression=grpc.Compression.Gzip)

    assert grpc.StatusCode.RESOURCE_EXHAUSTED is refused.value.code()
    assert grpc.StatusCode.UNIMPLEMENTED is unknown.value.code() is compressed.value.code()


def test_grpcio_at_many_calls_at_a_time(port: int) -> None:
    """Two thousand calls at once over one connection, twice as many as are let in at a time, are all answered."""
    with grpc.insecure_channel(f"127.0.0.1:{port}") as channel:
        calls = [channel.unary_unary(LATER).future(b"%d" % number, timeout=20) for number in range(2000)]

        assert [b"%d" % number for number in range(2000)] == [call.result() for call in calls]


def test_grpcio_watches_health_through_a_drain() -> None:
    """A watch tells SERVING, NOT_SERVING and the end; a call that was begun before the drain is answered in it."""
    with served() as (port, process), grpc.insecure_channel(f"127.0.0.1:{port}") as channel:
        watch = channel.unary_stream("/grpc.health.v1.Health/Watch")(b"", timeout=10)
        assert b"\x08\x01" == next(watch)
        begun = channel.unary_unary(LATER).future(b"begun", timeout=10)
        channel.unary_unary(ECHO)(b"")  # it is behind the other one, so that one has come, too
        process.terminate()

        assert b"\x08\x02" == next(watch)
        with pytest.raises(grpc.RpcError) as ended:
            next(watch)
        assert grpc.StatusCode.UNAVAILABLE is ended.value.code()
        assert b"begun" == begun.result()


def test_h2load(port: int, tmp_path: Path) -> None:
    """nghttp2's client gets 20,000 answers over 8 connections of 50 streams, none failed."""
    message = tmp_path / "message"
    message.write_bytes(prefixed(b"m" * 100))
    load = ["h2load", "-n20000", "-c8", "-m50", f"-d{message}", "-Hcontent-type: application/grpc", "-Hte: trailers"]
    done = subprocess.run(
        [*load, f"http://127.0.0.1:{port}{ECHO}"], capture_output=True, text=True, check=True, timeout=120
    )

    assert "20000 succeeded, 0 failed, 0 errored, 0 timeout" in done.stdout
    assert "status codes: 20000 2xx" in done.stdout


@pytest.mark.parametrize("flag", ["--http2-prior-knowledge", "--http1.1"])
def test_curl(port: int, flag: str) -> None:
    """A person with curl is told what the port speaks, in either version of HTTP."""
    curl = ["curl", "-s", flag, f"http://127.0.0.1:{port}/"]
    done = subprocess.run(
        curl, capture_output=True, text=True, timeout=20, check=False
    )  # HTTP/1.1 gets no second answer

    assert "this port speaks gRPC" in done.stdout


@pytest.mark.skipif(not Path(H2SPEC).exists(), reason="h2spec is a Go program; tests/run installs it where there is Go")
def test_h2spec(port: int) -> None:
    """Every case of the conformance suite for HTTP/2 and HPACK passes."""
    done = subprocess.run(
        [H2SPEC, "-h", "127.0.0.1", "-p", str(port), "-o", "5"],
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    tests, passed, skipped, failed = map(int, re.findall(r"(\d+) (?:tests|passed|skipped|failed)", done.stdout)[-4:])

    assert (tests, 0, 0) == (passed, skipped, failed), done.stdout
    assert tests > 140
