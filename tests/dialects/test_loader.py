from __future__ import annotations

from pathlib import Path

import jsonschema
import pytest

from ratelimiter.dialects import loader
from ratelimiter.errors import ConfigError

BAD = sorted((Path(__file__).parents[1] / "data" / "dialects").glob("*.yaml"))


def test_the_dialects_of_the_package() -> None:
    """Seven documented APIs and two standards."""
    assert [
        "anthropic",
        "intrace",
        "openai",
        "plain",
        "problem",
        "sentinel",
        "slowapi",
        "trace",
        "tracefinance",
        "tracefinance-v1",
    ] == loader.names()


@pytest.mark.parametrize("name", loader.names())
def test_packaged_dialects_load_once(name: str) -> None:
    """A name always means the same dialect, under that name, with a line about it."""
    dialect = loader.load(name)

    assert dialect is loader.load(name)
    assert name == dialect.name
    assert dialect.about


@pytest.mark.parametrize("name", loader.names())
def test_every_answer_can_be_told(name: str) -> None:
    """Each answer has what a table of them shows: status, code and a message or its cause."""
    for answer in loader.load(name).answers.values():
        assert 400 <= answer.status <= 599
        assert answer.code
        assert answer.message


@pytest.mark.parametrize("path", BAD, ids=lambda path: path.stem)
def test_a_bad_file_is_refused_with_its_place(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """One bad file for each rejection; its first line is the message."""
    monkeypatch.chdir(path.parent)
    expected = path.read_text(encoding="utf-8").splitlines()[0].removeprefix("# ")

    with pytest.raises(ConfigError) as refused:
        loader.load(path.name)

    assert (expected,) == refused.value.problems


def test_all_problems_are_told_at_once(tmp_path: Path) -> None:
    """Who mends a file mends it once."""
    path = tmp_path / "mine.yaml"
    path.write_text("about: x\nmedia_type: json\nbody: 3\nanswers: {}\ngeneral: {}\n", encoding="utf-8")

    with pytest.raises(ConfigError) as refused:
        loader.load(path)

    assert [f"{path}:{line}" for line in (1, 2, 3, 4, 5)] == sorted(
        problem.rsplit(":", problem.count(":") - 1)[0] for problem in refused.value.problems
    )


def test_unknown_name_says_what_would_do() -> None:
    """A slip in a name is told with the name that was meant, and else with all of them."""
    with pytest.raises(ConfigError, match="there is no dialect 'intrase'; did you mean intrace"):
        loader.load("intrase")
    with pytest.raises(
        ConfigError, match=r"write anthropic, intrace, openai, plain, problem, .*, or a path like \./my\.yaml"
    ):
        loader.load("xyz")


def test_a_name_is_never_a_path() -> None:
    """No name reaches outside of the package's folder, and no path is taken for a name."""
    with pytest.raises(ConfigError, match=r"\.\./dialects/intrace: cannot be read"):
        loader.load("../dialects/intrace")


def test_a_file_that_is_not_there_is_named(tmp_path: Path) -> None:
    """A missing file is a configuration error like any other."""
    with pytest.raises(ConfigError, match=r"mine\.yaml: cannot be read"):
        loader.load(tmp_path / "mine.yaml")


def test_the_schema_is_a_schema() -> None:
    """Editors can use it."""
    jsonschema.Draft202012Validator.check_schema(loader.schema())


@pytest.mark.parametrize("text", ["about: [", "a: 1\n b: 2\n", 'about: "x\n'])
def test_a_file_that_is_no_yaml_has_one_problem(text: str, tmp_path: Path) -> None:
    """Where reading stopped is what there is to mend; what the half of a document lacks is not told."""
    path = tmp_path / "mine.yaml"
    path.write_text(text, encoding="utf-8")

    with pytest.raises(ConfigError) as refused:
        loader.load(path)

    assert 1 == len(refused.value.problems)
    assert refused.value.problems[0].startswith(f"{path}:")
