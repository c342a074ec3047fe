"""Architecture is a table that fails: who may import whom, and which module is the only one to know a package."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from collections.abc import Iterator

PACKAGE = Path(__file__).parent.parent / "ratelimiter"

# Each third-party package, and the modules that may know it.
KNOWN_BY = {
    "fastapi": {"handlers"},
    "hiredis": {"stores.connection"},
    "jsonschema": {"schema"},
    "jwt": {"identity.tokens"},
    "limits": {"notation", "stores.bridge"},
    "prometheus_client": {"instruments"},
    "ruamel": {"documents"},
    "starlette": {"admin", "demo", "handlers", "operator_api"},
    "tzdata": set(),  # what zoneinfo reads where the system has no time zones
    "uvicorn": {"admin", "demo"},
    "uvloop": {"proxy.server"},
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

AT_HAND = {"core.calendar": {"datetime"}}  # dates and zones, by which it counts; the test below keeps it from clocks

# Edges know the engine, never each other; and the engine knows no edge.
EDGES = {
    "access_log",
    "admin",
    "cli",
    "demo",
    "gate",
    "handlers",
    "metrics",
    "middleware",
    "operator_api",
    "proxy",
    "proxy_metrics",
    "sidecar",
}
MAY_ALSO = {
    "cli": {"demo", "sidecar"},
    "gate": {"proxy"},
    "sidecar": {"access_log", "admin", "gate", "metrics", "operator_api", "proxy", "proxy_metrics"},
    "demo": {"handlers", "middleware"},
}  # a command starts what it names; the example shows all


def modules() -> Iterator[tuple[str, Path]]:
    """Every module of the package by its name below `ratelimiter`."""
    for path in sorted(PACKAGE.rglob("*.py")):
        parts = path.relative_to(PACKAGE).with_suffix("").parts
        yield ".".join(part for part in parts if part != "__init__"), path


def imports(path: Path, *, at_run_time: bool = False) -> set[str]:
    """The full names that a module imports; with *at_run_time* without those only a type checker sees."""
    found: set[str] = set()

    def visit(node: ast.AST) -> None:
        if at_run_time and isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test):
            return
        if isinstance(node, ast.Import):
            found.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path.name} imports relatively"
            found.add(str(node.module))
            found.update(f"{node.module}.{alias.name}" for alias in node.names if node.module == "ratelimiter")
        for child in ast.iter_child_nodes(node):
            visit(child)

    visit(ast.parse(path.read_text()))
    return found


def within(found: set[str]) -> set[str]:
    """Of imported names those of this package, without its name."""
    return {name.partition(".")[2] for name in found if name.startswith("ratelimiter.")}


MODULES = dict(modules())
CORE = sorted(name for name in MODULES if name.split(".")[0] == "core")


@pytest.mark.parametrize("name", CORE)
def test_the_core_is_pure(name: str) -> None:
    """The core imports itself and the standard library, and of that nothing that waits, reads a clock or writes."""
    found = imports(MODULES[name])
    foreign = {module for module in found if module.split(".")[0] not in {*sys.stdlib_module_names, "ratelimiter"}}

    assert set() == foreign
    impure = IMPURE - AT_HAND.get(name, set())
    assert set() == {module for module in found if module in impure or module.split(".")[0] in impure}
    assert set() == {module for module in within(found) if module.split(".")[0] != "core"}


def test_tokens_are_a_matter_of_an_extra() -> None:
    """Who verifies no tokens needs no PyJWT: nothing else imports the module that does before it is asked to."""
    program = (
        "import ratelimiter.cli.main, ratelimiter.config.loader, ratelimiter.asgi.middleware, sys; print(*sys.modules)"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True, cwd=PACKAGE.parent
    )

    assert "jwt" not in done.stdout.split()


def test_the_calendar_reads_no_clock() -> None:
    """It may know what a date is, not which one it is."""
    called = {node.attr for node in ast.walk(ast.parse(MODULES["core.calendar"].read_text())) if hasattr(node, "attr")}

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
        assert name in KNOWN_BY.get(package, {"stores.redis"} if package == "redis" else set()), package


@pytest.mark.parametrize("name", sorted(name for name in MODULES if name.split(".")[0] in EDGES))
def test_edges_do_not_import_each_other(name: str) -> None:
    """An edge can be taken away without any other one noticing."""
    edge = name.partition(".")[0]
    others = {module.split(".")[0] for module in within(imports(MODULES[name]))} & EDGES - {edge}

    assert others <= MAY_ALSO.get(edge, set())


@pytest.mark.parametrize("name", ["limiter", *sorted(name for name in MODULES if name.split(".")[0] == "stores")])
def test_the_engine_knows_no_edge(name: str) -> None:
    """Neither the limiter nor a store knows what stands around it."""
    assert set() == {module for module in within(imports(MODULES[name])) if module.split(".")[0] in EDGES}


def test_the_middleware_does_not_know_redis() -> None:
    """It is handed a store, or has one opened."""
    assert set() == {name for name in within(imports(MODULES["middleware"])) if name.startswith("stores.redis")}


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

    assert set() == loaded & {"uvicorn", "redis", "uvloop", "httptools", "ratelimiter.proxy"}


def test_the_table_is_up_to_date() -> None:
    """Every dependency of a plain install has its place in the table."""
    declared = (PACKAGE.parent / "pyproject.toml").read_text().split("dependencies = [", 1)[1].split("]", 1)[0]
    names = {line.strip().strip('",').split(">")[0].split(";")[0].strip() for line in declared.splitlines()} - {""}
    places = {"ruamel.yaml": "ruamel", "prometheus-client": "prometheus_client"}

    assert set() == {places.get(name, name) for name in names} - {*KNOWN_BY, "redis"}
