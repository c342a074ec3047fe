"""`ratelimiter replay` as a command: its output, its exit status, its report."""

from __future__ import annotations

import json
import re
from html.parser import HTMLParser
from typing import TYPE_CHECKING

import pytest

from ratelimiter.cli.main import main
from ratelimiter.cli.replay import progress_line
from tests.replay.lines import T0_S, as_json, policy_file, write

if TYPE_CHECKING:
    from pathlib import Path

POLICY = "principal: client\nrules: [{name: minute, limit: 3/minute}, {name: hour, limit: 100/hour}]\n"
FIRST_FIELDS = {"requests", "refused", "unread", "rules"}
RULE_FIELDS = {"name", "requests", "refused", "callers", "callers_refused"}


@pytest.fixture
def log(tmp_path: Path) -> str:
    lines = [as_json(T0_S * 1000 + 100 * at, f"10.1.0.{at % 5 // 4}") for at in range(50)]
    return write(tmp_path / "access.log", [*lines, "not json"])


def run(capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, str, str]:
    try:
        status = main(["replay", *arguments])
    except SystemExit as exit_:
        status = int(exit_.code or 0)
    out, err = capsys.readouterr()
    return status, out, err


def test_json_has_its_fields(tmp_path: Path, log: str, capsys: pytest.CaptureFixture[str]) -> None:
    """One object of a versioned schema, with what was promised first."""
    status, out, _ = run(capsys, "--config", policy_file(tmp_path, POLICY), "--json", log)
    answer = json.loads(out)

    assert 0 == status
    assert "ratelimiter.replay/1" == answer["schema"]
    assert answer.keys() >= FIRST_FIELDS
    assert (50, 44, 1) == (answer["requests"], answer["refused"], answer["unread"])
    assert all(rule.keys() >= RULE_FIELDS for rule in answer["rules"])
    assert ("minute", 50, 44, 2, 2) == tuple(
        answer["rules"][0][each] for each in ("name", "requests", "refused", "callers", "callers_refused")
    )


def test_every_field_is_in_the_reference(tmp_path: Path, log: str, capsys: pytest.CaptureFixture[str]) -> None:
    """docs/reference/replay.md names every key that the JSON has."""
    from pathlib import Path as FilePath

    policy = policy_file(tmp_path, POLICY)
    _, out, _ = run(
        capsys, "--config", policy, "--json", "--against", policy, "--suggest", "--compare", "fixed", log
    )  # fmt: skip
    reference = (FilePath(__file__).parents[2] / "docs/reference/replay.md").read_text()
    named = set(re.findall(r"`([a-z_0-9.%-]+)`", reference))

    def keys(value: object) -> set[str]:
        if isinstance(value, list):
            return set().union(*map(keys, value))
        if isinstance(value, dict):
            return set(value).union(*map(keys, value.values()))
        return set()

    assert set() == keys(json.loads(out)) - named


@pytest.mark.parametrize(("share", "status"), [("0.1%", 1), ("88%", 0), ("87.9%", 1), ("100%", 0)])
def test_a_pipeline_can_fail(
    tmp_path: Path, log: str, share: str, status: int, capsys: pytest.CaptureFixture[str]
) -> None:
    """`--fail-above` exits 1 if a larger share is refused, and 0 at that share."""
    found, _, err = run(capsys, "--config", policy_file(tmp_path, POLICY), "--fail-above", share, log)

    assert status == found
    assert ("more than" in err) == bool(status)


@pytest.mark.parametrize(
    ("flags", "match"),
    [
        (["--fail-above", "1"], "--fail-above: '1' is not a share"),
        (["--timezone", "Mars/Crater"], "--timezone: 'Mars/Crater'"),
        (["--compare", "leaky"], "--compare: 'leaky'"),
        (["--reorder", "soon"], "--reorder"),
        (["--format", "nonsense"], "--format: 'nonsense'"),
        (["--principal", "who"], "--principal: 'who' is not in the log"),
        (["--report", "/nowhere/at/all.html"], "--report"),
    ],
)
def test_a_flag_that_cannot_be_is_refused(
    tmp_path: Path, log: str, flags: list[str], match: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """Exit 2, with the flag, the value and what would do."""
    status, _, err = run(capsys, "--config", policy_file(tmp_path, POLICY), *flags, log)

    assert 2 == status
    assert match in err


def test_the_text_says_what_matters(tmp_path: Path, log: str, capsys: pytest.CaptureFixture[str]) -> None:
    """The report for a terminal has the totals, each rule, the callers, and the limit that refuses no caller."""
    policy = policy_file(tmp_path, POLICY)
    _, out, _ = run(capsys, "--config", policy, "--against", policy, "--suggest", "--names", "--compare", "fixed", log)

    assert "50 requests of 2 callers" in out
    assert "44 refused (88.0 %), of 2 callers" in out
    assert "1 lines unread: not a JSON object" in out
    assert "smallest limit that refuses no caller: 40 per minute" in out
    assert "10.1.0.0" in out
    assert "limit: 50 per minute" in out
    assert "refused by both 44" in out


class _Outside(HTMLParser):
    """Collects everything that would make a browser fetch or run something."""

    def __init__(self) -> None:
        super().__init__()
        self.found: list[str] = []
        self.tags: set[str] = set()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.add(tag)
        self.found += [
            f"{tag} {name}" for name, _ in attrs if name in ("src", "href", "style") or name.startswith("on")
        ]


def test_the_report_is_one_file_and_all_text_is_escaped(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """No script, no outside resource; names and log lines of a hostile client are text."""
    hostile = "<script>alert(1)</script>&\"'"
    lines = [as_json(T0_S * 1000 + at, "10.1.0.1", user=hostile) for at in range(9)] + [f"<img src=x {hostile}"]
    log = write(tmp_path / "a<b>.log", lines)
    report = tmp_path / "report.html"

    run(
        capsys,
        "--config",
        policy_file(tmp_path, POLICY),
        "--principal",
        "user",
        "--names",
        "--report",
        str(report),
        log,
    )
    text = report.read_text()
    outside = _Outside()
    outside.feed(text)

    assert [] == outside.found
    assert {"svg", "table", "main"} <= outside.tags
    assert not outside.tags & {"script", "img", "link", "iframe"}
    assert "&lt;script&gt;alert(1)" in text
    assert "default-src &#x27;none&#x27;" in text


def test_progress_is_told() -> None:
    """Share, rate and time left; without a size, the rate."""
    assert "[############............]  50%  1,000 requests, 100/s, 10 s left" == progress_line(1000, 50, 100, 10.0)
    assert "1,000 requests, 100/s" == progress_line(1000, 50, 0, 10.0)
