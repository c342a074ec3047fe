"""No text can cost more than its length: patterns and parsers of foreign text grow linearly, counted in steps."""

from __future__ import annotations

import ast
import importlib
import re
import sys
from collections import Counter
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from ratelimiter.config.lint import warnings
from ratelimiter.config.loader import build
from ratelimiter.dialects.dialect import Dialect, InvalidDialectError
from ratelimiter.dialects.loader import load as load_dialect
from ratelimiter.errors import ConfigError
from ratelimiter.parsing.yaml import examine
from tests.backtracking import Backtracking, hostile

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

PACKAGE = Path(__file__).parent.parent / "ratelimiter"
SHORT, LONG = 60, 120
GROWTH_MAX = 2.3  # of the steps, from SHORT to LONG; linear is 2, quadratic 4
CONSTANT = 60  # steps that may be added, whatever the length
ENDS = ("", "\x00", "!")
SEARCHES = ("search", "sub", "subn", "finditer", "findall", "split")


def patterns() -> Iterator[tuple[str, re.Pattern[Any], bool]]:
    """Yield every pattern of the package: its place, the pattern, and whether it is searched for."""
    for path in sorted(PACKAGE.rglob("*.py")):
        parts = path.relative_to(PACKAGE.parent).with_suffix("").parts
        name = ".".join(part for part in parts if part != "__init__")
        tree = ast.parse(path.read_text(encoding="utf-8"))
        searched = {
            node.func.value.id
            for node in ast.walk(tree)
            if isinstance(node, ast.Call)
            and isinstance(node.func, ast.Attribute)
            and node.func.attr in SEARCHES
            and isinstance(node.func.value, ast.Name)
        }
        if "re.compile" in ast.unparse(tree):
            module = importlib.import_module(name)
            for variable, value in vars(module).items():
                for index, pattern in enumerate(_within(value)):
                    place = f"{name}.{variable}" + ("" if isinstance(value, re.Pattern) else f"[{index}]")
                    yield place, pattern, bool(searched & {variable, *_called(tree, variable)})
        yield from _written_out(name, tree)


def _called(tree: ast.AST, variable: str) -> Iterator[str]:
    """Yield the names by which loops go through what *variable* holds."""
    for node in ast.walk(tree):
        if isinstance(node, ast.For | ast.comprehension) and variable in ast.unparse(node.iter):
            yield from (each.id for each in ast.walk(node.target) if isinstance(each, ast.Name))


def _within(value: object) -> Iterator[re.Pattern[Any]]:
    if isinstance(value, re.Pattern):
        yield value
    elif isinstance(value, dict):
        for item in value.values():
            yield from _within(item)
    elif isinstance(value, tuple | list):
        for item in value:
            yield from _within(item)


def _written_out(name: str, tree: ast.AST) -> Iterator[tuple[str, re.Pattern[Any], bool]]:
    """Yield the patterns of calls like `re.search("...", text)`."""
    for node in ast.walk(tree):
        if not (isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute)):
            continue
        if ast.unparse(node.func.value) == "re" and node.func.attr in (*SEARCHES, "match", "fullmatch"):
            first = node.args[0]
            if isinstance(first, ast.Constant) and isinstance(first.value, str | bytes):
                yield f"{name}:{node.lineno}", re.compile(first.value), node.func.attr in SEARCHES


FOUND = list(patterns())


def test_patterns_are_found() -> None:
    """The test below does not pass for lack of patterns."""
    assert len(FOUND) > 60


@pytest.mark.parametrize(
    ("place", "pattern", "searched"), FOUND, ids=[place.removeprefix("ratelimiter.") for place, _, _ in FOUND]
)
def test_a_pattern_grows_linearly(place: str, pattern: re.Pattern[Any], *, searched: bool) -> None:
    """A text of twice the length takes at most about twice the steps, whatever the pattern is made to repeat."""
    counter = Backtracking(pattern)
    for beginning, unit in hostile(counter.tree, pattern.flags):
        for end in ENDS:
            short = counter.count(beginning + unit * SHORT + end, search=searched)
            long = counter.count(beginning + unit * LONG + end, search=searched)
            assert long <= GROWTH_MAX * short + CONSTANT, (place, beginning, unit, end, short, long)


def calls(work: Callable[[], object]) -> int:
    """Return the number of functions that *work* calls, those of C among them."""
    counted: Counter[str] = Counter()
    sys.setprofile(lambda _frame, event, _argument: counted.update((event,)))
    try:
        work()
    finally:
        sys.setprofile(None)
    return counted["call"] + counted["c_call"]


TEXTS: dict[str, Callable[[int], str]] = {
    "digits": lambda n: "limit: " + "9" * n + "/minute",
    "digits alone": lambda n: "limit: " + "9" * n,
    "underscores": lambda n: "a: 1" + "_" * n + "x",
    "list": lambda n: "a: [" + "1, " * n + "1]",
    "keys": lambda n: "".join(f"k{i}: 1\n" for i in range(n)),
    "brackets": lambda n: "[" * n,
    "quotes": lambda n: "a: '" + "''" * n,
    "escapes": lambda n: 'a: "' + "\\n" * n + '"',
    "spaces": lambda n: "a:" + " " * n + "1",
    "comments": lambda n: "#" * n + "\na: 1",
    "words": lambda n: "a: " + "b " * n,
}


@pytest.mark.slow
@pytest.mark.parametrize("name", TEXTS)
def test_reading_yaml_grows_linearly(name: str) -> None:
    """A file of twice the length takes at most about twice the calls, whatever it repeats."""

    def calls_of(n: int) -> int:
        return calls(lambda: examine(TEXTS[name](n).encode(), "f"))

    short, long = map(calls_of, (1500, 3000))

    assert long <= GROWTH_MAX * short + 1000


def policy_of(text: str, tmp_path: Path) -> None:
    path = tmp_path / "p.yaml"
    path.write_text(text, encoding="utf-8")
    with suppress(ConfigError):
        warnings(build(config=path, environ={}))


POLICIES: dict[str, Callable[[int], str]] = {
    "rules": lambda n: "rules:\n" + "".join(f"  - {{name: r{i}, limit: {i + 1}/minute}}\n" for i in range(n)),
    "paths": lambda n: "rules:\n" + "".join(f"  - {{limit: 9/minute, match: {{path: /p{i}}}}}\n" for i in range(n)),
    "bad rules": lambda n: "rules:\n" + "  - {limit: 1/parsec, burst: x, cost: -1}\n" * n,
    "plans": lambda n: (
        "plan: {default: p0}\nrules:\n" + "".join(f"  - {{limit: {{p{i}: 9/minute}}}}\n" for i in range(n))
    ),
    "unlike items": lambda n: "principal: [" + "{a: 1}, 1, " * n + "client]\nrules: [{limit: 1/minute}]\n",
    "unknown keys": lambda n: "".join(f"k{i}: 1\n" for i in range(n)) + "rules: [{limit: 1/minute}]\n",
}


@pytest.mark.parametrize("name", POLICIES)
def test_reading_a_policy_grows_linearly(name: str, tmp_path: Path) -> None:
    """So do a policy's checks and warnings, for a policy that loads and for one of faults."""
    policy_of(POLICIES[name](2), tmp_path)

    def calls_of(n: int) -> int:
        return calls(lambda: policy_of(POLICIES[name](n), tmp_path))

    short, long = map(calls_of, (40, 80))

    assert long <= GROWTH_MAX * short + 2000


def test_words_within_words_are_bounded() -> None:
    """A dialect whose words contain others many times over is refused before it fills the memory."""
    document = {
        **load_dialect("problem")._document,
        "body": {f"m{i}": "{message} {message}" for i in range(100)},
        "general": {"code": "snake_case", "message": "{title}" * 500 + "x" * 2000},
    }

    with pytest.raises(InvalidDialectError, match="grows beyond 262144 bytes"):
        Dialect("bomb", document)
