"""Architecture is a table that fails: which package may import which, and which module alone knows a library."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping

PACKAGE = Path(__file__).parent.parent / "ratelimiter"

# Each package, and the packages that its modules may import, at run time or for types. `errors`, `clock` and `testing`
# are modules at the top. There is no circle in this table, which a test below holds.
MAY_IMPORT: dict[str, set[str]] = {
    "errors": set(),
    "clock": set(),
    "distribution": set(),
    "charts": set(),
    "core": {"core"},
    "parsing": {"core", "errors"},
    "dialects": {"core", "errors", "parsing"},
    "identity": {"clock", "core", "errors", "parsing"},
    "stores": {"clock", "core", "errors", "parsing"},
    "tokens": {"core", "errors", "parsing"},
    "config": {"clock", "core", "dialects", "errors", "identity", "parsing", "stores", "tokens"},
    "engine": {"clock", "core", "dialects", "errors", "identity", "parsing", "stores", "tokens"},
    "testing": {"clock", "engine", "stores"},
    "pytest_plugin": {"testing"},
    "metrics": {"config", "clock", "core", "engine", "errors", "proxy", "tokens"},
    "asgi": {"clock", "config", "core", "dialects", "engine", "errors", "parsing", "stores"},
    "fastapi": {"asgi", "core", "engine", "errors", "parsing"},
    "proxy": {"clock", "core", "errors"},
    "logs": {"clock", "errors", "proxy"},
    "admin": {"charts", "clock", "config", "core", "engine", "errors", "metrics", "parsing", "stores"},
    "sidecar": {
        "logs",
        "admin",
        "clock",
        "config",
        "core",
        "dialects",
        "engine",
        "errors",
        "metrics",
        "parsing",
        "proxy",
        "stores",
    },
    "service": {
        "admin",
        "clock",
        "config",
        "core",
        "dialects",
        "engine",
        "errors",
        "logs",
        "metrics",
        "parsing",
        "proxy",
        "sidecar",
        "stores",
    },
    "replay": {"charts", "core", "errors", "parsing", "tokens"},
    "cli": {
        "admin",
        "asgi",
        "clock",
        "config",
        "core",
        "dialects",
        "engine",
        "errors",
        "identity",
        "parsing",
        "replay",
        "service",
        "sidecar",
        "stores",
    },
}

# Each third-party package, and the modules that may know it.
KNOWN_BY = {
    "brotli": {"tokens.content_decoder"},
    "fastapi": {"asgi.error_handlers", "fastapi"},
    "hiredis": {"stores.redis.connection"},
    "jsonschema": {"parsing.schema"},
    "jwt": {"identity.jwt"},
    "limits": {"parsing.units", "stores.limits_bridge"},
    "redis": {"stores.redis.control"},
    "prometheus_client": {"metrics.counting_files", "metrics.prometheus"},
    "pytest": {"pytest_plugin"},
    "ruamel": {"parsing.yaml"},
    "starlette": {
        "fastapi",
        "admin.app",
        "admin.console.app",
        "admin.operator_http",
        "asgi.error_handlers",
        "cli.demo",
    },
    "tzdata": set(),  # what zoneinfo reads where the system has no time zones
    "uvicorn": {"admin.listener", "cli.demo"},
    "uvloop": {"proxy.lifecycle"},
    "httptools": set(),  # uvicorn's parser: the proxy has a stricter one of its own, for which this one is a test
}

# What the pure half must not even have at hand: time, chance, waiting, the network, the system, the log.
IMPURE = {
    "asyncio",
    "contextvars",
    "datetime",
    "io",
    "logging",
    "os",
    "pathlib",
    "random",
    "secrets",
    "select",
    "signal",
}
IMPURE |= {"socket", "ssl", "subprocess", "sys", "tempfile", "threading", "time", "urllib.request", "uuid", "warnings"}

AT_HAND = {"core.algorithms.calendar": {"datetime"}}  # dates and zones, by which it counts; a test keeps it from clocks


def modules() -> Iterator[tuple[str, Path]]:
    """Yield every module of the package by its name below `ratelimiter`."""
    for path in sorted(PACKAGE.rglob("*.py")):
        parts = path.relative_to(PACKAGE).with_suffix("").parts
        yield ".".join(part for part in parts if part != "__init__"), path


def imports(path: Path, *, at_run_time: bool = False) -> set[str]:
    """Return the full names that a module imports; with *at_run_time* without those only a type checker sees."""
    found: set[str] = set()

    def visit(node: ast.AST) -> None:
        if at_run_time and isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test):
            return
        if isinstance(node, ast.Import):
            found.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path.name} imports relatively"
            found.add(str(node.module))
            if str(node.module).split(".")[0] == "ratelimiter":
                found.update(f"{node.module}.{alias.name}" for alias in node.names)
        for child in ast.iter_child_nodes(node):
            visit(child)

    visit(ast.parse(path.read_text()))
    return found


MODULES = dict(modules())


def within(found: Iterable[str]) -> set[str]:
    """Return the names of our own modules among *found*, below `ratelimiter`."""
    below = {name.partition(".")[2] for name in found if name.startswith("ratelimiter.")}
    return {name if name in MODULES else name.rpartition(".")[0] for name in below} - {""}


def room(module: str) -> str:
    """Return the package of *module*, or the module itself at the top."""
    return module.split(".", maxsplit=1)[0]


def circle(graph: Mapping[str, set[str]]) -> list[str]:
    """Return a circle of *graph*, or nothing."""
    done: set[str] = set()

    def walk(node: str, path: list[str]) -> list[str]:
        if node in path:
            return [*path[path.index(node) :], node]
        if node not in done:
            for neighbour in sorted(graph.get(node, ())):
                found = walk(neighbour, [*path, node])
                if found:
                    return found
            done.add(node)
        return []

    for node in sorted(graph):
        found = walk(node, [])
        if found:
            return found
    return []


CORE = sorted(name for name in MODULES if room(name) == "core")
OURS = sorted(name for name in MODULES if name and room(name) != "__main__")


@pytest.mark.parametrize("name", OURS)
def test_a_package_imports_what_the_table_says(name: str) -> None:
    """A module imports, at run time and for types, its own package and those that the table gives it."""
    foreign = {room(module) for module in within(imports(MODULES[name]))} - {room(name), "__version__"}

    assert set() == foreign - MAY_IMPORT[room(name)]


def test_the_table_has_no_circle() -> None:
    """No package needs, over however many others, itself."""
    assert [] == circle({name: packages - {name} for name, packages in MAY_IMPORT.items()})


def test_modules_have_no_circle() -> None:
    """No module needs itself, over however many others, at run time."""
    assert [] == circle({name: within(imports(path, at_run_time=True)) - {name} for name, path in MODULES.items()})


@pytest.mark.parametrize("name", CORE)
def test_the_core_is_pure(name: str) -> None:
    """The core imports itself and the standard library, and of that nothing that waits, reads a clock or writes."""
    found = imports(MODULES[name])
    foreign = {module for module in found if module.split(".")[0] not in {*sys.stdlib_module_names, "ratelimiter"}}

    assert set() == foreign
    impure = IMPURE - AT_HAND.get(name, set())
    assert set() == {module for module in found if module in impure or module.split(".")[0] in impure}


def test_tokens_are_a_matter_of_an_extra() -> None:
    """Without identity by tokens PyJWT is not needed: nothing else imports the module that knows it beforehand."""
    program = (
        "import ratelimiter.cli.main, ratelimiter.config.loader, ratelimiter.asgi.middleware, sys; print(*sys.modules)"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True, cwd=PACKAGE.parent
    )

    assert "jwt" not in done.stdout.split()


def test_the_calendar_reads_no_clock() -> None:
    """It may know what a date is, not which date it is."""
    tree = ast.parse(MODULES["core.algorithms.calendar"].read_text())
    called = {node.attr for node in ast.walk(tree) if hasattr(node, "attr")}

    assert set() == called & {"now", "today", "utcnow", "fromtimestamp"}


def test_the_core_does_not_wait() -> None:
    """There is no coroutine in the core."""
    for name in CORE:
        nodes = ast.walk(ast.parse(MODULES[name].read_text()))
        assert not [node for node in nodes if isinstance(node, ast.AsyncFunctionDef | ast.Await)], name


@pytest.mark.parametrize("name", sorted(MODULES))
def test_each_foreign_package_is_known_by_its_module(name: str) -> None:
    """A third-party package is imported by the module that is there to know it, and by no other."""
    packages = {module.split(".")[0] for module in imports(MODULES[name])} - {"ratelimiter", *sys.stdlib_module_names}

    for package in packages:
        assert name in KNOWN_BY.get(package, set()), package


def test_the_middleware_does_not_know_redis() -> None:
    """It is handed a store, or has one opened."""
    assert set() == {name for name in within(imports(MODULES["asgi.middleware"])) if name.startswith("stores.redis")}


@pytest.mark.parametrize(
    "entry", ["ratelimiter", "ratelimiter.testing", "ratelimiter.engine.limiter", "ratelimiter.cli.main"]
)
def test_importing_pulls_in_no_server_and_no_client(entry: str) -> None:
    """An application that imports the package pays for neither uvicorn nor redis-py nor the proxy."""
    program = f"import {entry}, sys; print(*sorted(sys.modules))"
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True, cwd=PACKAGE.parent
    )
    loaded = set(done.stdout.split())
    servers = {"uvicorn", "redis", "uvloop", "httptools", "ratelimiter.proxy", "starlette.templating"}

    assert set() == loaded & servers


def test_the_table_is_up_to_date() -> None:
    """Every dependency of a plain install has its place in the table."""
    declared = (PACKAGE.parent / "pyproject.toml").read_text().split("dependencies = [", 1)[1].split("]", 1)[0]
    names = {line.strip().strip('",').split(">")[0].split(";")[0].strip() for line in declared.splitlines()} - {""}
    places = {"ruamel.yaml": "ruamel", "prometheus-client": "prometheus_client"}

    assert set() == {places.get(name, name) for name in names} - {*KNOWN_BY}


# Who makes whole seconds of milliseconds: `core.headers` for every answer; readers of what people and other programs
# write; and logs and stores, whose formats have seconds.
ROUNDING = {"core.headers", "clock", "config.identity"}
ROUNDING_ROOMS = {"parsing", "logs", "stores", "replay"}
# Who hands seconds to timers and to metrics, as they come and unrounded.
TIMERS = {"proxy", "identity", "engine", "metrics", "service", "stores", "logs", "replay", "parsing", "cli"}


@pytest.mark.parametrize("name", OURS)
def test_seconds_are_rounded_in_one_place(name: str) -> None:
    """No module but `core.headers` rounds milliseconds for an answer, so that no two answers differ by a second."""
    rounded, divided = [], []
    for node in ast.walk(ast.parse(MODULES[name].read_text())):
        if isinstance(node, ast.BinOp) and isinstance(node.right, ast.Constant) and node.right.value == 1000:
            if isinstance(node.op, ast.FloorDiv):
                rounded.append(ast.unparse(node))
            elif isinstance(node.op, ast.Div):
                divided.append(ast.unparse(node))
        if isinstance(node, ast.Call) and ast.unparse(node.func) == "divmod" and ast.unparse(node.args[1]) == "1000":
            rounded.append(ast.unparse(node))

    assert [] == rounded or name in ROUNDING or room(name) in ROUNDING_ROOMS
    assert [] == divided or name in ROUNDING or room(name) in TIMERS
