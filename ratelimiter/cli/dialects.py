"""`ratelimiter dialects`: the dialects, the answers of one with sample bodies, and the words of their templates."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ratelimiter.cli.table import print_table

if TYPE_CHECKING:
    from ratelimiter.cli.parser import Commands
    from ratelimiter.dialects.answer import Answer

# What the command needs is imported when it runs.
# ruff: noqa: PLC0415


def add_command(commands: Commands) -> None:
    """Add `dialects` to the commands."""
    dialects = commands.add("policy", "dialects", run, "list the dialects, or the answers of one with sample bodies")
    dialects.add_argument("name", metavar="NAME", nargs="?", help="show this dialect, or the dialect file at this path")
    dialects.add_argument("--words", action="store_true", help="print the words that a dialect's templates may use")


def run(*, name: str | None, words: bool) -> None:
    """Print the list of dialects, one dialect, or the table of words."""
    from ratelimiter.dialects import loader
    from ratelimiter.dialects.samples import samples
    from ratelimiter.dialects.words import table

    if words:
        print_table(("WORD", "VALUE", "HAS A VALUE"), table())
        return
    if name is None:
        for known in sorted(loader.names()):
            print(f"{known:<16} {loader.load(known).about}")
        return
    dialect = loader.load(name)
    print_table(("STATUS", "ANSWER", "CODE", "MESSAGE"), [_row(answer) for answer in dialect.answers.values()])
    for title, reply in samples(dialect):
        print(f"\n{title}: {reply.status}")
        for header, value in reply.headers:
            print(f"{header.decode()}: {value.decode('latin-1')}")
        print(f"\n{reply.body.decode().rstrip()}")


def _row(answer: Answer) -> tuple[str, ...]:
    return str(answer.status), answer.name, answer.code, " ".join((answer.message or answer.cause).split())
