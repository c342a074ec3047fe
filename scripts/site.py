"""Hooks of mkdocs: the site has the pages of docs/, in the order of docs/index.md, and what they link to elsewhere.

On GitHub a page may link to any file of the repository, and a block of code may say more than its language. The site
gets a page for each such file, and plain languages.
"""

from __future__ import annotations

import os
import re
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Any

from mkdocs.structure.files import File

if TYPE_CHECKING:
    from collections.abc import Iterator

    from mkdocs.config.defaults import MkDocsConfig
    from mkdocs.structure.files import Files
    from mkdocs.structure.pages import Page

ROOT = Path(__file__).parent.parent
DOCS = ROOT / "docs"
LINK = re.compile(r"(\]\()([^)\s]+)(\))")
FENCE = re.compile(r"^( *```)(yaml) (?:policy|dialect)$", re.MULTILINE)
LANGUAGES = {".yaml": "yaml", ".yml": "yaml", ".json": "json", ".py": "python", ".sh": "sh", ".lua": "lua"}
BESIDE = "repository"  # where on the site the files are that lie outside of docs/
FRONT = "Project"  # the section of the pages at the root of the repository


def on_config(config: MkDocsConfig) -> MkDocsConfig:
    """Take the navigation from the index: its headings are the sections, its links the pages."""
    index = (DOCS / "index.md").read_text()
    sections: list[Any] = [{"Home": "index.md"}]
    for heading, text in re.findall(r"^## (.*)\n((?:(?!^## ).*\n)*)", index, re.MULTILINE):
        links = re.findall(r"\[([^\]]*)\]\(([^)#\s]+\.md)\)", text)
        sections.append({heading: [{title: target} for title, target in links]})
    sections.append({FRONT: [{page.stem.capitalize(): place(page)} for page in sorted(ROOT.glob("*.md"))]})
    config.nav = sections
    return config


def place(path: Path) -> str:
    """Return where on the site the file or folder at *path* is."""
    if path.is_relative_to(DOCS):
        return path.relative_to(DOCS).as_posix()
    name = path.relative_to(ROOT).as_posix()
    return f"{BESIDE}/{name}" if path.suffix == ".md" else f"{BESIDE}/{name}.md"


def linked(page: Path) -> Iterator[Path]:
    """Yield every file and folder of the repository that a page links to."""
    for match in LINK.finditer(page.read_text()):
        target = match[2].partition("#")[0]
        if target and not re.match("[a-z]+:", target):
            yield Path(os.path.normpath(page.parent / target))


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add a page for every file outside of docs/ that a page links to, and for the pages at the root."""
    waiting = [*ROOT.glob("*.md"), *DOCS.rglob("*.md")]
    known = set(waiting)
    while waiting:
        page = waiting.pop()
        if not page.is_relative_to(DOCS):
            files.append(File.generated(config, place(page), content=shown(page)))
        more = set(linked(page)) if page.suffix == ".md" else set(inside(page))
        waiting += [path for path in more - known if path.exists() and not path.is_relative_to(DOCS)]
        known |= more
    return files


def inside(folder: Path) -> list[Path]:
    """Return the files below a folder, without what a build has left there."""
    if not folder.is_dir():
        return []
    found = [path for path in sorted(folder.rglob("*")) if path.is_file()]
    return [path for path in found if not {"__pycache__", ".venv"} & set(path.parts)]


def shown(path: Path) -> str:
    """Return the page of a file or of a folder; that of a Markdown file is its own text."""
    name = path.relative_to(ROOT).as_posix()
    if path.is_dir():
        items = [f"* [{one.relative_to(path)}]({one.relative_to(path.parent).as_posix()}.md)" for one in inside(path)]
        return f"# {name}\n\n" + "\n".join(items) + "\n"
    if path.suffix == ".md":
        return rewritten(path)
    language = LANGUAGES.get(path.suffix, "text")
    return f"# {name}\n\n`````{language}\n{path.read_text()}\n`````\n"


def rewritten(page: Path) -> str:
    """Return the text of a page with the links and the blocks of code as the site needs them."""
    here = PurePosixPath(place(page)).parent

    def link(match: re.Match[str]) -> str:
        target, hash_, anchor = match[2].partition("#")
        if not target or re.match("[a-z]+:", target):
            return match[0]
        path = Path(os.path.normpath(page.parent / target))
        return f"{match[1]}{os.path.relpath(place(path), here)}{hash_}{anchor}{match[3]}"

    return FENCE.sub(r"\1\2", LINK.sub(link, page.read_text()))


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Rewrite a page of docs/; the others are made so."""
    del config, files
    path = DOCS / page.file.src_uri
    return rewritten(path) if path.is_file() else markdown
