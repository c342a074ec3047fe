"""`ratelimiter convert`: policies made of the files of other limiters."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from ratelimiter.cli.parser import Commands

# What the command needs is imported inside of it, as in `main`.
# ruff: noqa: PLC0415

LOST = 2  # exit status when something cannot be said in a policy


def add_command(commands: Commands) -> None:
    """Add `convert` to the commands."""
    convert = commands.add("policy", "convert", run, "make a policy of the files of another limiter (exit 2 if lossy)")
    convert.add_argument("source", choices=["envoy"], help="read files of envoyproxy/ratelimit")
    convert.add_argument("path", metavar="FILE_OR_DIR", help="read this file, or each .yaml in this folder")


def run(source: str, path: str) -> None:  # noqa: ARG001  # there is one so far
    """Print the policy; what it cannot say goes to standard error, with its place."""
    from ratelimiter.service.convert import convert, lines

    converted = convert(path)
    if converted.limits:
        print(converted.policy(), end="")
    for line in lines(converted):
        print(line, file=sys.stderr)
    if converted.lost:
        sys.stdout.flush()
        sys.exit(LOST)
