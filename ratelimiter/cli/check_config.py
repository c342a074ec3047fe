"""`ratelimiter check-config`: every problem and warning of a policy file, its bounds in an outage, its API."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

from ratelimiter.cli.parser import whole_number

if TYPE_CHECKING:
    from ratelimiter.cli.parser import Commands

# What the command needs is imported when it runs.
# ruff: noqa: PLC0415


def add_command(commands: Commands) -> None:
    """Add `check-config` to the commands."""
    check = commands.add("policy", "check-config", run, "validate a policy file (exit 2 on errors)")
    check.add_argument("file", metavar="FILE", help="read this policy file")
    check.add_argument(
        "--processes",
        metavar="N",
        type=whole_number,
        default=1,
        help="tell what this many processes admit during an outage of the store; default: %(default)s",
    )
    check.add_argument(
        "--store", metavar="URL", help="assume this store; default: the file's, else the variable RATELIMITER_STORE"
    )
    check.add_argument(
        "--openapi", metavar="FILE", help="compare the rules with the operations in this OpenAPI document"
    )


def run(*, file: str, processes: int, store: str | None, openapi: str | None) -> None:
    """Print what there is to say about the policy in *file*, as the environment completes it."""
    from ratelimiter.config.lint import outage, warnings
    from ratelimiter.config.loader import build_loaded
    from ratelimiter.config.openapi import differences, read_operations

    loaded = build_loaded(config=file, store=store)
    policy, document = loaded.policy, loaded.document
    assert document is not None  # noqa: S101 - a file was read
    rules = f"{len(policy.rules)} rule{'s' if len(policy.rules) > 1 else ''}"
    kind = policy.store.partition("://")[0]  # the rest may hold a password
    print(f"{document.name}: ok, {rules}, store {kind}, dialect {policy.dialect}")
    for line in outage(policy, processes):
        print(f"  {line}")
    for warning in warnings(policy, document):
        print(f"warning: {warning}", file=sys.stderr)
    if openapi is not None:
        operations = read_operations(openapi)
        print(f"{openapi}: {len(operations)} operations")
        for line in differences(policy, operations):
            print(f"  {line}")
