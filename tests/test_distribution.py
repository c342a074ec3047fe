"""The name of the distribution is free, and every text says it."""

from __future__ import annotations

import re
import subprocess
import sys
import tomllib
import warnings
from pathlib import Path

import pytest

from ratelimiter import distribution

ROOT = Path(__file__).parent.parent
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
# An installation of the bare name, with an extra, a version, quotes or options before it, or a requirement on it.
OTHER = re.compile(
    r"""(?x)
    \b(?:pip[x3]?|uv|poetry|pdm|conda)\s+(?:pip\s+)?(?:install|add|run)\b
    [^\n`]*?[\s'"](?<!-r\s)ratelimiter(?=[\s'"`\[=<>~!;,.)]|$)(?!/)
    | \bratelimiter\[[a-z]
    | ^\s*['"]?ratelimiter\s*(?:[=<>~!]=|[<>])
    """,
    re.MULTILINE,
)


def texts() -> list[Path]:
    """Return every text file that git knows, or has yet to be told of."""
    command = ["git", "ls-files", "-co", "--exclude-standard"]
    named = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout.splitlines()
    files = [ROOT / name for name in named if not name.endswith((".png", ".ico", ".woff2"))]
    return [file for file in files if file.is_file() and file != Path(__file__)]


def test_the_name() -> None:
    """The distribution has a name of its own; the package and the command keep theirs."""
    assert "ratelimiter-service" == PROJECT["name"] == distribution.NAME
    assert {"ratelimiter"} == set(PROJECT["scripts"])


def test_the_extra_all_has_every_extra_but_the_fuzzer() -> None:
    """It refers to this distribution, not to another one."""
    extras = PROJECT["optional-dependencies"]
    (everything,) = extras["all"]

    assert everything.startswith("ratelimiter-service[")
    assert set(extras) - {"all", "fuzz"} == set(re.findall(r"[\w-]+", everything.partition("[")[2]))


def test_no_text_installs_the_other_project() -> None:
    """No page, message, script or manifest tells a reader to install the distribution that had the name first."""
    found = {
        f"{file.relative_to(ROOT)}: {match[0].strip()}"
        for file in texts()
        for match in OTHER.finditer(file.read_text(errors="ignore"))
    }

    assert set() == found


@pytest.mark.parametrize(
    "text",
    [
        "pip install ratelimiter",
        "pip install 'ratelimiter[jwt]'",
        'run pip install -U "ratelimiter[memcached]>=1"',
        "uv add ratelimiter",
        "uv pip install ratelimiter==0.1.0",
        "ratelimiter>=0.1",
        'all = ["ratelimiter[jwt,test]"]',
    ],
)
def test_what_would_be_found(text: str) -> None:
    """Each way to name the other project is one that the test above sees."""
    assert OTHER.search(text)


@pytest.mark.parametrize(
    "text",
    [
        "pip install '.[jwt]'",
        "pip install 'ratelimiter-service[jwt]'",
        "pip install . && .venv/bin/ratelimiter demo",
        "ratelimiter proxy",
        "ratelimiter_requests_total >= 1",
    ],
)
def test_what_is_ours(text: str) -> None:
    """Our own name, our command and our metrics are none of the other project."""
    assert not OTHER.search(text)


def installed(folder: Path, name: str, commands: str | None) -> Path:
    """Write the metadata of a distribution that is installed in *folder*."""
    metadata = folder / name
    metadata.mkdir()
    (metadata / "METADATA").write_text("Metadata-Version: 2.1\n")
    if commands is not None:
        (metadata / "entry_points.txt").write_text(commands)
    return metadata


@pytest.mark.parametrize("name", ["ratelimiter-1.2.0.post0.dist-info", "ratelimiter-1.2.0.post0-py3.11.egg-info"])
def test_it_warns_of_the_other_project(tmp_path: Path, name: str) -> None:
    """Both are installed: the warning names the other's metadata and what would do."""
    metadata = installed(tmp_path, name, None)

    with pytest.warns(RuntimeWarning) as warned:
        distribution.warn_of_namesake([str(tmp_path)])
    assert str(warned[0].message) == (
        f"{metadata}: another distribution named ratelimiter brings a package of the same name as ratelimiter-service; "
        "run pip uninstall ratelimiter ratelimiter-service, then install ratelimiter-service again"
    )


@pytest.mark.parametrize(
    ("name", "commands"),
    [
        ("ratelimiter_service-0.1.0.dist-info", None),
        ("ratelimiter-0.1.0.dist-info", "[console_scripts]\nratelimiter = ratelimiter.cli:main\n"),
        ("asgi_ratelimiter-1.0.dist-info", None),
    ],
)
def test_it_does_not_warn_of_ourselves(tmp_path: Path, name: str, commands: str | None) -> None:
    """Neither of this distribution, nor of one that was installed before it had its name, nor of others."""
    installed(tmp_path, name, commands)

    with warnings.catch_warnings():
        warnings.simplefilter("error")
        distribution.warn_of_namesake([str(tmp_path), str(tmp_path / "missing"), ""])


def test_importing_warns(tmp_path: Path) -> None:
    """The import itself warns, in a process that has both on its path."""
    installed(tmp_path, "ratelimiter-1.2.0.post0.dist-info", None)
    program = f"import sys; sys.path.append({str(tmp_path)!r}); import ratelimiter"
    done = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=True)

    assert "another distribution named ratelimiter" in done.stderr
