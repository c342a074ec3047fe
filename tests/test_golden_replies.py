from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from ratelimiter import dialect_files
from tests.golden_replies import DIRECTORY, as_http, replies

PACKAGED = Path(dialect_files.__file__).parent / "dialects"


@pytest.mark.parametrize("name", dialect_files.names())
def test_every_reply_has_the_bytes_that_were_reviewed(name: str) -> None:
    """A change of any byte of any reply shows in review: `python -m tests.golden_replies`, then `git diff`."""
    golden = {path.stem: path.read_bytes() for path in (DIRECTORY / name).glob("*.http")}

    assert golden == {stem: as_http(reply) for stem, reply in replies(dialect_files.load(name))}


@pytest.mark.parametrize("name", dialect_files.names())
def test_a_file_of_ones_own_has_the_same_powers(name: str, tmp_path: Path) -> None:
    """A copy of a packaged dialect, loaded by its path, gives the same bytes throughout."""
    mine = dialect_files.load(shutil.copy(PACKAGED / f"{name}.yaml", tmp_path))

    for stem, reply in replies(mine):
        assert (DIRECTORY / name / f"{stem}.http").read_bytes() == as_http(reply)


def test_no_golden_file_is_left_over() -> None:
    """Every folder belongs to a dialect."""
    assert dialect_files.names() == sorted(path.name for path in DIRECTORY.iterdir() if path.is_dir())
