"""The name under which this package is distributed, and a warning if another distribution brings the same package."""

from __future__ import annotations

import sys
import warnings
from pathlib import Path

NAME = "ratelimiter-service"
NAMESAKE = "ratelimiter"  # on the package index since 2017; it brings a package of the same import name


def warn_of_namesake(folders: list[str] | None = None) -> None:
    """Warn if the distribution `ratelimiter` is installed too: each of the two overwrites files of the other.

    Args:
        folders: where distributions are looked for; `sys.path` by default.
    """
    found = namesake(sys.path if folders is None else folders)
    if found is not None:
        text = (
            f"{found}: another distribution named {NAMESAKE} brings a package of the same name as {NAME}; "
            f"run pip uninstall {NAMESAKE} {NAME}, then install {NAME} again"
        )
        warnings.warn(text, RuntimeWarning, stacklevel=3)


def namesake(folders: list[str]) -> Path | None:
    """Return the metadata of the other distribution in *folders*; None if it is not there.

    importlib.metadata would find it as well, for 25 ms of each start; a glob takes less than one.
    """
    for folder in folders:
        for pattern in (f"{NAMESAKE}-*.dist-info", f"{NAMESAKE}-*.egg-info"):
            for metadata in Path(folder or ".").glob(pattern):
                # This package was called so before it had a name of its own, and then had its command.
                commands = metadata / "entry_points.txt"
                if not commands.is_file() or "ratelimiter.cli" not in commands.read_text(errors="replace"):
                    return metadata
    return None
