"""The matrix itself: complete, and as a document."""

from __future__ import annotations

import ast
from pathlib import Path

from tests.faults.matrix import DOCUMENT, document, lines, rows_of
from tests.faults.records import Omission, Record
from tests.faults.rows import ELSEWHERE, FAULTS

RECORD = Record(3, "SIGSTOP", 51.4, 60.0, "local", "local 30", 204.6)


def drilled() -> set[int]:
    """The rows that some test of this suite is named for."""
    trees = [ast.parse(path.read_text()) for path in Path(__file__).parent.glob("test_*.py")]
    return {
        row
        for tree in trees
        for node in ast.walk(tree)
        if isinstance(node, ast.AsyncFunctionDef | ast.FunctionDef)
        for row in rows_of(node.name)
    }


def test_every_row_is_drilled() -> None:
    """Every fault of the matrix has a drill, or a reason why it has none here."""
    assert set(FAULTS) == drilled()
    assert not set(FAULTS) & set(ELSEWHERE)


def test_document_has_every_row() -> None:
    """The page in the documentation is from a run of the whole suite."""
    page = DOCUMENT.read_text(encoding="utf-8")

    assert [] == [row for row in FAULTS if f"| F{row} | " not in page and f"* F{row}, " not in page]


def test_line_of_a_drill() -> None:
    """A drill is a line of the table, in whole milliseconds."""
    assert "| F3 | the server stands still, its sockets open | SIGSTOP | 51 | local | local 30 | 205 |" in lines(
        [RECORD], []
    )


def test_what_was_left_out_is_said() -> None:
    """The page ends with the rows that this run left out, each with its reason."""
    page = document([RECORD], [Omission(40, "there is no cc")])

    assert page.endswith("Left out:\n\n* F40, the server's clock jumps back an hour: there is no cc\n")
