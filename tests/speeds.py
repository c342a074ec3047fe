"""Two speeds of tests: those that start a real server are marked `server`, and only `wall_clock` ones are tried again.

A test is marked `server` if its module imports, over however many modules of the tests, one that starts programs. The
mark sets itself, and `scripts/test` leaves these tests out.
"""

from __future__ import annotations

import ast
from functools import cache
from pathlib import Path

ROOT = Path(__file__).parent.parent
STARTERS = {"Popen", "create_subprocess_exec", "create_subprocess_shell"}  # calls that start a program and go on


@cache
def starts_servers(module: str) -> bool:
    """Return True if *module*, by its dotted name, starts programs or imports a module of the tests that does."""
    path = ROOT / (module.replace(".", "/") + ".py")
    if not path.is_file():
        return False
    nodes = list(ast.walk(ast.parse(path.read_text(encoding="utf-8"))))
    if any(isinstance(node, ast.Attribute) and node.attr in STARTERS for node in nodes):
        return True
    imported = {node.module or "" for node in nodes if isinstance(node, ast.ImportFrom)}
    return any(starts_servers(name) for name in sorted(imported) if name.startswith("tests."))


def module_of(path: Path) -> str:
    """Return the dotted name of the test module at *path*."""
    return ".".join(path.relative_to(ROOT).with_suffix("").parts)
