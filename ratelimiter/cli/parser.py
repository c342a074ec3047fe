"""The parser of the command line: commands in groups, and hints for misspelt commands and flags."""

from __future__ import annotations

import argparse
from difflib import get_close_matches
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

GROUPS = {
    "run": "run a limiter",
    "policy": "write and check policies",
    "operate": "operate a running limiter",
}
NAME_WIDTH = 14  # of a command in the list
HELP_WIDTH = 100


class Parser(argparse.ArgumentParser):
    """A parser whose errors name the command or flag that was probably meant."""

    def __init__(self, **settings: Any) -> None:
        super().__init__(allow_abbrev=False, **settings)

    def parse_args(self, args: Sequence[str] | None = None, namespace: Any = None) -> Any:  # type: ignore[override]
        """Parse *args*, and exit with status 2 if any of it cannot be used."""
        parsed, unknown = self.parse_known_args(args, namespace)
        if unknown:
            flags = [flag for action in _actions(self, parsed) for flag in action.option_strings]
            self.error(f"unrecognized arguments: {' '.join(unknown)}{_hint(unknown[0], flags)}")
        return parsed

    def _check_value(self, action: argparse.Action, value: Any) -> None:
        if action.choices is not None and value not in action.choices:
            choices = [str(choice) for choice in action.choices]
            hint = _hint(str(value), choices) or f"; write {', '.join(choices)}"
            raise argparse.ArgumentError(action, f"there is no {str(value)!r} here{hint}")


class Commands:
    """The commands of a parser, each in a group of the help text.

    Args:
        parser: the parser, without subparsers yet.
    """

    def __init__(self, parser: Parser) -> None:
        self._parser = parser
        self._parsers = parser.add_subparsers(
            dest="command", required=True, metavar="COMMAND", prog=parser.prog, help=argparse.SUPPRESS
        )
        self._listed: dict[str, list[str]] = {group: [] for group in GROUPS}
        parser.usage = f"{parser.prog} [-h] [--version] COMMAND ..."

    def add(self, group: str, name: str, run: Any, text: str) -> argparse.ArgumentParser:
        """Add the command *name* to *group*: *run* takes its flags, and *text* is its line of help, verb first."""
        added = self._parsers.add_parser(name, description=f"{text[0].upper()}{text[1:]}.")
        added.set_defaults(run=run)
        self._listed[group].append(f"  {name:<{NAME_WIDTH}}{text}")
        return added

    def listing(self) -> str:
        """Return the commands as the help text lists them."""
        return "\n\n".join("\n".join([f"{title}:", *self._listed[group]]) for group, title in GROUPS.items())


class HelpFormatter(argparse.RawDescriptionHelpFormatter):
    """Help of a fixed width, whose description and examples keep their lines."""

    def __init__(self, prog: str) -> None:
        super().__init__(prog, max_help_position=24, width=HELP_WIDTH)


def whole_number(text: str) -> int:
    """Return *text* as a whole number from 1, for argparse."""
    if not (text.isascii() and text.isdigit() and len(text) <= 6 and int(text)):
        msg = f"{text!r} is not a whole number from 1 to 999999"
        raise argparse.ArgumentTypeError(msg)
    return int(text)


def add_settings(command: argparse.ArgumentParser) -> None:
    """Add the flags that a policy can be made of, as a group of their own."""
    group = command.add_argument_group("policy", "Either --config or --limit. A flag prevails over the policy file.")
    group.add_argument("--config", metavar="FILE", help="read the policy from this file")
    group.add_argument(
        "--limit", metavar="LIMIT", action="append", help="limit all requests, like 60/minute; may be repeated"
    )
    group.add_argument("--store", metavar="URL", help="keep counters in this store; default: memory://")
    group.add_argument("--dialect", metavar="NAME", help="write refusals in this dialect; default: problem")
    group.add_argument(
        "--principal",
        metavar="SOURCE",
        action="append",
        help="charge header:NAME, bearer, org, client or everyone; if repeated, they are tried in order",
    )
    group.add_argument(
        "--headers",
        metavar="FAMILY",
        action="append",
        help="add header fields of x-ratelimit, draft-11, draft-06, openai or anthropic to responses; may be repeated",
    )


def _actions(parser: argparse.ArgumentParser, parsed: argparse.Namespace) -> Iterable[argparse.Action]:
    """Yield the flags of *parser* and of the command that was chosen; of all verbs if the choice is not kept."""
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            chosen = getattr(parsed, action.dest, None)
            for name, sub in action.choices.items():
                if chosen in (None, name):
                    yield from _actions(sub, parsed)
        else:
            yield action


def _hint(word: str, known: Iterable[str]) -> str:
    name, _, _ = word.partition("=")
    close = get_close_matches(name, list(known), n=1, cutoff=0.6)
    return f"; did you mean {close[0]}?" if close else ""
