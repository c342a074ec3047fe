"""Run the fault suite and write docs/reference/fault-matrix.md: `python -m tests.faults.matrix`."""

from __future__ import annotations

import re
import sys
from collections import defaultdict
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from tests.faults.records import OMISSIONS, RECORDS
from tests.faults.rows import FAULTS

if TYPE_CHECKING:
    from collections.abc import Sequence

    from tests.faults.records import Omission, Record

ROOT = Path(__file__).parents[2]
OUR_PAUSE = 52
READER = "test_document_has_every_row"
DOCUMENT = ROOT / "docs" / "reference" / "fault-matrix.md"

PREFACE = """\
# The fault matrix

Decisions while Redis, or the network to it, has a fault. `python -m tests.faults.matrix` provokes every fault and
writes this page; do not edit it by hand.

Each drill runs three limiters, one for each `on_store_error`, as production runs them: the middleware on a store
with fallback and a `decision_timeout` of {deadline_ms} ms. Callers send requests before, during and after the
fault, and check every answer. A fault whose end can be chosen ends just after a probe of the store has failed,
which is the worst moment for the callers. These hold in every row:

* Every decision comes within its deadline and {slack_ms} ms for a loaded test machine. `p100 ms` is the slowest
  decision, less the time that other processes had the processor. The slowest of this run took {slowest_ms} ms,
  except for F52, where a pause of our own process comes on top.
* The only 5xx is the 503 of a rule with `deny`, and it has `Retry-After`.
* Every decision names its source: the store (its refusals of the last second included), `local`, `fail_open` or
  `fail_closed`.
* Every principal is charged under its own key: no answer is made of another principal's tally, no request is
  counted twice, and no admitted request is left uncounted.
* Connections, tasks and log lines stay few, and no principal and no password is in the log.
* After the end of the fault the store decides again within {recovery_ms} ms, including the start of a server. The
  longest of this run took {back_ms} ms.

`admitted of 20` is what one principal that asks all the time got of a limit of 20 per minute: with `deny` never
more, with `local` never more than one local share in addition (here {share} of the limit for each process); with
`allow` there is no limit during the fault. A store that loses its data gives each principal at most one limit more
each time.
"""

HEADING = ("F", "fault", "how", "p100 ms", "decisions made by", "admitted of 20", "recovery ms")


def rows_of(test: str) -> list[int]:
    """The rows that a test called *test* drills: `test_f26_f27_cut_answers`."""
    named = re.match(r"test((?:_f\d\d)+)", test)
    return [int(row) for row in named[1].split("_f")[1:]] if named else []


def lines(records: Sequence[Record], omissions: Sequence[Omission]) -> list[str]:
    """The table, a line per drill, and then what was left out and why."""
    drills = defaultdict(list)
    for record in records:
        drills[record.row].append(record)
    rows = [
        (
            f"F{row}",
            FAULTS[row],
            record.how,
            f"{record.p100_ms:.0f}",
            record.outcome,
            record.admitted,
            "-" if record.recovery_ms is None else f"{record.recovery_ms:.0f}",
        )
        for row in sorted(drills)
        for record in drills[row]
    ]
    table = [f"| {' | '.join(cells)} |" for cells in (HEADING, ("---",) * len(HEADING), *rows)]
    left_out = [f"* F{omission.row}, {FAULTS[omission.row]}: {omission.reason}" for omission in sorted(omissions)]
    return [*table, "", *(["Left out:", "", *left_out] if left_out else ["Nothing was left out."])]


def document(records: Sequence[Record], omissions: Sequence[Omission]) -> str:
    """The page of the documentation."""
    from tests.faults.drill import DEADLINE_MS, LOCAL_SHARE, RECOVERY_MS, SLACK_MS

    preface = PREFACE.format(
        deadline_ms=DEADLINE_MS,
        slack_ms=SLACK_MS,
        share=f"{LOCAL_SHARE:.0%}",
        recovery_ms=RECOVERY_MS,
        slowest_ms=f"{max((record.p100_ms for record in records if record.row != OUR_PAUSE), default=0):.0f}",
        back_ms=f"{max(record.recovery_ms or 0 for record in records):.0f}",
    )
    return "\n".join([preface, *lines(records, omissions), ""])


def main() -> int:
    """Run the suite; write the document if all of it passed."""
    # All but the test that reads the page, which is yet to be written.
    status = pytest.main([str(Path(__file__).parent), "-q", "-p", "no:cacheprovider", "-k", f"not {READER}"])
    if status == pytest.ExitCode.OK:
        DOCUMENT.parent.mkdir(exist_ok=True)
        DOCUMENT.write_text(document(RECORDS, OMISSIONS), encoding="utf-8")
    return int(status)


if __name__ == "__main__":
    sys.exit(main())
