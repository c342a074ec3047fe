"""A release holds the package and nothing else, and its version is the changelog's."""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING

import hatchling.build
import pytest

import ratelimiter
from scripts.release_contents import LIST, differences, expected, held, main, matcher, tracked

if TYPE_CHECKING:
    from collections.abc import Mapping

ROOT = Path(__file__).parent.parent
VERSION = ratelimiter.__version__
SECTIONS = ["Added", "Changed", "Fixed", "Security", "Removed"]


@pytest.fixture(scope="module")
def archives(tmp_path_factory: pytest.TempPathFactory) -> Mapping[str, Path]:
    """Return wheel and sdist, built as `scripts/release` builds them."""
    folder = tmp_path_factory.mktemp("dist")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(ROOT)
        wheel = hatchling.build.build_wheel(str(folder))
        sdist = hatchling.build.build_sdist(str(folder))
    return {"wheel": folder / wheel, "sdist": folder / sdist}


def test_the_contents_are_those_of_the_list(archives: Mapping[str, Path], capsys: pytest.CaptureFixture[str]) -> None:
    """Every file of the package is in both archives, no other file is, and every line of the list is met."""
    assert 0 == main(archives["wheel"].parent)
    assert "" == capsys.readouterr().out


def test_the_licence_and_the_types_are_in_the_wheel(archives: Mapping[str, Path]) -> None:
    """The text of the licence travels along, and type checkers may use the annotations."""
    names = held(archives["wheel"])

    assert f"ratelimiter_service-{VERSION}.dist-info/licenses/LICENSE" in names
    assert "ratelimiter/py.typed" in names


@pytest.mark.parametrize("kind", ["wheel", "sdist"])
def test_what_is_not_on_the_list_is_refused(kind: str, archives: Mapping[str, Path]) -> None:
    """A stray file, a missing one, and a line that no file meets are told apart."""
    names = held(archives[kind])
    patterns = expected(VERSION)[kind]

    stray = differences({*names, "ratelimiter/.env"}, patterns, tracked())
    missing = differences(names - {"ratelimiter/stores/memory.py"}, patterns, tracked())
    unmet = differences(names, [*patterns, "ratelimiter/*.exe"], tracked())

    assert ["ratelimiter/.env: is not on the list; add a pattern or leave it out"] == stray
    assert ["ratelimiter/stores/memory.py: is missing, though it is a file of the package"] == missing
    assert ["ratelimiter/*.exe: no file is so named"] == unmet


def test_a_folder_without_archives_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Nothing was built: that is a difference, too."""
    assert 1 == main(tmp_path)
    assert "holds 0 archives of the kind wheel" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("pattern", "path", "fits"),
    [
        ("a/**/*.py", "a/b.py", True),
        ("a/**/*.py", "a/b/c/d.py", True),
        ("a/**/*.py", "a/b.pyc", False),
        ("a/*.py", "a/b/c.py", False),
        ("a.py", "abpy", False),
    ],
)
def test_patterns(pattern: str, path: str, *, fits: bool) -> None:
    """A star stays within a name, two stars are any folders, and a dot is a dot."""
    assert fits == bool(matcher(pattern).fullmatch(path))


def test_the_list_has_both_kinds() -> None:
    """The list is read as it is meant."""
    assert {"wheel", "sdist"} == set(expected(VERSION))
    assert "VERSION" in LIST.read_text()


def test_the_changelog_has_a_section_for_the_version() -> None:
    """The newest released section is the version of the package, with its date."""
    headings = re.findall(r"^## (.*)$", (ROOT / "CHANGELOG.md").read_text(), re.MULTILINE)

    assert "Unreleased" == headings[0]
    assert re.fullmatch(re.escape(VERSION) + r" - \d{4}-\d{2}-\d{2}", headings[1])


def test_the_changelog_has_fixed_sections() -> None:
    """Each version has sections of the five names alone, each once, in one order."""
    versions = re.split(r"^## ", (ROOT / "CHANGELOG.md").read_text(), flags=re.MULTILINE)[1:]

    for version in versions:
        found = re.findall(r"^### (.*)$", version, re.MULTILINE)
        assert [name for name in SECTIONS if name in found] == found, version.splitlines()[0]
    assert SECTIONS == re.findall(r"^### (.*)$", versions[0], re.MULTILINE)
