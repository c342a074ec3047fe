"""Sources of log lines: files, globs, standard input, compressed or not, read in chunks of bounded size."""

from __future__ import annotations

import bz2
import glob
import gzip
import io
import lzma
import os
import sys
import zlib
from dataclasses import dataclass, field
from importlib import import_module
from typing import IO, TYPE_CHECKING, Any, cast

from ratelimiter.errors import ConfigError

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

STDIN = "-"
CHUNK = 1 << 18
LINE_MAX = 1 << 20  # bytes; a longer line is unread, so that a file without newlines cannot fill the memory

_GZIP, _BZIP2, _ZSTD, _XZ = b"\x1f\x8b", b"BZh", b"\x28\xb5\x2f\xfd", b"\xfd7zXZ\x00"


@dataclass(slots=True)
class Source:
    """One log.

    Attributes:
        path: of the file, or `-`.
        size: bytes of the file as it lies there; 0 if unknown.
        done: bytes of it that were read.
        fault: why it could not be read to its end; empty if it could.
    """

    path: str
    size: int = 0
    done: int = 0
    fault: str = ""
    _stream: Any = field(default=None, repr=False)

    @property
    def place(self) -> str:
        """The name for people."""
        return "standard input" if self.path == STDIN else self.path

    def chunks(self) -> Iterator[list[str] | None]:
        """Yield the lines in lists, without their ends; None in the place of a line longer than `LINE_MAX`.

        Bytes that are not UTF-8 are kept as they are, in the form that `bytes.decode` calls surrogateescape.

        Raises:
            ConfigError: the file cannot be opened.
        """
        raw = self._opened()
        try:
            yield from self._split(_decompressed(raw, self.path))
        except (OSError, EOFError, zlib.error, lzma.LZMAError) as fault:  # what was read before counts
            self.fault = f"{self.place}: cannot be read to its end ({fault}); the lines before that count"
        finally:
            if self.path != STDIN:
                raw.close()

    def _opened(self) -> _Counted:
        if self.path == STDIN:
            return _Counted(sys.stdin.buffer.raw if hasattr(sys.stdin.buffer, "raw") else sys.stdin.buffer, self)
        try:
            file = open(self.path, "rb", buffering=0)  # noqa: SIM115  # closed by `chunks`
        except OSError as fault:
            msg = f"{self.path}: cannot be read ({fault.strerror}); name a log that this process may read"
            raise ConfigError(msg) from None
        self.size = os.fstat(file.fileno()).st_size
        return _Counted(file, self)

    @staticmethod
    def _split(stream: IO[bytes]) -> Iterator[list[str] | None]:
        rest, skipping = b"", False
        while chunk := stream.read(CHUNK):
            lines = (rest + chunk).split(b"\n")
            rest = lines.pop()
            if skipping and lines:
                del lines[0]
                skipping = False
            if lines:
                yield b"\n".join(lines).decode(errors="surrogateescape").split("\n")
            if len(rest) > LINE_MAX:
                if not skipping:
                    yield None
                rest, skipping = b"", True
        if rest and not skipping:
            yield [rest.decode(errors="surrogateescape")]


class _Counted(io.RawIOBase):
    """A raw file that tells its source how much was read."""

    def __init__(self, raw: Any, source: Source) -> None:
        self._raw = raw
        self._source = source

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        chunk = self._raw.read(len(buffer)) or b""
        buffer[: len(chunk)] = chunk
        self._source.done += len(chunk)
        return len(chunk)

    def close(self) -> None:
        if not self.closed and self._source.path != STDIN:
            self._raw.close()
        super().close()


def _decompressed(raw: _Counted, path: str) -> IO[bytes]:
    """Return *raw* decompressed, as its first bytes ask for it, whatever the file is called."""
    stream = io.BufferedReader(raw, CHUNK)
    start = stream.peek(8)
    if start.startswith(_GZIP):
        return cast("IO[bytes]", gzip.GzipFile(fileobj=stream))
    if start.startswith(_BZIP2):
        return cast("IO[bytes]", bz2.BZ2File(stream))
    if start.startswith(_XZ):
        return cast("IO[bytes]", lzma.LZMAFile(stream))
    if start.startswith(_ZSTD):
        return _zstd(stream, path)
    return stream


def _zstd(stream: IO[bytes], path: str) -> IO[bytes]:
    try:
        module: Any = import_module("compression.zstd")  # Python 3.14
    except ImportError:
        try:
            module = import_module("zstandard")
        except ImportError:
            msg = f"{path}: is compressed with zstd; run pip install zstandard, or unpack the file"
            raise ConfigError(msg) from None
        opened: IO[bytes] = module.ZstdDecompressor().stream_reader(stream, read_across_frames=True)
        return opened
    file: IO[bytes] = module.ZstdFile(stream)
    return file


def expanded(places: Iterable[str]) -> list[Source]:
    """Return the logs that *places* name: paths, patterns like `access.log*`, or `-`.

    Raises:
        ConfigError: there is none, or a folder stands in the place of a file.
    """
    found: dict[str, Source] = {}
    for place in places:
        paths = [place]
        if place != STDIN and not os.path.exists(place) and glob.has_magic(place):
            paths = sorted(path for path in glob.glob(place, recursive=True) if not os.path.isdir(path))
        if not paths or (place != STDIN and not os.path.exists(paths[0])):
            msg = f"{place}: there is no such log; write a path, a pattern like 'access.log*', or - for standard input"
            raise ConfigError(msg)
        for path in paths:
            if os.path.isdir(path):
                msg = f"{path}: is a folder; write {path.rstrip('/')}/* for the files in it"
                raise ConfigError(msg)
            found.setdefault(path if path == STDIN else os.path.realpath(path), Source(path, _size(path)))
    return list(found.values())


def _size(path: str) -> int:
    try:
        return 0 if path == STDIN else os.stat(path).st_size
    except OSError:
        return 0
