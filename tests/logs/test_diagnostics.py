"""Goal: a diagnostic log that says when, how bad and where, and that no flood fills. Method: files and a stopwatch."""

from __future__ import annotations

import json
import logging
import os
import re
from typing import TYPE_CHECKING

import pytest

from ratelimiter.logs.diagnostics import AUDIT, JSON, LINES_PER_KIND, PERIOD_S, TEXT, DiagnosticHandler

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path


class Scene:
    """A handler on a file, and its time."""

    def __init__(self, path: Path, form: str) -> None:
        self.path = path
        self.now_s = 0.0
        self._fd = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT)
        self.handler = DiagnosticHandler(self._fd, form, stopwatch=lambda: self.now_s)

    def lines(self) -> list[str]:
        """Close the handler and return what it has written."""
        self.handler.close()
        os.close(self._fd)
        return self.path.read_text().splitlines()

    def log(self, text: str, *args: object, name: str = "ratelimiter.stores", level: int = logging.WARNING) -> None:
        """Log one line, as a logger does."""
        self.handler.handle(logging.LogRecord(name, level, __file__, 1, text, args, None))


@pytest.fixture
def scene(tmp_path: Path) -> Callable[[str], Scene]:
    return lambda form: Scene(tmp_path / form, form)


def test_a_line_has_time_level_and_logger(scene: Callable[[str], Scene]) -> None:
    """A person reads when it was, how bad it is and which part says so."""
    text = scene(TEXT)
    text.log("the store does not answer (%s)", "timeout")
    (line,) = text.lines()

    assert re.fullmatch(
        r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z WARNING ratelimiter\.stores: the store does not answer \(timeout\)",
        line,
    )


def test_a_json_line_is_one_object_whatever_it_says(scene: Callable[[str], Scene]) -> None:
    """A line feed in a value begins no second line, and a traceback is a member."""
    told = scene(JSON)
    told.log("a\nb \ud800 %s", "c\nd")
    try:
        raise ValueError("wrong")
    except ValueError as fault:
        error = (type(fault), fault, fault.__traceback__)
        told.handler.handle(logging.LogRecord("x", logging.ERROR, __file__, 1, "failed", (), error))
    first, second = (json.loads(line) for line in told.lines())

    assert ("WARNING", "ratelimiter.stores", "c\nd") == (first["level"], first["logger"], first["message"][-3:])
    assert "ValueError: wrong" in second["exception"]


def test_a_flood_is_thinned_out_and_counted(scene: Callable[[str], Scene]) -> None:
    """Of each kind a few lines in a period; the number left out follows when the period is over, with no next line."""
    flood = scene(TEXT)
    for number in range(100):
        flood.log("request %d failed", number)
        flood.log("another kind")
    flood.now_s = PERIOD_S
    flood.handler.tell_left_out()
    lines = [line.split(": ", 1)[1] for line in flood.lines()]

    assert [f"request {number} failed" for number in range(LINES_PER_KIND)] == [x for x in lines if x[0] == "r"]
    assert f"{100 - LINES_PER_KIND} lines like this one were left out: request 0 failed" in lines
    assert f"{100 - LINES_PER_KIND} lines like this one were left out: another kind" in lines
    assert 2 * LINES_PER_KIND + 2 == len(lines)


def test_a_kind_is_told_again_in_the_next_period(scene: Callable[[str], Scene]) -> None:
    """After a period the kind has its lines again."""
    calm = scene(TEXT)
    for _ in range(2):
        for _ in range(LINES_PER_KIND):
            calm.log("again")
        calm.now_s += PERIOD_S

    assert 2 * LINES_PER_KIND == len(calm.lines())


def test_audit_lines_are_never_left_out(scene: Callable[[str], Scene]) -> None:
    """Each command of an operator is a line."""
    audit = scene(TEXT)
    for number in range(50):
        audit.log("%s", f"command {number}", name=AUDIT, level=logging.INFO)

    assert 50 == len(audit.lines())


def test_a_line_that_cannot_be_made_stops_nothing(scene: Callable[[str], Scene]) -> None:
    """A message whose values do not fit is lost and counted."""
    odd = scene(TEXT)
    odd.log("%d of %d", 1)

    assert [] == odd.lines()
    assert 1 == odd.handler.sink.lost


@pytest.fixture(autouse=True)
def _no_handler_stays() -> Iterator[None]:
    before = logging.getLogger().handlers[:]
    yield
    assert before == logging.getLogger().handlers
