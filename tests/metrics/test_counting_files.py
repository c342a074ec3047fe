"""Goal: counting ends no process. Method: the library's own files where blocks can and cannot be allocated."""

from __future__ import annotations

import errno
import logging
import os
from typing import TYPE_CHECKING

import pytest
from prometheus_client.mmap_dict import MmapedDict

from ratelimiter.metrics.counting_files import CountingFile

if TYPE_CHECKING:
    from pathlib import Path

MANY = 9000  # values: more than a file has room for at first, and after it has doubled


def full_after(monkeypatch: pytest.MonkeyPatch, room: int) -> None:
    """Let the file system have *room* bytes for a file."""
    allocate = os.posix_fallocate

    def allocated(fd: int, offset: int, length: int) -> None:
        if length > room:
            raise OSError(errno.ENOSPC, "No space left on device")
        allocate(fd, offset, length)

    monkeypatch.setattr(os, "posix_fallocate", allocated)


@pytest.mark.parametrize("room", [0, 1 << 16, 1 << 17, 1 << 30])
def test_values_stay_true_whenever_the_disk_is_full(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, room: int
) -> None:
    """From the start, while growing, or never: each value is what was written, and a failure is one line."""
    full_after(monkeypatch, room)
    file = CountingFile(str(tmp_path / "counter_1.db"))
    for number in range(MANY):
        file.write_value(f"key-{number}", float(number), 0.0)  # type: ignore[no-untyped-call]

    assert all(float(n) == file.read_value(f"key-{n}")[0] for n in range(MANY))  # type: ignore[no-untyped-call]
    assert int(room < 1 << 30) == len([r for r in caplog.records if r.levelno == logging.ERROR])
    file.close()  # type: ignore[no-untyped-call]


def test_other_processes_read_the_file(tmp_path: Path) -> None:
    """A file whose blocks are allocated is what the library expects."""
    path = str(tmp_path / "counter_2.db")
    file = CountingFile(path)
    file.write_value("key", 3.0, 0.0)  # type: ignore[no-untyped-call]

    assert [("key", 3.0)] == [found[:2] for found in MmapedDict.read_all_values_from_file(path)]  # type: ignore[no-untyped-call]
    assert os.stat(path).st_blocks * 512 >= os.stat(path).st_size
    file.close()  # type: ignore[no-untyped-call]


def test_a_directory_that_is_gone_is_counted_without(tmp_path: Path) -> None:
    """A worker that starts after the directory was removed counts in memory."""
    file = CountingFile(str(tmp_path / "gone" / "counter_3.db"))
    file.write_value("key", 3.0, 0.0)  # type: ignore[no-untyped-call]

    assert 3.0 == file.read_value("key")[0]  # type: ignore[no-untyped-call]
    file.close()  # type: ignore[no-untyped-call]
