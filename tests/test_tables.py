"""The tables of the reference are what schema, parser and registry have."""

from __future__ import annotations

import json
import re
from importlib import resources
from pathlib import Path

import pytest

from scripts import tables
from tests.deploy.cli_words import commands

REFERENCE = Path(__file__).parent.parent / "docs" / "reference"


@pytest.mark.parametrize("page", tables.pages(), ids=lambda page: page.name)
def test_the_page_has_what_its_source_has(page: Path) -> None:
    """Each table is the one that the script writes; `python -m scripts.tables` renews them."""
    assert tables.renewed(page.read_text()) == page.read_text(), tables.RENEW


def test_every_table_has_its_place() -> None:
    """Each table that can be written stands on one page."""
    placed = [name for names in tables.pages().values() for name in names]

    assert sorted(tables.TABLES) == sorted(placed)


def test_an_old_table_is_noticed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """With --check a page that differs is named, and stays as it is; without it is written."""
    page = tmp_path / "page.md"
    old = "above\n<!-- table: commands -->\n| old |\n<!-- end -->\nbelow\n"
    page.write_text(old)
    monkeypatch.setattr(tables, "FOLDER", tmp_path)
    monkeypatch.setattr(tables, "ROOT", tmp_path)

    assert 1 == tables.main(["--check"])
    assert "page.md: a table differs" in capsys.readouterr().err
    assert old == page.read_text()
    assert 0 == tables.main([])
    assert "check-config" in page.read_text()
    assert page.read_text().startswith("above\n<!-- table")
    assert page.read_text().endswith("<!-- end -->\nbelow\n")
    assert 0 == tables.main(["--check"])


def test_every_field_of_the_policy_is_in_the_reference() -> None:
    """The table of the whole file has every top-level field; no section that has fields is left out."""
    schema = json.loads(resources.files("ratelimiter").joinpath("config/policy.schema.json").read_text())
    page = (REFERENCE / "policy.md").read_text()

    assert set(schema["properties"]) == set(re.findall(r"^\| `(\w+)` \|", page.partition("## `")[0], re.MULTILINE))
    assert {"proxy", "identity.jwt", "require", "rules", "rules.match"} <= set(
        re.findall(r"^## `(.*)`$", page, re.MULTILINE)
    )


def test_every_command_is_in_the_reference() -> None:
    """Each command has its section; one that has commands of its own has a section for each of these."""
    page = (REFERENCE / "cli.md").read_text()
    headings = re.findall(r"^## ratelimiter (\S+)", page, re.MULTILINE)

    assert commands() == list(dict.fromkeys(headings))
