"""Shared by all tests: time that stands still, how hard hypothesis tries, and which tests are tried again."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

import pytest
from _pytest.runner import runtestprotocol
from hypothesis import HealthCheck, settings

from ratelimiter.testing import FakeClock
from tests.machine import Machine
from tests.speeds import module_of, starts_servers

if TYPE_CHECKING:
    from collections.abc import Sequence

# A busy machine must not fail a property for being slow. `--hypothesis-profile=thorough` before a release.
settings.register_profile("default", deadline=None, max_examples=60, suppress_health_check=[HealthCheck.too_slow])
settings.register_profile("thorough", parent=settings.get_profile("default"), max_examples=3000)
settings.register_profile("quick", parent=settings.get_profile("default"), max_examples=15)
# The run that decides over a change tries the same examples each time; all other runs try others.
settings.register_profile("ci", parent=settings.get_profile("default"), derandomize=True)
settings.load_profile("ci" if os.environ.get("CI") else "default")

ATTEMPTS = 3  # of a test that waits for a real server or for real time
ATTEMPTS_STARVED = 4  # if, each time, the machine had no processor to spare
REPEATED: list[str] = []


@pytest.fixture
def clock() -> FakeClock:
    return FakeClock()


def pytest_collection_modifyitems(items: Sequence[pytest.Item]) -> None:
    """Mark the tests whose modules start real servers."""
    for item in items:
        if starts_servers(module_of(item.path)):
            item.add_marker(pytest.mark.server)


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_protocol(item: pytest.Item, nextitem: pytest.Item | None) -> bool | None:
    """Try a failed test again if it waits for real servers or real time; the summary names each repeat."""
    if item.get_closest_marker("wall_clock") is None and item.get_closest_marker("server") is None:
        return None
    item.ihook.pytest_runtest_logstart(nodeid=item.nodeid, location=item.location)
    attempts = 0
    while True:
        machine = Machine()
        reports = runtestprotocol(item, nextitem=nextitem, log=False)
        attempts += 1
        most = ATTEMPTS_STARVED if machine.was_starved() else ATTEMPTS
        if attempts >= most or not any(report.failed for report in reports):
            break
        item.user_properties.append(("repeated", item.nodeid))
        item._initrequest()  # type: ignore[attr-defined]
    for report in reports:
        item.ihook.pytest_runtest_logreport(report=report)
    item.ihook.pytest_runtest_logfinish(nodeid=item.nodeid, location=item.location)
    return True


def pytest_runtest_logreport(report: pytest.TestReport) -> None:
    """Collect the repeats, which arrive with the reports from other processes, too."""
    if report.when == "call":
        REPEATED.extend(str(value) for name, value in report.user_properties if name == "repeated")


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Say which tests were tried again."""
    for name in REPEATED:
        terminalreporter.write_line(f"tried again, as a test that waits for real servers or time failed: {name}")
