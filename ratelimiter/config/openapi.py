"""A policy beside the OpenAPI document of its API: rules that match no operation, operations without a rule."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple
from urllib.parse import urlsplit

from ratelimiter.config.coverage import is_wildcard, segments_of
from ratelimiter.errors import ConfigError
from ratelimiter.parsing.document import shown_name
from ratelimiter.parsing.yaml import read_foreign_file

if TYPE_CHECKING:
    import os

    from ratelimiter.core.match import Match
    from ratelimiter.core.policy import Policy

METHODS = ("get", "put", "post", "delete", "options", "head", "patch", "trace")  # OpenAPI 3.1 section 4.8.9.1


class Operation(NamedTuple):
    """One operation of an API."""

    method: str
    path: str  # a template like /users/{id}, behind the path of the server


def read_operations(path: str | os.PathLike[str]) -> list[Operation]:
    """Return the operations of the OpenAPI document (3.x, JSON or YAML) at *path*.

    Raises:
        ConfigError: the file cannot be read, or has no paths.
    """
    document = read_foreign_file(path)
    paths = document.get("paths") if isinstance(document, dict) else None
    if not isinstance(paths, dict):
        msg = f"{shown_name(path)}: is not an OpenAPI document, as it has no paths; name one of version 3"
        raise ConfigError(msg)
    prefix = _prefix(document)
    return [
        Operation(method.upper(), prefix + str(template))
        for template, item in paths.items()
        if isinstance(item, dict)
        for method in METHODS
        if method in item
    ]


def differences(policy: Policy, operations: list[Operation]) -> list[str]:
    """Return a line for each rule that matches no operation, and for each operation that only catch-all rules match."""
    told = []
    for index, rule in enumerate(policy.rules):
        if rule.descriptors is None and not any(may_match(rule.match, each) for each in operations):
            told.append(f"rules[{index}]: {rule.name} matches no operation; check its path and methods")
    special = [rule for rule in policy.rules if rule.descriptors is None and not rule.match.everything]
    for operation in operations:
        if not any(may_match(rule.match, operation) for rule in special):
            what = "only rules for all requests" if policy.catch_all else "no rule"
            told.append(f"{operation.method} {operation.path}: {what}")
    return told


def may_match(match: Match, operation: Operation) -> bool:
    """Return True if some request of *operation* meets *match*, as far as method and path go."""
    methods = {method.upper() for method in match.methods}
    if methods and operation.method not in methods and not (operation.method == "HEAD" and "GET" in methods):
        return False
    path: object = match.path
    templates = path if isinstance(path, tuple | list | frozenset) else () if path is None else (path,)
    if templates and not any(_meet(str(template), operation.path, match) for template in templates):
        return False
    return not any(_contains(template, operation.path, match) for template in match.excepted)


def _meet(template: str, path: str, match: Match) -> bool:
    """Return True if some path fits both templates."""
    wanted, below = segments_of(template)
    have, _ = segments_of(path, whole=True)
    if len(have) != len(wanted) and not (below and len(have) > len(wanted)):
        return False
    pairs = zip(wanted, have, strict=False)
    return all(is_wildcard(a) or is_wildcard(b) or _equal(a, b, match) for a, b in pairs)


def _contains(template: str, path: str, match: Match) -> bool:
    """Return True if every path of the operation fits *template*."""
    wanted, below = segments_of(template)
    have, _ = segments_of(path, whole=True)
    if len(have) != len(wanted) and not (below and len(have) > len(wanted)):
        return False
    return all(is_wildcard(a) or _equal(a, b, match) for a, b in zip(wanted, have, strict=False))


def _equal(one: str, other: str, match: Match) -> bool:
    return one.casefold() == other.casefold() if match.ignore_case else one == other


def _prefix(document: dict[str, Any]) -> str:
    servers = document.get("servers")
    if not isinstance(servers, list) or not servers or not isinstance(servers[0], dict):
        return ""
    try:
        return urlsplit(str(servers[0].get("url", ""))).path.rstrip("/")
    except ValueError:
        return ""
