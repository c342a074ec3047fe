from __future__ import annotations

import time
from typing import TYPE_CHECKING

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from ratelimiter.errors import ConfigError
from ratelimiter.parsing.document import PROBLEMS_MAX, Document
from ratelimiter.parsing.yaml import BYTES_MAX, NODES_MAX, examine, read_file, read_text

if TYPE_CHECKING:
    from pathlib import Path


def problems(text: str | bytes) -> list[str]:
    document = examine(text.encode() if isinstance(text, str) else text, "f")
    with pytest.raises(ConfigError) as caught:
        read_text(text, "f") if isinstance(text, str) else _reread(document)
    return list(caught.value.problems)


def _reread(document: Document) -> None:
    raise ConfigError(*map(document.tell, document.problems))


# What is read


def test_plain_values_are_those_of_yaml_1_2() -> None:
    """Booleans are true and false, numbers are decimal, and everything else is text."""
    text = "{a: true, b: false, c: null, d: ~, e: 10, f: -0.5, g: yes, h: off, i: 1:30, j: 2026-01-31, k: '010', l: 0}"

    assert {
        "a": True,
        "b": False,
        "c": None,
        "d": None,
        "e": 10,
        "f": -0.5,
        "g": "yes",
        "h": "off",
        "i": "1:30",
        "j": "2026-01-31",
        "k": "010",
        "l": 0,
    } == read_text(text, "f").value


def test_every_place_is_known() -> None:
    """Values and keys are found by line and column, from 1; what is absent is where its surroundings are."""
    document = read_text("a:\n  - b: 1\n    c: x\n  - 2.5\nd:\n", "f.yaml")

    assert "f.yaml:3:8" == document.place(("a", 0, "c"))
    assert "f.yaml:3:5" == document.place_of_key(("a", 0, "c"))
    assert "f.yaml:2:5" == document.place(("a", 0, "missing"))
    assert "f.yaml:4:5" == document.place_of_key(("a", 1))
    assert "f.yaml:1:1" == document.place(())
    assert "f.yaml:5:1" == document.place(("d",))


def test_columns_count_characters() -> None:
    """A column is what an editor shows, not a number of bytes."""
    assert ["f:1:9: a tab; write spaces, or \\t inside double quotes"] == problems("name: é\u20ac\t")


def test_a_file_is_read_like_text(tmp_path: Path) -> None:
    """Of a file the problems carry the path as it was given."""
    path = tmp_path / "a.yaml"
    path.write_text("a: 1\n", encoding="utf-8")

    assert {"a": 1} == read_file(path).value
    assert f"{path}:1:4" == read_file(path).place(("a",))


def test_windows_line_ends_are_read() -> None:
    """An editor's CRLF is no problem, and lines are counted once."""
    document = read_text("a: 1\r\nb: 2\r\n", "f")

    assert {"a": 1, "b": 2} == document.value
    assert "f:2:4" == document.place(("b",))


# What is not a file of ours


@pytest.mark.parametrize(
    ("data", "expected"),
    [
        (b"\xef\xbb\xbfa: 1", "f:1:1: the file begins with a byte order mark; save it as UTF-8 without one"),
        ("a: 1".encode("utf-16"), "f:1:1: the file is UTF-16 or UTF-32; save it as UTF-8"),
        ("a: 1".encode("utf-16-le"), "f:1:1: the file is UTF-16 or UTF-32; save it as UTF-8"),
        ("a: 1".encode("utf-32"), "f:1:1: the file is UTF-16 or UTF-32; save it as UTF-8"),
        (b"a: 1\nb: \xff", "f:2:4: byte 0xff is not UTF-8; save the file as UTF-8"),
        (
            b"a: 1\nb: x\0y",
            "f:2:5: the character U+0000; leave it out, or write it as an escape inside double quotes",
        ),
        (b"", "f:1:1: the file is empty; write a mapping of settings"),
        (b"a: 1\n%YAML 1.1\n---\n", "f:3:1: a second document begins; write one document per file"),
        (b"%YAML 1.1\n---\na: 1", "f:1:1: a directive (%YAML or %TAG); leave it out, files are YAML 1.2"),
        (b"#" * (BYTES_MAX + 1), f"f:1:1: the file is larger than {BYTES_MAX} bytes; write a smaller one"),
    ],
    ids=["bom", "utf-16", "utf-16-le", "utf-32", "latin", "nul", "empty", "two", "directive", "large"],
)
def test_foreign_bytes_are_refused(data: bytes, expected: str) -> None:
    """What is not one UTF-8 document is refused, and says so."""
    document = examine(data, "f")

    assert [expected] == [document.tell(problem) for problem in document.problems]
    assert not document.readable or document.problems


@pytest.mark.parametrize("name", ["", "nowhere.yaml", "bad\0name"])
def test_what_cannot_be_opened_is_a_problem(tmp_path: Path, name: str) -> None:
    """A directory, a missing file and an impossible name are problems like all others, on one line."""
    with pytest.raises(ConfigError, match="cannot be read") as caught:
        read_file(f"{tmp_path}/{name}")

    assert 1 == len(str(caught.value).splitlines())


# Bombs: refused quickly, whatever they would have become


@pytest.mark.slow
@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("[" * 1000 + "]" * 1000, "nested more than 20 deep"),
        ("{a: " * 1000, "nested more than 20 deep"),
        ("- " * 1000, "nested more than 20 deep"),
        ("".join(" " * depth + "a:\n" for depth in range(1000)), "nested more than 20 deep"),
        ("[" * 1_000_000, "nested more than 20 deep"),
        ("- 1\n" * 30_000, f"more than {NODES_MAX} keys and values"),
        (
            "a0: &a0 [x, x, x, x, x, x, x, x, x]\n"
            + "".join(f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 9)}]\n" for n in range(1, 8)),
            "the anchor &a0",
        ),
        (
            "a0: &a0 {x: 1}\n"
            + "".join(f"a{n}: &a{n}\n  <<: [{', '.join([f'*a{n - 1}'] * 9)}]\n" for n in range(1, 10)),
            "the anchor &a0",
        ),
        ("&a [*a]", "the anchor &a"),
    ],
    ids=["lists", "mappings", "dashes", "blocks", "megabyte", "nodes", "aliases", "merges", "recursion"],
)
def test_bombs_are_refused_before_they_go_off(text: str, expected: str) -> None:
    """Depth, number and repetition are decided on events, so refusing costs no more than reading the file once."""
    began = time.process_time()
    told = problems(text)

    assert time.process_time() - began < 10  # generous: they take well below a second, and going off takes minutes
    assert any(expected in line for line in told)


def test_twenty_deep_is_read() -> None:
    """The greatest depth is allowed."""
    assert isinstance(read_text("[" * 20 + "]" * 20, "f").value, list)


# All at once


def test_all_problems_are_told_at_once() -> None:
    """Whoever made several mistakes is told of all of them, by place."""
    text = "a: &x 1\nb: *x\n<<: {}\n? [1, {2: 3}]\n: 010\nTrue: 1\na: !!int 3\n*x : [5, 0x5]\n"

    assert [
        "f:1:4: the anchor &x; leave it out, aliases are not read",
        "f:2:4: the alias *x; write its value out",
        "f:3:1: a merge key (<<); write the settings out",
        "f:4:3: a key is a list or a mapping; write text",
        "f:4:8: the key '2' is not text; write it in quotes if it is meant",
        "f:5:3: 010 is read as different numbers by different readers; write a plain number like 1000",
        "f:6:1: the key 'True' is not text; write it in quotes if it is meant",
        "f:7:1: the key 'a' is also on line 1; write it once",
        "f:7:4: the tag !!int; leave it out, a value's type is how it is written",
        "f:8:1: the alias *x; write its value out",
        "f:8:10: 0x5 is read as different numbers by different readers; write a plain number like 1000",
    ] == problems(text)


def test_very_many_problems_are_counted() -> None:
    """Of very many problems the first are told, and how many there are."""
    told = problems("- 010\n" * 1000)

    assert PROBLEMS_MAX + 1 == len(told)
    assert "f: and 900 more problems; mend these first" == told[-1]


@pytest.mark.parametrize(
    "number",
    [
        *("010", "1_000", "0x10", "0o7", "0b1", "1e3", "1E3", "1.0e+3", ".5", "5.", "+5", ".inf", "-.inf", "+.INF"),
        *(".nan", ".NaN", "00", "-01", "1__0", "0_1"),
    ],
)
def test_numbers_that_readers_disagree_about_are_refused(number: str) -> None:
    """A number is read only if every YAML reader reads the same."""
    expected = f"f:1:4: {number} is read as different numbers by different readers; write a plain number like 1000"

    assert [expected] == problems(f"a: {number}")
    assert {"a": number} == read_text(f"a: '{number}'", "f").value


@pytest.mark.parametrize("escape", [r"\uD800", r"\UFFFFFFFF"])
def test_impossible_characters_are_refused(escape: str) -> None:
    """An escape that is no character is a problem of the file, wherever it stands."""
    assert problems(f'a: "{escape}"')
    assert problems(f'"{escape}": a')


# Whatever it is


OFTEN = [*"ab01-?:,[]{}#&*!|>'\"%@`~ \n\r\\.<=x_e+", "\t", "é", "\x85", "\u2028", "\ud800", "\ufeff"]


@given(st.text() | st.text(st.sampled_from(OFTEN), max_size=60))
@example("? ?\n: :\n")
@example("- - - &a *a : b")
@example('"\\')
@example("!<")
@example("--- --- |")
def test_no_text_raises_anything_else(text: str) -> None:
    """Any text is read or refused, with problems of one line each."""
    try:
        told: tuple[str, ...] | None = None
        read_text(text, "f")
    except ConfigError as fault:
        told = fault.problems

    assert told is None or told
    assert all(line.startswith("f:") and line.isprintable() for line in told or ())


@given(st.binary(max_size=80))
def test_no_bytes_raise_anything_else(data: bytes) -> None:
    """Any bytes become a document or problems."""
    document = examine(data, "f")

    assert document.readable or document.problems
