"""From a policy file, arguments and environment variables to the `Policy` in force.

Each of the three sources is a document: it is compared with the same schema, then read field by field, so that all of
its problems are told at once and in the same words. Arguments win over the file, and the file over the environment.
"""

from __future__ import annotations

import os
from dataclasses import replace
from typing import TYPE_CHECKING, Any, NamedTuple

from ratelimiter.config.assembly import OF_RULES, OF_TRUST, assemble, policy_fields
from ratelimiter.config.fields import read_layer
from ratelimiter.config.layers import (
    PREFIX,
    Layer,
    layer_of_arguments,
    layer_of_environment,
    layer_of_file,
)
from ratelimiter.core.policy import Policy
from ratelimiter.errors import ConfigError

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from ratelimiter.parsing.document import Document

    File = str | os.PathLike[str]

NO_RULES = (
    "limit: there is neither a limit nor a policy file; write a limit like 60/minute, "
    f"or name a file with config or {PREFIX}CONFIG"
)


class LoadedPolicy(NamedTuple):
    """A policy and where it came from. The file, if there is one, was read once."""

    policy: Policy
    proxy: Mapping[str, Any]  # section `proxy` of the file; durations in ms, under names that end in `_ms`
    file: File | None
    document: Document | None  # of the file, for messages that name its lines


def load(path: File) -> Policy:
    """Return the policy in the file at *path*. References in it are filled in from the environment of the process.

    Raises:
        ConfigError: the file cannot be used; with every problem.
    """
    return load_file(path).policy


def load_file(path: File) -> LoadedPolicy:
    """Load the file at *path*: like `load`, with what else the file holds.

    Raises:
        ConfigError: the file cannot be used; with every problem.
    """
    layer = _read_file(path, os.environ)
    if layer.refused:
        raise ConfigError(*layer.problem_lines())
    return LoadedPolicy(assemble(layer.fields, layer.rules), layer.fields.get("proxy", {}), path, layer.document)


def build(
    *,
    limit: str | Sequence[str] | None = None,
    config: File | Policy | None = None,
    environ: Mapping[str, str] | None = None,
    **others: Any,
) -> Policy:
    """Return the policy that arguments, a file and environment variables make together.

    Arguments win over the file, the file over the environment (`RATELIMITER_STORE` for `store`, and so on; lists are
    separated by commas), the environment over defaults. The rules come from one source: *limit* or *config*. If both
    are given, the call is refused, as the limits could replace the file's rules or join them. If either is given,
    `RATELIMITER_LIMIT` and `RATELIMITER_CONFIG` are ignored.

    Args:
        limit: one limit or several, like `60/minute`; each a rule on every request.
        config: a policy file; or a `Policy`, to which arguments apply but no environment, as it leaves nothing open.
        environ: the environment; that of the process by default. A file may refer to any of its variables.
        others: any other field of a policy file by its name, and `secret`: text or bytes; None counts as not given.

    Raises:
        ConfigError: an argument, the file or a variable cannot be used, or there is neither a limit nor a file; with
            every problem.
    """
    return build_loaded(limit=limit, config=config, environ=environ, **others).policy


def build_loaded(
    *,
    limit: str | Sequence[str] | None = None,
    config: File | Policy | None = None,
    environ: Mapping[str, str] | None = None,
    **others: Any,
) -> LoadedPolicy:
    """Build a policy like `build`, and return it with its file and what else the file holds.

    Raises:
        ConfigError: as `build`.
    """
    given = {name: value for name, value in others.items() if value is not None}
    environ = os.environ if environ is None else environ
    if limit is not None and config is not None:
        msg = "limit: excludes config; write the limits into the file's rules, or leave the file out"
        raise ConfigError(msg)
    if isinstance(config, Policy):
        return LoadedPolicy(_changed(config, given), {}, None, None)
    variables = {
        name.removeprefix(PREFIX).lower(): value for name, value in environ.items() if name.startswith(PREFIX) and value
    }
    named_limit, named_config = variables.pop("limit", None), variables.pop("config", None)
    if limit is not None:
        given["limit"] = limit
    elif config is None:
        if named_limit is not None and named_config is not None:
            msg = f"{PREFIX}LIMIT: excludes {PREFIX}CONFIG; unset one of them"
            raise ConfigError(msg)
        config = named_config
        if named_limit is not None:
            variables["limit"] = named_limit
    return _merged(config, environ, given, variables)


def _merged(
    file: File | None, environ: Mapping[str, str], given: Mapping[str, Any], variables: Mapping[str, str]
) -> LoadedPolicy:
    """Return the policy of all three sources; a later one wins."""
    of_file = None if file is None else _read_file(file, environ)
    layers = [layer_of_environment(variables), *([] if of_file is None else [of_file]), layer_of_arguments(given)]
    for layer in layers:
        if layer is not of_file:
            read_layer(layer)
    problems = [line for layer in reversed(layers) for line in layer.problem_lines()]
    if file is None and "limit" not in given and "limit" not in variables:
        problems.append(NO_RULES)
    if problems:
        raise ConfigError(*problems)
    fields: dict[str, Any] = {}
    for layer in layers:
        if layer.fields.keys() & {"trusted_proxies", "trusted_hops"}:  # they exclude each other, across sources, too
            fields = {name: value for name, value in fields.items() if name not in ("trusted_proxies", "trusted_hops")}
        fields |= layer.fields
    policy = assemble(fields, next(layer.rules for layer in layers if layer.rules))
    document = None if of_file is None else of_file.document
    return LoadedPolicy(policy, {} if of_file is None else of_file.fields.get("proxy", {}), file, document)


def file_of(limit: object, config: File | Policy | None, environ: Mapping[str, str] | None = None) -> File | None:
    """Return the policy file that `build` reads for these arguments; None if it reads none."""
    if isinstance(config, Policy):
        return None
    named = (os.environ if environ is None else environ).get(f"{PREFIX}CONFIG") or None
    return named if limit is None and config is None else config


def _read_file(path: File, environ: Mapping[str, str]) -> Layer:
    layer = layer_of_file(path, environ)
    if layer.document.readable:
        read_layer(layer)
    return layer


def _changed(policy: Policy, given: Mapping[str, Any]) -> Policy:
    """Return *policy* with arguments in place of its fields."""
    layer = layer_of_arguments(given)
    read_layer(layer)
    for name in OF_RULES:
        if name in given:
            layer.refuse((name,), "belongs to the rules of a ready policy; write it there")
    if layer.refused:
        raise ConfigError(*layer.problem_lines())
    changes = policy_fields(layer.fields)
    trust: dict[str, Any] = {OF_TRUST[name]: value for name, value in layer.fields.items() if name in OF_TRUST}
    if "proxies" in trust or "hops" in trust:
        trust = {"proxies": (), "hops": 0} | trust
    if trust:
        changes["trust"] = replace(policy.trust, **trust)
    return replace(policy, **changes)
