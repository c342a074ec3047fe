"""`ratelimiter describe`: the limits of a policy for the people who call the API."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from ratelimiter.cli.parser import Commands

# What the command needs is imported when it runs.
# ruff: noqa: PLC0415


def add_command(commands: Commands) -> None:
    """Add `describe` to the commands."""
    describe = commands.add("policy", "describe", run, "print the limits of a policy for the API's documentation")
    describe.add_argument("file", metavar="FILE", help="read this policy file")
    form = describe.add_mutually_exclusive_group()
    form.add_argument("--markdown", action="store_true", help="print a Markdown table; the default")
    form.add_argument("--json", action="store_true", help="print a JSON object")


def run(*, file: str, markdown: bool, json: bool) -> None:
    """Print the published limits of the policy in *file*."""
    from ratelimiter.config import description
    from ratelimiter.config.loader import load

    del markdown  # the default
    policy = load(file)
    print(_dumped(description.describe(policy)) if json else "\n".join(description.markdown(policy)))


def _dumped(value: object) -> str:
    return json.dumps(value, indent=2)
