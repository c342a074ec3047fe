"""What every row of the fault matrix is held to, and the table at the end of the run."""

from __future__ import annotations

import logging
import re
from typing import TYPE_CHECKING

import pytest
from _pytest.runner import runtestprotocol

from tests.faults.matrix import lines, rows_of
from tests.faults.records import OMISSIONS, RECORDS, REPEATED, Omission
from tests.faults.server import PASSWORD, Server
from tests.machine import Machine

if TYPE_CHECKING:
    from collections.abc import Generator, Iterator

ATTEMPTS_MAX = 4  # of one drill


@pytest.fixture
def server() -> Iterator[Server]:
    """A server to hurt."""
    with Server() as server:
        yield server


@pytest.fixture(scope="session")
def unhurt() -> Iterator[Server]:
    """A server that stays well: what is wrong lies between."""
    with Server() as server:
        yield server


@pytest.fixture(autouse=True)
def _nothing_leaks(caplog: pytest.LogCaptureFixture) -> Iterator[None]:
    """No log line holds a principal or a password, and a fault costs lines by the change, not by the request."""
    caplog.set_level(logging.DEBUG)
    yield
    written = [record for record in caplog.get_records("call") if record.name.startswith("ratelimiter")]
    text = "\n".join(f"{record.getMessage()} {record.exc_text or ''}" for record in caplog.get_records("call"))
    assert PASSWORD not in text
    assert not re.search("key-[0-9a-f]{16}", text)
    assert len(written) <= 40, [record.getMessage() for record in written]


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_protocol(item: pytest.Item, nextitem: pytest.Item | None) -> bool:
    """Try a drill again that failed on a machine without a processor to spare: then it says nothing about us, as the
    server's answers are late, too. On any other machine the first failure is one.
    """
    item.ihook.pytest_runtest_logstart(nodeid=item.nodeid, location=item.location)
    for attempt in range(1, ATTEMPTS_MAX + 1):
        kept, machine = len(RECORDS), Machine()
        reports = runtestprotocol(item, nextitem=nextitem, log=False)
        if attempt == ATTEMPTS_MAX or not any(report.failed for report in reports) or not machine.was_starved():
            break
        del RECORDS[kept:]
        REPEATED.append(item.name)
        item._initrequest()  # type: ignore[attr-defined]
    for report in reports:
        item.ihook.pytest_runtest_logreport(report=report)
    item.ihook.pytest_runtest_logfinish(nodeid=item.nodeid, location=item.location)
    return True


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """Keep why a row was left out."""
    report = yield
    if report.skipped and isinstance(report.longrepr, tuple):
        reason = report.longrepr[2].removeprefix("Skipped: ")
        left_out = [Omission(row, reason) for row in rows_of(item.name)]
        OMISSIONS.extend(omission for omission in left_out if omission not in OMISSIONS)
    return report


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Print the matrix."""
    if RECORDS:
        terminalreporter.section("fault matrix")
        for line in lines(RECORDS, OMISSIONS):
            terminalreporter.write_line(line)
    if REPEATED:
        terminalreporter.write_line(f"repeated, as the machine had no processor to spare: {', '.join(REPEATED)}")
