from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ratelimiter.dialects import loader
from ratelimiter.errors import ConfigError
from ratelimiter.parsing.yaml import read_file
from tests.golden_replies import (
    DIRECTORY,
    FINDINGS,
    STATUSES,
    credit_exhausted,
    document,
    golden,
    malformed_request,
    over_capacity,
    over_limit,
    store_error,
)

PACKAGED = Path(loader.__file__).parent / "data"


@pytest.mark.parametrize("name", loader.names())
def test_every_reply_has_the_bytes_that_were_reviewed(name: str) -> None:
    """A change of any byte of any reply shows in review: `python -m tests.golden_replies`, then `git diff`."""
    assert golden(name).read_bytes() == document(loader.load(name))


@pytest.mark.parametrize("name", loader.names())
def test_a_file_of_ones_own_has_the_same_powers(name: str, tmp_path: Path) -> None:
    """A copy of a packaged dialect, loaded by its path, gives the same bytes throughout."""
    mine = loader.load(shutil.copy(PACKAGED / f"{name}.yaml", tmp_path))

    assert golden(name).read_bytes() == document(mine)


def test_no_golden_file_is_left_over() -> None:
    """Every file belongs to a dialect."""
    assert loader.names() == sorted(path.stem for path in DIRECTORY.glob("*.http"))


VALUES = ["{code}", "{findings}", "{details}", "{resource}", "{nope}", "{", "x", "404", 5, None, [], {"a": "{issue}"}]


@given(name=st.sampled_from(loader.names()), data=st.data())
def test_what_loads_never_fails_to_answer(
    name: str, data: st.DataObject, tmp_path_factory: pytest.TempPathFactory
) -> None:
    """A file with any one value changed is refused when it is loaded, or gives every reply that takes no facts."""
    document = read_file(PACKAGED / f"{name}.yaml").value
    place = document
    while True:
        step = data.draw(st.sampled_from(sorted(place) if isinstance(place, dict) else range(len(place))))
        if not place[step] or not isinstance(place[step], (dict, list)) or data.draw(st.booleans()):
            break
        place = place[step]
    place[step] = data.draw(st.sampled_from(VALUES))
    path = tmp_path_factory.mktemp("dialect") / f"{name}.yaml"
    path.write_text(json.dumps(document, indent=1), encoding="utf-8")  # which is YAML, too
    try:
        dialect = loader.load(path)
    except ConfigError:
        return
    for decision in (over_limit(), over_capacity(), credit_exhausted(), malformed_request(), store_error()):
        assert 400 <= dialect.refusal(decision).status <= 599
    for status in STATUSES:
        assert status == dialect.reply_for_status(status).status
    for findings in FINDINGS.values():
        dialect.validation_reply(findings)
