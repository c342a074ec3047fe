"""Compare the contents of a wheel and an sdist with a list: `python -m scripts.release_contents DIST`.

Every tracked file of the package must be in both, every file must be on the list, which is release_contents.txt, and
every line of the list must be met.
"""

from __future__ import annotations

import re
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

ROOT = Path(__file__).parent.parent
LIST = Path(__file__).with_name("release_contents.txt")


def expected(version: str) -> dict[str, list[str]]:
    """Return the patterns of each kind of archive."""
    patterns: dict[str, list[str]] = {}
    for line in LIST.read_text().splitlines():
        if line.startswith("["):
            kind = line.strip("[]")
            patterns[kind] = []
        elif line and not line.startswith("#"):
            patterns[kind].append(line.replace("VERSION", version))
    return patterns


def matcher(pattern: str) -> re.Pattern[str]:
    """Return *pattern* as a regular expression for a whole path."""
    parts = re.split(r"(\*\*/|\*)", pattern)
    spelled = {"**/": "(?:[^/]+/)*", "*": "[^/]*"}
    return re.compile("".join(spelled.get(part, re.escape(part)) for part in parts))


def held(archive: Path) -> set[str]:
    """Return the paths of the files in *archive*, below the sdist's own folder."""
    if archive.suffix == ".whl":
        with zipfile.ZipFile(archive) as wheel:
            return {name for name in wheel.namelist() if not name.endswith("/")}
    with tarfile.open(archive) as sdist:
        return {member.name.partition("/")[2] for member in sdist.getmembers() if member.isfile()}


def tracked() -> set[str]:
    """Return the files of the package that git knows or would add."""
    command = ["git", "ls-files", "-co", "--exclude-standard", "ratelimiter"]
    names = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout.splitlines()  # noqa: S603
    return {name for name in names if (ROOT / name).is_file()}


def differences(names: set[str], patterns: list[str], needed: set[str]) -> list[str]:
    """Return a line for each difference between the *names* in an archive and what it should hold."""
    rules = {pattern: matcher(pattern) for pattern in patterns}
    strangers = {name for name in names if not any(rule.fullmatch(name) for rule in rules.values())}
    unmet = {pattern for pattern, rule in rules.items() if not any(rule.fullmatch(name) for name in names)}
    return [
        *(f"{name}: is not on the list; add a pattern or leave it out" for name in sorted(strangers)),
        *(f"{name}: is missing, though it is a file of the package" for name in sorted(needed - names)),
        *(f"{pattern}: no file is so named" for pattern in sorted(unmet)),
    ]


def main(folder: Path) -> int:
    """Compare what is in *folder*; return 1 after printing every difference, else 0."""
    found = 0
    archives = {"wheel": sorted(folder.glob("*.whl")), "sdist": sorted(folder.glob("*.tar.gz"))}
    for kind, paths in archives.items():
        if len(paths) != 1:
            print(f"{folder}: holds {len(paths)} archives of the kind {kind}; build exactly one")
            return 1
        version = paths[0].name.split("-")[1].removesuffix(".tar.gz")
        for line in differences(held(paths[0]), expected(version)[kind], tracked()):
            print(f"{paths[0].name}: {line}")
            found = 1
    return found


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1])))
