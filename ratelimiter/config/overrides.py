"""Overrides and plans of a policy file: from plain values, which fit the schema, to the core's."""

from __future__ import annotations

import json
import os
from functools import cache
from importlib import resources
from typing import TYPE_CHECKING, Any, NamedTuple

from ratelimiter.core.overrides import FOR_EVER, Override, PlanChoice
from ratelimiter.core.policy import override_fault
from ratelimiter.parsing import schema, values, yaml
from ratelimiter.parsing.document import problem_lines, shown, shown_path
from ratelimiter.parsing.principal_notation import Named, digests_of, network_digest, parse_named, pattern_digest
from ratelimiter.parsing.units import UNLIMITED, parse_limit, parse_moment_ms

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence
    from pathlib import Path as FilePath

    from ratelimiter.config.override_rows import Rows
    from ratelimiter.core.policy import Policy
    from ratelimiter.core.quota import AnyQuota
    from ratelimiter.parsing.document import Path

    Refuse = Callable[[Path, str], None]


class Draft(NamedTuple):
    """An override before the digests of its principal are computed."""

    path: Path
    named: Named
    rule: str
    quota: AnyQuota | None
    plan: str
    until_ms: int


def read_plan(value: Mapping[str, Any]) -> PlanChoice:
    """Return the section `plan`.

    Raises:
        ValueError: a source is no header.
    """
    stated = value.get("from", [])
    sources = [values.read_source(text) for text in ([stated] if isinstance(stated, str) else stated)]
    for source in sources:
        if source.kind != "header":
            msg = f"{shown(str(source))} names no plan; write header:NAME, as credentials tell their plan by themselves"
            raise ValueError(msg)
    return PlanChoice(value["default"], tuple(sources))


def read_override_limit(text: str) -> AnyQuota | None:
    """Return a limit; None for `unlimited`."""
    return None if text == UNLIMITED else parse_limit(text)


def read_overrides(value: Sequence[Any], path: Path, refuse: Refuse) -> tuple[Draft, ...]:
    """Return a list of overrides; a fault of one is refused at its place."""
    drafts = []
    for index, item in enumerate(value):
        if isinstance(item, dict):
            at = (*path, index)
            read = {name: _read(item, name, at, refuse) for name in _READERS}
            if ("limit" in item) == ("plan" in item):
                refuse(
                    at,
                    "has both a limit and a plan; write one"
                    if "plan" in item
                    else "changes nothing; write limit or plan",
                )
            elif None not in (read["principal"], read["until"]) and (read["limit"] is not None or "plan" in item):
                quota = read["limit"][0] if "limit" in item else None
                draft = Draft(at, read["principal"], item.get("rule", ""), quota, item.get("plan", ""), read["until"])
                drafts.append(draft)
    return tuple(drafts)


def _read(item: Mapping[str, Any], name: str, at: Path, refuse: Refuse) -> Any:
    """One field; None if it was refused."""
    if name not in item:
        return FOR_EVER if name == "until" else None
    try:
        return _READERS[name](item[name])
    except (ValueError, TypeError, AttributeError) as fault:  # the schema has told this already
        if isinstance(fault, ValueError):
            refuse((*at, name), str(fault))
        return None


_READERS: dict[str, Callable[[Any], Any]] = {
    "principal": lambda text: parse_named(text, anywhere=True),
    "limit": lambda text: (read_override_limit(text),),
    "until": parse_moment_ms,
}


def drafts_of(rows: Rows) -> tuple[Draft, ...]:
    """Return the patterns and networks of a file of rows."""
    return tuple(Draft(("overrides_file",), named, *rows.terms[place]) for named, place in rows.several)


def read_overrides_file(path: FilePath, foreign: list[str]) -> tuple[Draft, ...]:
    """Return the overrides of a file of their own: a mapping with the list `overrides`.

    Args:
        path: the file.
        foreign: collects the problems of the file.
    """
    document = yaml.examine_file(path)
    problems = list(document.problems)

    def refuse(at: Path, text: str) -> None:
        problems.append(document.problem(at, f"{shown_path(at)}: {text}"))

    drafts: tuple[Draft, ...] = ()
    if document.readable:
        problems += schema.differences(document, _file_schema())
        listed = document.value.get("overrides") if isinstance(document.value, dict) else None
        if isinstance(listed, list) and not problems:
            drafts = read_overrides(listed, ("overrides",), refuse)
    foreign += problem_lines(document, problems)
    return tuple(draft._replace(path=("overrides_file",)) for draft in drafts)


@cache
def _file_schema() -> dict[str, Any]:
    text = resources.files("ratelimiter.config").joinpath("policy.schema.json").read_text(encoding="utf-8")
    policy = json.loads(text)
    return {
        "$schema": policy["$schema"],
        "title": "a mapping with a list of overrides",
        "type": "object",
        "additionalProperties": False,
        "required": ["overrides"],
        "properties": {"overrides": policy["properties"]["overrides"]},
        "$defs": policy["$defs"],
        "examples": [{"overrides": []}],
    }


def made(drafts: Sequence[Draft], policy: Policy) -> tuple[Override, ...]:
    """Return the overrides that *drafts* make under *policy*.

    Raises:
        ValueError: a principal is of a source that no rule looks at.
    """
    return tuple(_made(draft, policy) for draft in drafts)


def _made(draft: Draft, policy: Policy) -> Override:
    source, value = draft.named
    pattern, network = draft.named.pattern, draft.named.network(policy.trust.ipv6_prefix)
    if network is not None:
        digests = frozenset({network_digest(network)})
    else:
        digests = digests_of(draft.named, policy) if pattern is None else frozenset({pattern_digest(source, value)})
    kept = "" if pattern is None else source
    return Override(digests, pattern, kept, draft.rule, draft.quota, draft.plan, draft.until_ms, network=network)


def faults(drafts: Sequence[Draft], policy: Policy) -> list[tuple[Path, str]]:
    """Return the settings in *drafts* that have no meaning under *policy*, with the place of each."""
    told = []
    for draft in drafts:
        try:
            fault = override_fault(policy, _made(draft, policy))
        except ValueError as error:
            fault = str(error)
        if fault:
            told.append((draft.path, fault))
    return told


def path_in(folder: str | os.PathLike[str], name: str) -> str:
    """Return *name* relative to *folder*."""
    return os.path.join(folder, os.path.normpath(name))
