"""Every block of code in the README and in docs/ is true, and what the pages refer to is there."""

from __future__ import annotations

import json
import re
import shlex
import subprocess
import sys
from functools import cache
from importlib import resources
from pathlib import Path

import jsonschema
import pytest
from ruamel.yaml import YAML

from ratelimiter.cli.main import _parser, main
from ratelimiter.config.loader import load
from ratelimiter.dialects import loader as dialects
from ratelimiter.stores.memory import MemoryStore
from ratelimiter.testing import FakeClock
from scripts.tables import leaves
from tests.deploy.cli_words import commands, flags_of

ROOT = Path(__file__).parent.parent
PAGES = [*sorted(ROOT.glob("*.md")), *sorted((ROOT / "docs").rglob("*.md"))]
# A path of ours, wherever it is written: in a link, in code, on a command line.
PATH = re.compile(r"(?<![\w./:-])(?:config|deploy|docs|tests|ratelimiter|\.ci)/[\w./-]*\w")
MODULE = re.compile(r"python3? -m ((?:tests|docs|deploy|ratelimiter)[\w.]*)")
# What stands for a value on a line that shows what there is, and a value that the parser takes.
PLACEHOLDERS = {"N": "1", "SECONDS": "1"}
REPLACED = re.compile(r"\.\.\.|\\\|\w+")

# Every kind of block has a test below: a block of a new kind would be a promise that no test keeps.
KINDS = {"sh", "python", "console", "yaml", "yaml policy", "yaml dialect", "text"}
KINDS_OF_README = {"http"}  # compared byte for byte in test_readme.py

pages = pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))


@cache
def text_of(page: Path) -> str:
    return page.read_text()


@cache
def prose_of(page: Path) -> str:
    """The page without its blocks of code."""
    return re.sub(r"^ *```.*?^ *```$", "", text_of(page), flags=re.MULTILINE | re.DOTALL)


def blocks(page: Path, kind: str) -> list[str]:
    """The blocks of code of a page that say they are *kind*."""
    found: list[str] = re.findall(rf"^ *```{kind}\n(.*?)^ *```$", text_of(page), re.MULTILINE | re.DOTALL)
    return found


FENCE = re.compile(r"^( *)```([^\n`]*)\n(.*?)^\1```$", re.MULTILINE | re.DOTALL)


def listed(kind: str) -> list[object]:
    """Return every block of *kind*, named by its page and its line."""
    found: list[object] = []
    for page in PAGES:
        text = text_of(page)
        for match in FENCE.finditer(text):
            if match[2] == kind:
                lines = [line.removeprefix(match[1]) for line in match[3].splitlines(keepends=True)]
                line = text[: match.start()].count("\n") + 1
                found.append(pytest.param("".join(lines), id=f"{page.relative_to(ROOT)}-{line}"))
    return found


@pages
def test_every_block_is_of_a_known_kind(page: Path) -> None:
    """A block of another kind would not be tested."""
    known = KINDS | (KINDS_OF_README if page.name == "README.md" and page.parent == ROOT else set())

    assert set() == {match[2] for match in FENCE.finditer(text_of(page))} - known


@pytest.mark.slow
@pytest.mark.parametrize("text", listed("python"))
def test_python_runs(text: str) -> None:
    """Runs as it stands, from the root of the repository."""
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", text], cwd=ROOT, capture_output=True, text=True, check=False
    )

    assert (0, "") == (done.returncode, done.stderr)


@pytest.mark.parametrize("text", listed("yaml policy"))
def test_policies_are_good(text: str, tmp_path: Path) -> None:
    """Is a policy, and check-config has nothing against it."""
    file = tmp_path / "policy.yaml"
    file.write_text(text)

    assert load(file).rules
    assert 0 == main(["check-config", str(file)])


@pytest.mark.parametrize("text", listed("yaml dialect"))
def test_dialects_are_good(text: str, tmp_path: Path) -> None:
    """Is a dialect, and can say what it promises."""
    file = tmp_path / "dialect.yaml"
    file.write_text(text)
    dialect = dialects.load(file)

    assert dialect.answers
    assert all(dialect.reply_for_status(answer.status).status == answer.status for answer in dialect.answers.values())


@pytest.mark.parametrize("text", listed("yaml"))
def test_parts_of_files_fit_the_schema(text: str) -> None:
    """A part of a policy is one with a rule beside it; any other block is a key file."""
    part = YAML(typ="safe").load(text)
    kind = "keys" if set(part) == {"keys"} else "policy"
    schema = "identity/keys.schema.json" if kind == "keys" else "config/policy.schema.json"
    whole = part if kind == "keys" else {"rules": [{"limit": "60/minute"}], **part}

    jsonschema.validate(whole, json.loads(resources.files("ratelimiter").joinpath(schema).read_text()))


def test_keys_max_is_as_stated() -> None:
    """The bound of the embedded store that the page states is the one in force."""
    assert "100,000 keys" in text_of(ROOT / "docs" / "explanation" / "stores.md")
    assert 100_000 == MemoryStore(clock=FakeClock()).keys_max


def anchors(page: Path) -> set[str]:
    """What GitHub makes of the headings of a page."""
    headings = re.findall(r"^#+ (.*)$", prose_of(page), re.MULTILINE)
    plain = [re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings]
    return set(plain)


@pages
def test_links_lead_somewhere(page: Path) -> None:
    """Every link within the repository leads to a file that is there, and to a heading that it has."""
    broken = []
    for target in re.findall(r"\]\(([^)\s]+)\)", prose_of(page)):
        if re.match("[a-z]+:", target):
            continue
        name, _, anchor = target.partition("#")
        file = (page.parent / name).resolve() if name else page
        if not file.exists() or not file.is_relative_to(ROOT) or (anchor and anchor not in anchors(file)):
            broken.append(target)

    assert [] == broken


def test_the_index_names_every_page() -> None:
    """Every page in docs/ is linked from docs/index.md; the records of decisions have an index of their own."""
    index = ROOT / "docs" / "index.md"
    targets = re.findall(r"\]\(([^)\s#]+)", prose_of(index))
    assert sorted(set(targets)) == sorted(targets), "a page stands there twice"
    linked = {(index.parent / target).resolve() for target in targets}
    pages_of_docs = {page for page in PAGES if (ROOT / "docs") in page.parents and page.parent.name != "decisions"}

    assert set() == {str(page.relative_to(ROOT)) for page in pages_of_docs - linked - {index}}


def test_docs_hold_pages_and_their_pictures() -> None:
    """Nothing else lies in docs/ but descriptions of interfaces, and every picture is shown by a page."""
    files = {path for path in (ROOT / "docs").rglob("*") if path.is_file() and "__pycache__" not in path.parts}
    pictures = {path for path in files if path.parent.name == "pictures"}
    shown = {
        (page.parent / target).resolve()
        for page in PAGES
        for target in re.findall(r"!\[[^\]]*\]\(([^)]+)\)", text_of(page))
    }

    assert set() == {str(path.relative_to(ROOT)) for path in files - pictures if path.suffix not in {".md", ".yaml"}}
    assert set() == {str(path.relative_to(ROOT)) for path in pictures - shown}


@pages
def test_paths_are_there(page: Path) -> None:
    """Every file and every module of ours that is named exists."""
    named = {path for path in PATH.findall(text_of(page)) if not path.startswith("ratelimiter/ratelimiter")}
    modules = {module.replace(".", "/") for module in MODULE.findall(text_of(page))}
    missing = {path for path in named if not (ROOT / path).exists() and not (page.parent / path).exists()}
    missing |= {name for name in modules if not (ROOT / name).is_dir() and not (ROOT / f"{name}.py").exists()}

    assert set() == missing


def command_lines(page: Path) -> list[str]:
    """Every command line of ours on a page, in blocks and within sentences."""
    shown = [line for kind in ("sh", "console") for block in blocks(page, kind) for line in block.splitlines()]
    shown += [" ".join(code.split()) for code in re.findall(r"`([^`]+)`", prose_of(page))]
    known = "|".join(map(re.escape, commands()))
    return [found[1] for line in shown if (found := re.search(rf"(?:^|[\s/])ratelimiter ((?:{known})\b.*)", line))]


def words_of(line: str) -> list[str]:
    """The words of a command line; of one that shows what there is, all that could be given."""
    plain = REPLACED.sub("", line).replace("[", "").replace("]", "")
    words = shlex.split(plain)
    for number, word in enumerate(words):
        if word in (">", "|", "&", "&&", ";"):
            words = words[:number]
            break
    return [PLACEHOLDERS.get(word, word) for word in words]


@pages
def test_command_lines_are_ours(page: Path) -> None:
    """Our own parser takes every one of them; a bare `ratelimiter proxy` or `keys new` only names the command."""
    names = {parser.prog for parser, _ in leaves(_parser())}
    for line in command_lines(page):
        words = words_of(line)
        if len(words) > 1 and " ".join(["ratelimiter", *words]) not in names:
            flags_of(words)


def test_there_are_command_lines_to_look_at() -> None:
    """The test above would find nothing wrong with a page on which it finds nothing."""
    assert 15 < sum(len(command_lines(page)) for page in PAGES)
    with pytest.raises(AssertionError):
        flags_of(words_of("proxy --upstream http://127.0.0.1:8000 --adminn 127.0.0.1:9090"))


@pages
def test_consoles_show_what_is_printed(
    page: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each command in a console prints what is shown; `...` stands for the rest."""
    monkeypatch.chdir(ROOT)
    for block in blocks(page, "console"):
        for command, shown in re.findall(r"^ *\$ ratelimiter (.*)\n((?:(?! *\$ ).*\n)*)", block, re.MULTILINE):
            assert 0 == main(shlex.split(command))
            expected = "\n".join(line.strip() for line in shown.strip().splitlines())
            printed = "\n".join(line.strip() for line in capsys.readouterr().out.strip().splitlines())
            assert re.fullmatch(re.escape(expected).replace(r"\.\.\.", ".*"), printed, re.DOTALL), printed


def test_defaults_of_the_checklist_are_those_of_the_schema() -> None:
    """The table of timeouts says what a policy that says nothing gets."""
    schema = json.loads(resources.files("ratelimiter.config").joinpath("policy.schema.json").read_text())
    fields = schema["properties"] | schema["properties"]["proxy"]["properties"]
    table = text_of(ROOT / "docs" / "howto" / "production.md").partition("## 5. Timeouts")[2].partition("\n## ")[0]
    rows = re.findall(r"^\| (`[^|]*`) \| ([^|]*) \|", table, re.MULTILINE)
    shown = {
        name: value.strip().split(" ")[0]
        for names, values in rows
        for name, value in zip(re.findall("`([^`]+)`", names), values.split(","), strict=True)
    }

    assert 4 < len(shown)
    assert {name: str(fields[name]["default"]) for name in shown} == shown
