"""A server whose clock is set: rows F40 and F41."""

from __future__ import annotations

import shutil
import struct
import subprocess
import time
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from ratelimiter.core.receipt import STORE
from tests.faults.drill import TIGHT, Drill
from tests.faults.server import Server

if TYPE_CHECKING:
    from tests.faults.drill import Service

WINDOW_MS = 1000
SOURCE = Path(__file__).with_name("clockshim.c")


class Clocked(Server):
    """A server whose clock is as far off as it is told."""

    def __init__(self, shim: Path, offset: Path) -> None:
        super().__init__()
        self._shim, self._offset = shim, offset
        self.offset_s = 0

    @property
    def offset_s(self) -> int:
        offset_s: int
        (offset_s,) = struct.unpack("q", self._offset.read_bytes())
        return offset_s

    @offset_s.setter
    def offset_s(self, seconds: int) -> None:
        with self._offset.open("r+b" if self._offset.exists() else "wb") as file:  # in place: it is mapped
            file.write(struct.pack("q", seconds))

    def words(self) -> list[str]:
        return ["env", f"LD_PRELOAD={self._shim}", f"CLOCKSHIM={self._offset}", *super().words()]


@pytest.fixture(scope="module")
def shim(tmp_path_factory: pytest.TempPathFactory) -> Path:
    compiler = shutil.which("cc")
    if compiler is None:
        pytest.skip("the server's clock is set by a library that has to be compiled, and there is no cc")
    library = tmp_path_factory.mktemp("clock") / "clockshim.so"
    subprocess.run([compiler, "-shared", "-fPIC", "-O1", "-Wall", "-o", library, SOURCE], check=True)
    return library


def most_in_a_window(service: Service, since_s: float, until_s: float = float("inf")) -> int:
    """The most requests of the tight rule that the store has certainly admitted within one window."""
    inside = [
        sample
        for sample in service.samples
        if sample.path == "/tight" and (sample.source, sample.status) == (STORE, 200)
        if since_s <= sample.begun_s and sample.ended_s <= until_s
    ]
    return max(
        sum(later.ended_s - sample.begun_s < WINDOW_MS / 1000 for later in inside[index:])
        for index, sample in enumerate(inside)
    )


@pytest.mark.parametrize(
    ("row", "step_s", "how"),
    [(40, -3600, "an hour back"), (40, -1, "one window back"), (41, 120, "two minutes on")],
)
async def test_f40_f41_clock_that_is_set(shim: Path, tmp_path: Path, row: int, step_s: int, how: str) -> None:
    """A step of the server's clock gives nobody more than one limit more, and shuts nobody out for more than two
    windows.
    """
    with Clocked(shim, tmp_path / "offset") as server:
        async with Drill(server.url, window_ms=WINDOW_MS, losses=1000) as drill:
            await drill.settled()
            with server.client() as client, drill.fault():
                before_s = client.time()[0]
                server.offset_s = step_s
                stepped_s = time.monotonic()
                assert abs(client.time()[0] - before_s - step_s) <= 1
                await drill.flowed(2.2 * WINDOW_MS / 1000)
            await drill.recovered()
        drill.check(row, f"a preloaded library sets the server's clock {how} (limit 20 per second)")
    assert {} == drill.kinds()
    for service in drill.services.values():
        assert most_in_a_window(service, 0, stepped_s) <= TIGHT
        assert most_in_a_window(service, 0) <= 2 * TIGHT
        assert most_in_a_window(service, stepped_s) <= 2 * TIGHT
        admitted = [s.begun_s for s in service.since(stepped_s) if s.path == "/tight" and s.status == 200]
        assert any(begun_s - stepped_s <= 2.1 * WINDOW_MS / 1000 for begun_s in admitted)
