"""Write the tables of docs/reference that have a source: the schema, the parser and the registry.

    python -m scripts.tables            # write them
    python -m scripts.tables --check    # exit 1 if one differs from its source

A table stands between `<!-- table: NAME -->` and `<!-- end -->`; all around it is written by hand.
"""

from __future__ import annotations

import argparse
import importlib
import json
import pkgutil
import re
import sys
from importlib import resources
from inspect import signature
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ratelimiter import metrics
from ratelimiter.cli.main import _parser
from ratelimiter.metrics.prometheus import CollectorRegistry, Instruments

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

ROOT = Path(__file__).parent.parent
FOLDER = ROOT / "docs" / "reference"
PLACE = re.compile(r"(<!-- table: ([\w.-]+) -->\n)(.*?)(<!-- end -->)", re.DOTALL)
RENEW = "run `python -m scripts.tables`, and commit what it writes"

# Headings, by the module of the metrics.
METRICS = {"limiter_metrics": "The limiter", "proxy_metrics": "The proxy", "service_metrics": "The decision service"}
OF_SEVERAL = {"livesum": "sum", "livemin": "least", "mostrecent": "latest"}  # how processes are one scrape


def row(*cells: str) -> str:
    """Return a line of a table; a bar within a cell does not end it."""
    return f"| {' | '.join(' '.join(cell.replace('|', chr(92) + '|').split()) for cell in cells)} |"


def table(head: tuple[str, ...], rows: list[str]) -> str:
    """Return a table, or a sentence if it has no row."""
    return "\n".join([row(*head), "|" + "---|" * len(head), *rows]) + "\n"


# --- The policy file, from its schema


def schema() -> dict[str, Any]:
    """Return the JSON Schema of policy files."""
    text = resources.files("ratelimiter").joinpath("config/policy.schema.json").read_text(encoding="utf-8")
    return dict(json.loads(text))


def resolved(node: dict[str, Any], root: dict[str, Any]) -> dict[str, Any]:
    """Return *node* with what it refers to; its own words win."""
    while "$ref" in node:
        target: Any = root
        for step in node["$ref"].removeprefix("#/").split("/"):
            target = target[step]
        node = {**target, **{key: value for key, value in node.items() if key != "$ref"}}
    return node


def written(value: object) -> str:
    """Return *value* as a policy file would have it."""
    return "none" if value is None else f"`{json.dumps(value).strip(chr(34))}`"


def allowed(node: dict[str, Any]) -> str:
    """Return the values that a field takes, in words."""
    if "enum" in node:
        return ", ".join(f"`{value}`" for value in node["enum"])
    if node.get("type") == "boolean":
        return "`true`, `false`"
    return str(node.get("title", ""))


def fields(*path: str) -> str:
    """Return the fields of a section of the policy file: of the whole file without a *path*."""
    root = schema()
    node = root
    for step in path:
        node = resolved(node["items"] if step == "[]" else node["properties"][step], root)
    required = node.get("required", [])
    rows = []
    for name, stated in node["properties"].items():
        field = resolved(stated, root)
        default = "required" if name in required else written(field["default"]) if "default" in field else ""
        rows.append(row(f"`{name}`", allowed(field), default, str(field.get("description", ""))))
    return table(("field", "value", "default", "meaning"), rows)


def sections() -> Iterator[tuple[str, ...]]:
    """Yield the path of every section of the policy file that has fields of its own, the file itself first."""
    root = schema()

    def visit(node: dict[str, Any], path: tuple[str, ...]) -> Iterator[tuple[str, ...]]:
        node = resolved(node, root)
        if node.get("properties"):
            yield path
            for name, field in node["properties"].items():
                yield from visit(field, (*path, name))
        if isinstance(node.get("items"), dict):
            yield from visit(node["items"], (*path, "[]"))

    return visit(root, ())


# --- The commands, from the parser


def leaves(parser: argparse.ArgumentParser) -> Iterator[tuple[argparse.ArgumentParser, str]]:
    """Yield every command that can be run, with its help."""
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            helps = {choice.dest: choice.help or "" for choice in action._choices_actions}
            for name, sub in action.choices.items():
                nested = list(leaves(sub))
                yield from nested or [(sub, helps.get(name, ""))]


def spelled(action: argparse.Action) -> str:
    """Return an argument as a synopsis has it."""
    if action.option_strings:
        shown = action.option_strings[-1]
        if action.nargs != 0:
            shown += f" {_metavar(action)}"
        repeated = "..." if isinstance(action, argparse._AppendAction) else ""
        return f"{shown}{repeated}" if action.required else f"[{shown}]{repeated}"
    shown = _metavar(action)
    return {"?": f"[{shown}]", "*": f"[{shown}]...", "+": f"{shown}..."}.get(str(action.nargs), shown)


def _metavar(action: argparse.Action) -> str:
    if action.metavar is not None:
        return str(action.metavar)
    return "|".join(action.choices) if action.choices else action.dest.upper()


def arguments(parser: argparse.ArgumentParser) -> list[argparse.Action]:
    """Return the arguments of a command: first those that it needs."""
    own = [action for action in parser._actions if not isinstance(action, argparse._HelpAction)]
    return sorted(own, key=lambda action: not (action.required and action.option_strings))


def commands() -> str:
    """Return every command with its help."""
    found = list(leaves(_parser()))
    rows = [row(f"[`{parser.prog}`](#{anchor(parser.prog)})", text) for parser, text in found]
    return table(("command", "effect"), rows)


def anchor(heading: str) -> str:
    """Return what a heading is linked by."""
    return re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-")


def options() -> str:
    """Return a section for each command, with its synopsis and its arguments."""
    parts = []
    for parser, text in leaves(_parser()):
        listed = arguments(parser)
        synopsis = " ".join([parser.prog, *map(spelled, listed)])
        rows = [row(f"`{_named(action)}`", *_helped(action)) for action in listed]
        parts.append(f"## {parser.prog}\n\n{text[:1].upper()}{text[1:]}.\n\n```text\n{synopsis}\n```\n")
        if rows:
            parts.append(table(("argument", "default", "meaning"), rows))
    return "\n".join(parts)


def _named(action: argparse.Action) -> str:
    if not action.option_strings:
        return _metavar(action)
    value = "" if action.nargs == 0 else f" {_metavar(action)}"
    return ", ".join(action.option_strings) + value


def _helped(action: argparse.Action) -> tuple[str, str]:
    """Return the default of an argument and its help without it."""
    text = (action.help or "") % {**vars(action), "prog": "ratelimiter"}
    said, _, default = text.partition("default: ")
    if action.required:
        default = "required" if action.option_strings else ""
    meaning = said.strip().rstrip(";").strip()
    if action.choices and not action.option_strings:
        meaning = f"{meaning}: {', '.join(map(str, action.choices))}".removeprefix(": ")
    return (f"`{default}`" if default and default[0] not in "nr" else default), meaning


# --- The metrics, from what registers them


def instruments() -> dict[str, type[Instruments]]:
    """Return every class of metrics, by the name of its module."""
    found = {}
    for module in pkgutil.iter_modules(metrics.__path__):
        loaded = importlib.import_module(f"{metrics.__name__}.{module.name}")
        for value in vars(loaded).values():
            if isinstance(value, type) and issubclass(value, Instruments) and value.__module__ == loaded.__name__:
                found[module.name] = value
    found.pop("prometheus")  # the base of all
    return found


def exposed(name: str) -> str:
    """Return the metrics that the class in the module *name* registers."""
    rows = []
    made = instruments()[name]
    needed = {name for name, given in signature(made).parameters.items() if given.default is given.empty}
    # What they watch is only asked at a scrape, and there is none here.
    watched: dict[str, Any] = dict.fromkeys(needed - {"registry"}, ())
    for metric in made(**watched, registry=CollectorRegistry())._metrics:
        suffix = "_total" if metric._type == "counter" else ""
        labels = ", ".join(f"`{label}`" for label in metric._labelnames)
        several = OF_SEVERAL.get(getattr(metric, "_multiprocess_mode", ""), "sum")
        rows.append(row(f"`{metric._name}{suffix}`", str(metric._type), labels, metric._documentation, several))
    return table(("metric", "type", "labels", "meaning", "of several workers"), rows)


def policy() -> str:
    """Return every section of the policy file, each with a heading of its own."""
    root = schema()
    parts = []
    for path in sections():
        name = ".".join(path).replace(".[]", "[]")
        node = root
        for step in path:
            node = resolved(node["items"] if step == "[]" else node["properties"][step], root)
        if name:
            # What the field itself means stands in the table above; an item of a list has words of its own.
            said = str(node.get("description", ""))
            parts.append(f"## `{name.replace('[]', '')}`\n\n{said}\n".rstrip() + "\n")
        parts.append(fields(*path))
    return "\n".join(parts)


def exposition() -> str:
    """Return the metrics of every class that registers some, each with a heading of its own."""
    return "\n".join(f"## {METRICS.get(name, name)}\n\n{exposed(name)}" for name in sorted(instruments()))


# --- The pages


TABLES: dict[str, Callable[[], str]] = {
    "commands": commands,
    "options": options,
    "policy": policy,
    "metrics": exposition,
}


def renewed(text: str) -> str:
    """Return a page with its tables as their sources have them."""
    return PLACE.sub(lambda place: f"{place[1]}\n{TABLES[place[2]]()}\n{place[4]}", text)


def pages() -> dict[Path, set[str]]:
    """Return the pages that have tables, with the names of these."""
    found = {page: {place[2] for place in PLACE.finditer(page.read_text())} for page in sorted(FOLDER.glob("*.md"))}
    return {page: names for page, names in found.items() if names}


def main(words: list[str]) -> int:
    """Write every table, or with `--check` say which page has an old one."""
    stale = [page for page in pages() if renewed(page.read_text()) != page.read_text()]
    for page in stale:
        if "--check" in words:
            print(f"{page.relative_to(ROOT)}: a table differs from its source; {RENEW}", file=sys.stderr)
        else:
            page.write_text(renewed(page.read_text()))
            print(f"{page.relative_to(ROOT)}: written")
    return 1 if stale and "--check" in words else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
