"""Files in which several processes count together, on a file system that may be full or vanish.

The client library grows a file without allocating its blocks, and writes to it through a memory map. When the file
system is full then, the kernel answers a write with SIGBUS, which ends the process. So blocks are allocated first. If
there are none, the process counts in memory and goes on.
"""

from __future__ import annotations

import logging
import os
from mmap import mmap
from typing import Any

from prometheus_client import values
from prometheus_client.mmap_dict import _INITIAL_MMAP_SIZE, MmapedDict

log = logging.getLogger(__name__)

ENTRY_BYTES = 32  # of a value beside its name: length, padding, value, time


class CountingFile(MmapedDict):
    """Values of one process in a file whose blocks are allocated, else in memory.

    Args:
        filename: of the file.
        read_mode: True to read another process's file.
    """

    def __init__(self, filename: str, read_mode: bool = False) -> None:
        place = filename if read_mode else _allocated(filename)
        self._in_memory = place != filename
        super().__init__(place, read_mode)  # type: ignore[no-untyped-call]

    def _init_value(self, key: str) -> None:
        wanted = self._used + len(key.encode()) + ENTRY_BYTES
        if wanted > self._capacity and not self._in_memory:
            capacity = self._capacity
            while capacity < wanted:
                capacity *= 2
            try:
                os.posix_fallocate(self._f.fileno(), 0, capacity)
            except OSError as fault:
                self._move_to_memory(fault)
        super()._init_value(key)  # type: ignore[no-untyped-call]

    def _move_to_memory(self, fault: OSError) -> None:
        _say(self._fname, fault)
        self._in_memory = True
        fd = os.memfd_create("ratelimiter-counts")
        file: Any = os.fdopen(fd, "a+b")
        os.write(fd, self._m[: self._capacity])
        self._m.close()
        self._f.close()
        self._f, self._m = file, mmap(fd, self._capacity)  # of the old size: the library doubles it next


def _allocated(filename: str) -> str:
    """Return *filename*, a file with blocks of its own by now, or the name of a file in memory."""
    try:
        fd = os.open(filename, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
        try:
            os.posix_fallocate(fd, 0, max(os.fstat(fd).st_size, _INITIAL_MMAP_SIZE))
        finally:
            os.close(fd)
    except OSError as fault:
        _say(filename, fault)
        memory = os.memfd_create("ratelimiter-counts")  # stays open: the library opens it again by this name
        os.truncate(memory, _INITIAL_MMAP_SIZE)
        return f"/proc/self/fd/{memory}"
    return filename


def _say(filename: str, fault: OSError) -> None:
    log.error(
        "%s cannot grow (%s): this process counts in memory, and scrapes of the others miss its counts; give %s room",
        filename,
        fault.strerror,
        os.path.dirname(filename),
    )


def install() -> None:
    """Have the client library count in such files. Its own class has no setting for it."""
    values.MmapedDict = CountingFile  # type: ignore[attr-defined]
