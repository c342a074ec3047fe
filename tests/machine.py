"""How busy the machine is with other things."""

from __future__ import annotations

import time
from pathlib import Path

PRESSURE = Path("/proc/pressure/cpu")
STARVED = 0.25  # of the time somebody waits for a processor


class Machine:
    """Watches, from now on, for how much of the time somebody was ready to run and had no processor."""

    def __init__(self) -> None:
        self._since_s = time.monotonic()
        self._waited_s = self._total_s()

    @staticmethod
    def _total_s() -> float:
        try:
            return int(PRESSURE.read_text().split("total=")[1].split()[0]) / 1e6
        except (OSError, IndexError, ValueError):  # not every kernel tells; then no machine is called starved
            return 0.0

    def was_starved(self) -> bool:
        """Whether that was so often that servers cannot be expected to answer in time."""
        return self._total_s() - self._waited_s > STARVED * (time.monotonic() - self._since_s)
