"""Policies with one mistake each, under `tests/data/policies/bad`: the first line of a file is the message it gets.

Write the messages anew with `python -m tests.bad_policies`, then review the change with `git diff`.
"""

from __future__ import annotations

import os
from pathlib import Path

from ratelimiter.config.loader import load
from ratelimiter.errors import ConfigError

DIRECTORY = Path(__file__).parent / "data" / "policies" / "bad"


def message(path: Path) -> str:
    """Return the message that the policy file at *path*, in the working directory, is refused with."""
    try:
        load(path.name)
    except ConfigError as error:
        return str(error)
    msg = f"{path} is accepted, so it belongs elsewhere"
    raise AssertionError(msg)


def main() -> None:
    """Write the first line of each file anew."""
    os.chdir(DIRECTORY)
    for path in sorted(DIRECTORY.glob("*.yaml")):
        first, _, rest = path.read_text(encoding="utf-8").partition("\n")
        if first.startswith("# ") and "\n" not in (told := message(path)):
            path.write_text(f"# {told}\n{rest}", encoding="utf-8")


if __name__ == "__main__":
    main()
