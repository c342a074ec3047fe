"""Our command lines, wherever they are written down."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING, Any

from ratelimiter.cli.main import _parser

if TYPE_CHECKING:
    from collections.abc import Sequence


def commands() -> list[str]:
    """The names of all commands."""
    actions = _parser()._actions
    (subcommands,) = (action for action in actions if isinstance(action, argparse._SubParsersAction))
    return list(subcommands.choices)


def flags_of(words: Sequence[str]) -> dict[str, Any]:
    """The flags that our parser makes of *words*, which follow `ratelimiter`; an error if it takes them not."""
    try:
        flags: dict[str, Any] = vars(_parser().parse_args(list(words)))
    except SystemExit as fault:
        msg = f"ratelimiter {' '.join(words)}: not a command line of ours"
        raise AssertionError(msg) from fault
    return flags
