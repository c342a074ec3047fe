"""The documentation builds as a site, and every link within it leads somewhere."""

from __future__ import annotations

import logging
import re
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from mkdocs.commands.build import build
from mkdocs.config import load_config

from scripts.site import FRONT, place, rewritten

if TYPE_CHECKING:
    from mkdocs.config.defaults import MkDocsConfig

ROOT = Path(__file__).parent.parent

pytestmark = [
    pytest.mark.slow,
    pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::PendingDeprecationWarning"),
]


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, MkDocsConfig, list[str]]:
    """Return the built site, its configuration, and every warning of the build."""
    folder = tmp_path_factory.mktemp("site")
    warnings: list[str] = []

    class Collector(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            warnings.append(record.getMessage())

    collector = Collector(logging.WARNING)
    logging.getLogger("mkdocs").addHandler(collector)
    try:
        config = load_config(str(ROOT / "mkdocs.yml"), site_dir=str(folder), strict=False)
        config.plugins.on_startup(command="build", dirty=False)
        build(config)
    finally:
        logging.getLogger("mkdocs").removeHandler(collector)
    return folder, config, warnings


def test_nothing_is_broken(site: tuple[Path, MkDocsConfig, list[str]]) -> None:
    """No link, anchor or page is missing; `scripts/docs` would fail."""
    assert [] == site[2]


def test_every_page_is_there(site: tuple[Path, MkDocsConfig, list[str]]) -> None:
    """Each page of docs/ and each at the root of the repository is a page of the site, with its pictures."""
    folder = site[0]
    pages = [*(ROOT / "docs").rglob("*.md"), *ROOT.glob("*.md")]
    missing = []
    for page in pages:
        target = folder / place(page).removesuffix(".md")
        html = target.with_suffix(".html") if target.name == "index" else target / "index.html"
        if target.name in {"index", "README"}:
            html = target.parent / "index.html"
        if not html.is_file():
            missing.append(str(page.relative_to(ROOT)))

    assert [] == missing
    assert {path.name for path in (ROOT / "docs" / "pictures").iterdir()} == {
        path.name for path in (folder / "pictures").iterdir()
    }


def test_the_navigation_is_the_index(site: tuple[Path, MkDocsConfig, list[str]]) -> None:
    """The sections are the kinds of pages, and what stands at the root of the repository."""
    nav = site[1].nav
    assert nav is not None
    names = [next(iter(section)) for section in nav]

    assert ["Home", "Tutorial", "How-to guides", "Reference", "Explanation", FRONT] == names


def test_no_page_loads_from_another_host(site: tuple[Path, MkDocsConfig, list[str]]) -> None:
    """A reader's browser asks no other host: styles, scripts, fonts and pictures are those of the site."""
    html = (site[0] / "index.html").read_text()
    loaded = re.findall(r"<(?:script|img|iframe)[^>]*\ssrc=\"?([^\"\s>]+)", html)
    loaded += re.findall(r"<link[^>]*rel=\"?(?:stylesheet|preconnect)\"?[^>]*href=\"?([^\"\s>]+)", html)

    assert loaded
    assert [] == [address for address in loaded if re.match(r"(?:https?:)?//", address)]


def test_links_are_rewritten() -> None:
    """A link to a file outside of docs/ leads to its page, and a block says its language alone."""
    text = rewritten(ROOT / "docs" / "reference" / "systems.md")

    assert "](../repository/config/intrace.yaml.md)" in text
    assert "](#intrace)" in text
    assert "```yaml policy" not in rewritten(ROOT / "docs" / "howto" / "limits.md")
