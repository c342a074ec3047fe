"""The page about the architecture says what the code has."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest

from tests.test_imports import MAY_IMPORT, PACKAGE

ROOT = Path(__file__).parent.parent
PAGE = (ROOT / "docs" / "architecture.md").read_text()
PICTURE = (ROOT / "docs" / "pictures" / "house.svg").read_text()
WHERE = PAGE.partition("## Where is X decided?")[2].partition("\n## ")[0]
ROWS = re.findall(r"^\| (.*) \| \[([^\]]*)\]\(([^)]*)\) \| `([^`]*)` \|$", WHERE, re.MULTILINE)
INVARIANT = re.compile(r"^ ?(\d+)\. (.*(?:\n {4}\S.*)*)", re.MULTILINE)


def defined(path: Path) -> set[str]:
    """Return the classes and functions of a module, methods as `Class.method`."""
    found = set()
    for node in ast.parse(path.read_text()).body:
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            found.add(node.name)
        if isinstance(node, ast.ClassDef):
            found |= {f"{node.name}.{each.name}" for each in node.body if hasattr(each, "name")}
    return found


def test_there_are_questions() -> None:
    """A row that the expression above does not read would not be tested."""
    assert len(re.findall(r"^\| [A-Z].*\?", WHERE, re.MULTILINE)) == len(ROWS)
    assert len(ROWS) >= 10


@pytest.mark.parametrize(("question", "file", "link", "name"), ROWS, ids=[row[0] for row in ROWS])
def test_the_answer_is_there(question: str, file: str, link: str, name: str) -> None:
    """The file of each row exists and defines the name of the row."""
    path = (ROOT / "docs" / link).resolve()

    assert ROOT / file == path, question
    assert name in defined(path), question


@pytest.mark.parametrize("text", [PAGE, PICTURE], ids=["page", "picture"])
def test_every_package_is_shown(text: str) -> None:
    """Each package of the house is on the page and in the picture."""
    packages = {path.parent.name for path in PACKAGE.glob("*/__init__.py")}

    assert packages <= set(MAY_IMPORT)
    assert set() == {name for name in packages if f"{name}/" not in text}


def test_a_package_imports_from_its_row_and_below() -> None:
    """The rows of the picture are the order in which packages may import each other."""
    drawn = re.findall(r'<rect x="[^"]*" y="(\d+)"[^>]*/><text class="name"[^>]*>(\w+)/?</text>', PICTURE)
    row = {name: int(y) for y, name in drawn}
    upward = {
        (name, other)
        for name in row.keys() & MAY_IMPORT
        for other in MAY_IMPORT[name] & row.keys()
        if row[other] < row[name]
    }

    assert {"core", "engine", "asgi"} <= set(row)
    assert set() == upward


def test_the_invariants_are_those_of_the_core() -> None:
    """The ten sentences are those at the top of the core, word by word."""
    modules = (PACKAGE / "core" / "__init__.py", PACKAGE / "core" / "algorithms" / "sliding_window.py")
    said = [INVARIANT.findall(ast.get_docstring(ast.parse(module.read_text())) or "") for module in modules]
    here = INVARIANT.findall(PAGE.partition("## The ten invariants")[2].partition("\n## ")[0])
    (there,) = [invariants for invariants in said if invariants]

    assert [str(number) for number in range(1, 11)] == [number for number, _ in here]
    assert [" ".join(text.split()) for _, text in there] == [" ".join(text.split()) for _, text in here]
