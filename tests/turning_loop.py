"""An event loop whose clock is the test's: who waits for a moment has it at once, and none passes by itself."""

from __future__ import annotations

import asyncio
import selectors
from typing import TYPE_CHECKING, Any, TypeVar

if TYPE_CHECKING:
    from collections.abc import Coroutine

Result = TypeVar("Result")


class _Passing(selectors.SelectSelector):
    """Where the loop would sleep, its time passes."""

    def __init__(self) -> None:
        super().__init__()
        self.now_s = 1000.0

    def select(self, timeout: float | None = None) -> list[Any]:
        if timeout:
            self.now_s += timeout
        return super().select(0)


class TurningLoop(asyncio.SelectorEventLoop):
    """Its time stands still while there is something to do, and leaps to what is due next when there is not."""

    def __init__(self) -> None:
        self._passing = _Passing()
        super().__init__(self._passing)

    def time(self) -> float:
        """Seconds."""
        return self._passing.now_s


def turn(coroutine: Coroutine[Any, Any, Result]) -> Result:
    """Run *coroutine* on such a loop."""
    with asyncio.Runner(loop_factory=TurningLoop) as runner:
        return runner.run(coroutine)
