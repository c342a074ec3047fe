from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from ratelimiter.admin.operator_tokens import OPERATE, READ, OperatorToken, Tokens, read_tokens
from ratelimiter.errors import ConfigError

if TYPE_CHECKING:
    from pathlib import Path

ANN, BOB = "ann-0123456789abcdef", "bob-0123456789abcdef"


@pytest.fixture
def file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    path = tmp_path / "tokens"
    path.write_text(f"# who may\n\nann:{ANN}\n bob:{BOB} \n")
    return path


def test_names(file: Path) -> None:
    """A token is somebody's, and anything else nobody's."""
    tokens = Tokens(file)

    assert ["ann", "bob"] == [tokens.name(ANN), tokens.name(BOB)]
    assert [""] * 5 == [tokens.name(text) for text in ("", ANN[:-1], ANN + "x", ANN.upper(), "\udcff")]


def test_roles(file: Path) -> None:
    """Without a role an operator may change things; with `read/` in front only look."""
    file.write_text(f"read/ann:{ANN}\noperate/bob:{BOB}\n")
    tokens = Tokens(file)

    assert {"ann": OperatorToken(ANN, READ), "bob": OperatorToken(BOB, OPERATE)} == read_tokens(file)
    assert [False, True, False] == [tokens.may_change(name) for name in ("ann", "bob", "carol")]


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("", "tokens: holds no token; write a line NAME:TOKEN for each operator"),
        ("ann", "tokens:1: is not NAME:TOKEN; write a name"),
        ("ann:short-secret-xyz", ""),
        ("ann:short-secret-xy", "tokens:1: is not NAME:TOKEN"),
        (f"write/ann:{ANN}", "tokens:1: is not NAME:TOKEN"),
        (f"ann smith:{ANN}", "tokens:1: is not NAME:TOKEN"),
        (f"ann:{ANN}\nann:{BOB}", "tokens:2: ann has a token already"),
        (f"ann:{'x' * 70_000}", "tokens: is longer than 65536 bytes"),
    ],
)
def test_files_that_will_not_do(file: Path, text: str, problem: str) -> None:
    """They are refused with the line, and no token is repeated."""
    file.write_text(text)
    if not problem:
        assert {"ann": OperatorToken("short-secret-xyz", OPERATE)} == read_tokens(file.name)
        return
    with pytest.raises(ConfigError) as caught:
        read_tokens(file.name)

    assert str(caught.value).startswith(problem)
    assert "0123456789" not in str(caught.value)


def test_no_file(tmp_path: Path) -> None:
    """It is said why."""
    with pytest.raises(ConfigError, match=r"nowhere: cannot be read \(No such file"):
        Tokens(tmp_path / "nowhere")


def test_a_file_that_changes(file: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Who is taken out is nobody from then on; a file that will not do changes nothing, and is told of once."""
    tokens = Tokens(file)
    file.write_text(f"bob:{BOB}\n")
    tokens.refresh()
    assert ["", "bob"] == [tokens.name(ANN), tokens.name(BOB)]
    file.write_text("nonsense\n")
    for _ in range(3):
        tokens.refresh()
    assert "bob" == tokens.name(BOB)
    assert 1 == len(caplog.records)
