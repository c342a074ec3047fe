"""From a policy file, arguments and environment variables to the `Policy` in force.

Each of the three is a document: held against the same schema, then read field by field, so that all of its problems are
told at once and in one voice. What is given twice is taken from the arguments first, then from the file, then from the
environment.
"""

from __future__ import annotations

import ipaddress
import json
import os
import re
from dataclasses import dataclass, field, replace
from functools import cache
from importlib import resources
from pathlib import Path as FilePath
from typing import TYPE_CHECKING, Any, TypeVar

from ratelimiter.config import overrides
from ratelimiter.config.identity import Reader
from ratelimiter.core.match import Match
from ratelimiter.core.policy import (
    LONG_WINDOWS,
    RESPONSE_HEADER,
    AmbiguousPaths,
    CostFrom,
    Mode,
    OnStoreError,
    Policy,
    Rule,
)
from ratelimiter.core.principal import ORG, Network, Source, Trust
from ratelimiter.core.quota import LEASE_TTL_MS, WINDOW_MS_MAX, Balance, Bucket, Period, Quota, Slots
from ratelimiter.errors import ConfigError
from ratelimiter.parsing import env, schema, values, yaml
from ratelimiter.parsing.units import CALENDAR, TOKEN_BUCKET, UNLIMITED, Terms, name_of, parse_limit, spell_limit
from ratelimiter.parsing.yaml import Document, Path, Problem, shown, shown_path
from ratelimiter.stores.factory import opened

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence

    from ratelimiter.core.json_body import Field
    from ratelimiter.core.quota import AnyQuota

Value = TypeVar("Value")

PREFIX = "RATELIMITER_"

# Fields of a policy file that need no reading beyond the schema's.
_PLAIN = (
    "name",
    "expose_headers",
    "ipv6_prefix",
    "trusted_hops",
    "method_override",
    "show_principals",
    "path_case",
    "json_bytes_max",
)
_MAY_BE_NOTHING = ("lame_duck",)  # of the durations of a proxy
_NO_DURATION = ("access_log", "via")  # of the texts of a proxy
_NEEDS_IDENTITY = "is told by credentials, and nothing can tell good ones; write identity: with jwt: or api_keys:, too"
_CALLED = {"secret_file": "secret", "require": "requirements"}  # of the fields those that a policy has by another name
# What a rule takes over when it does not say, and what everything is built from at the end.
_OF_RULES = ("principal", "mode", "on_store_error", "path_case")
_OF_TRUST = {
    "trusted_proxies": "proxies",
    "trusted_hops": "hops",
    "client_header": "header",
    "ipv6_prefix": "ipv6_prefix",
}


def load(path: str | os.PathLike[str]) -> Policy:
    """The policy that the file at *path* holds; neither arguments nor environment are asked.

    Raises:
        ConfigError: the file cannot be used; with every problem.
    """
    return load_with_document(path)[0]


def load_with_document(path: str | os.PathLike[str]) -> tuple[Policy, Document]:
    """Like `load`, with the document for those who want to speak of places in the file."""
    layer = _read_policy_file(path)
    if layer.problems or layer.foreign:
        raise ConfigError(*layer.told())
    return _assemble(layer.fields, layer.rules), layer.document


def load_proxy(path: str | os.PathLike[str]) -> dict[str, Any]:
    """The section `proxy` of the file at *path*: the bounds of a proxy by name, durations in milliseconds under a name
    that ends in `_ms`.

    Raises:
        ConfigError: the file cannot be used; with every problem.
    """
    layer = _read_policy_file(path)
    if layer.problems or layer.foreign:
        raise ConfigError(*layer.told())
    return dict(layer.fields.get("proxy", {}))


def build(
    *,
    limit: str | Sequence[str] | None = None,
    config: str | os.PathLike[str] | Policy | None = None,
    environ: Mapping[str, str] | None = None,
    **others: Any,
) -> Policy:
    """The policy that arguments, a file and environment variables make together.

    Arguments win over the file, the file over the environment (`RATELIMITER_STORE` for `store`, and so on; lists are
    separated by commas), the environment over defaults. The rules come from one place: *limit* or *config*. Both as
    arguments are refused, as nobody could say whether the limits replace the file's rules or join them. If either is an
    argument, neither `RATELIMITER_LIMIT` nor `RATELIMITER_CONFIG` is looked at.

    Args:
        limit: one limit or several, like `60/minute`; each a rule on every request.
        config: a policy file; or a `Policy`, to which arguments apply but no environment, as it leaves nothing open.
        environ: the environment; that of the process by default. A file may refer to any of its variables.
        others: any other field of a policy file by its name, and `secret`: text or bytes; None is not given.

    Raises:
        ConfigError: an argument, the file or a variable cannot be used, or there is neither a limit nor a file; with
            every problem.
    """
    given = {name: value for name, value in others.items() if value is not None}
    environ = os.environ if environ is None else environ
    if limit is not None and config is not None:
        msg = "limit: excludes config; write the limits into the file's rules, or leave the file out"
        raise ConfigError(msg)
    if isinstance(config, Policy):
        return _changed(config, given)
    variables = {
        name.removeprefix(PREFIX).lower(): value for name, value in environ.items() if name.startswith(PREFIX) and value
    }
    named_limit, named_config = variables.pop("limit", None), variables.pop("config", None)
    layers: list[_Layer] = []
    if limit is None and config is None:
        if named_limit is not None and named_config is not None:
            msg = f"{PREFIX}LIMIT: excludes {PREFIX}CONFIG; unset one of them"
            raise ConfigError(msg)
        config = named_config
    else:
        named_limit = None
    if limit is not None:
        given["limit"] = limit
    if named_limit is not None:
        variables["limit"] = named_limit
    layers.append(_read_environment(variables))
    if config is not None:
        layers.append(_read_policy_file(config, environ))
    layers.append(_read_arguments(given))
    problems = [line for layer in reversed(layers) for line in layer.told()]
    if limit is None and named_limit is None and config is None:
        problems.append(
            "limit: there is neither a limit nor a policy file; write a limit like 60/minute, "
            f"or name a file with config or {PREFIX}CONFIG"
        )
    if problems:
        raise ConfigError(*problems)
    fields: dict[str, Any] = {}
    for layer in layers:
        if layer.fields.keys() & {"trusted_proxies", "trusted_hops"}:
            fields = {name: value for name, value in fields.items() if name not in ("trusted_proxies", "trusted_hops")}
        fields |= layer.fields
    return _assemble(fields, next(layer.rules for layer in layers if layer.rules))


def file_of(
    limit: object, config: str | os.PathLike[str] | Policy | None, environ: Mapping[str, str] | None = None
) -> str | os.PathLike[str] | None:
    """The policy file that `build` reads for these arguments; None if it reads none."""
    if isinstance(config, Policy):
        return None
    named = (os.environ if environ is None else environ).get(f"{PREFIX}CONFIG") or None
    return named if limit is None and config is None else config


def policy_schema() -> dict[str, Any]:
    """The JSON Schema of a policy file; a copy, to be changed at will."""
    text = resources.files("ratelimiter.config").joinpath("policy.schema.json").read_text(encoding="utf-8")
    policy: dict[str, Any] = json.loads(text)
    return policy


# --- Layers: the file, the arguments, the environment


@dataclass(slots=True)
class _Layer:
    """One place that settings come from: its fields as read, its rules not yet complete, and what is wrong with it."""

    document: Document
    fields: dict[str, Any] = field(default_factory=dict)
    rules: list[_Draft] = field(default_factory=list)
    problems: list[Problem] = field(default_factory=list)
    foreign: list[str] = field(default_factory=list)  # problems of another file that this one names
    spelled: Callable[[str], str] | None = None  # how a field is called where there are no lines

    def told(self) -> list[str]:
        if self.spelled is None:
            return [*yaml.told(self.document, self.problems), *self.foreign]
        own = [f"{self.spelled(shown_path(p.path))}: {_without_path(p)}" for p in dict.fromkeys(self.problems)]
        return [*own, *self.foreign]

    def refuse(self, path: Path, text: str, *, at_key: bool = False) -> None:
        told = f"{shown_path(path)}: {text}" if path else text
        self.problems.append(self.document.problem(path, told, at_key=at_key))

    def sound(self, path: Path) -> bool:
        """Whether nothing at, in or around *path* was refused so far."""
        for problem in self.problems:
            length = min(len(problem.path), len(path))
            if problem.path and problem.path[:length] == path[:length]:
                return False
        return True


@dataclass(frozen=True, slots=True)
class _Draft:
    """A rule before it has taken over what it does not say."""

    name: str
    quota: AnyQuota
    stated: dict[str, Any]


def _without_path(problem: Problem) -> str:
    prefix = f"{shown_path(problem.path)}: "
    return problem.text.removeprefix(prefix)


def _read_policy_file(path: str | os.PathLike[str], environ: Mapping[str, str] | None = None) -> _Layer:
    document = env.filled(yaml.examine_file(path), os.environ if environ is None else environ)
    layer = _Layer(document, problems=list(document.problems))
    if document.readable:
        _read(layer, _file_schema(), FilePath(path).parent)
    return layer


def _read_arguments(given: Mapping[str, Any]) -> _Layer:
    value = {name: _plain(item) for name, item in given.items()}
    secret = value.pop("secret", None)
    layer = _Layer(Document("arguments", value), spelled=str)
    _read(layer, _argument_schema(), FilePath())
    if secret is not None:
        _read_secret(layer, "secret", secret)
    return layer


def _read_environment(variables: Mapping[str, str]) -> _Layer:
    fields = _argument_schema()["properties"]
    value = {name: _of_variable(text, fields[name]) for name, text in variables.items() if name in fields}
    # A variable that is none of ours may be anybody's: orchestrators set RATELIMITER_PORT and the like for a service.
    layer = _Layer(Document("environment", value), spelled=_variable)
    _read(layer, _argument_schema(), FilePath())
    if "secret" in variables:
        _read_secret(layer, "secret", variables["secret"])
    return layer


def _variable(path: str) -> str:
    return PREFIX + re.sub(r"\W.*", "", path).upper()


def _of_variable(text: str, wanted: Mapping[str, Any]) -> Any:
    """The value that a variable's text means for a field."""
    if "anyOf" in wanted or wanted.get("$ref") == "#/$defs/principal":
        return [] if text.strip() == "none" else [item.strip() for item in text.split(",")]
    if wanted.get("type") == "integer" and re.fullmatch("0|[1-9][0-9]{0,9}", text):
        return int(text)
    if wanted.get("type") == "number" and re.fullmatch(r"[0-9]{1,3}(\.[0-9]{1,15})?", text):
        return float(text)
    if wanted.get("type") == "boolean":
        return {"true": True, "false": False}.get(text, text)
    return text


def _plain(value: Any) -> Any:
    if isinstance(value, (tuple, set, frozenset)):
        return [_plain(item) for item in value]
    if isinstance(value, os.PathLike):
        return os.fspath(value)
    return str(value) if isinstance(value, str) else value


@cache
def _file_schema() -> dict[str, Any]:
    return policy_schema()


@cache
def _argument_schema() -> dict[str, Any]:
    """The schema of arguments: a policy's, with limits in place of rules."""
    policy = policy_schema()
    for name in ("rules", "proxy", "identity", "require", "plan", "overrides", "overrides_file"):
        del policy["properties"][name]
    del policy["required"]
    limit = policy["$defs"]["limit"]
    policy["properties"]["limit"] = {
        "title": "a limit or a list of limits",
        "examples": limit["examples"],
        "anyOf": [limit, {"type": "array", "minItems": 1, "uniqueItems": True, "items": limit}],
    }
    return policy


# --- Reading: from plain values to those of the core


def _read(layer: _Layer, wanted: Mapping[str, Any], folder: FilePath) -> None:
    layer.problems += schema.differences(layer.document, wanted)
    if not isinstance(layer.document.value, dict):
        return
    for name, convert in _readers(layer, folder).items():
        if name in layer.document.value and layer.sound((name,)):
            _take(layer, name, convert)
    _refuse_conflicts(layer)
    if isinstance(layer.document.value.get("rules"), list):
        layer.rules = list(_drafts(layer, layer.document.value["rules"]))
    elif "limit" in layer.fields:
        limits = layer.fields.pop("limit")
        layer.rules = [_Draft("", quota, {}) for quota in limits]
    _check_plans(layer)
    if not layer.problems and "overrides" in layer.fields:
        for path, text in overrides.faults(
            layer.fields["overrides"], _assemble(layer.fields, layer.rules, whole=False)
        ):
            layer.refuse(path, text)


def _readers(layer: _Layer, folder: FilePath) -> dict[str, Callable[[Any], Any]]:
    """For each field, what reads its value: raises ValueError, or refuses parts through *layer* and returns None."""
    return dict.fromkeys(_PLAIN, lambda value: value) | {
        "store": _read_store,
        "dialect": lambda value: _dialect(layer, value, folder),
        "headers": values.read_headers,
        "principal": lambda value: _principal(layer, ("principal",), value),
        "trusted_proxies": lambda value: _networks(layer, value),
        "client_header": str.lower,
        "on_store_error": OnStoreError,
        "decision_timeout": values.read_decision_timeout_ms,
        "local_share": values.read_local_share,
        "ambiguous_paths": AmbiguousPaths,
        "mode": Mode,
        "proxy": lambda value: _proxy(layer, value),
        "identity": lambda value: _identity(layer, folder).identity(value),
        "require": lambda value: _identity(layer, folder).requirements(value),
        "plan": overrides.read_plan,
        "overrides": lambda value: overrides.read_overrides(value, ("overrides",), layer.refuse),
        "overrides_file": lambda value: _overrides_file(layer, overrides.path_in(folder, value)),
        "secret_file": lambda value: values.read_secret_file(folder / value),
        "limit": lambda value: _each(layer, ("limit",), value, parse_limit),
    }


def _take(layer: _Layer, name: str, convert: Callable[[Any], Any]) -> None:
    try:
        value = convert(layer.document.value[name])
    except ValueError as fault:
        layer.refuse((name,), str(fault))
    else:
        if value is not None:
            layer.fields[_CALLED.get(name, name)] = value


def _each(layer: _Layer, path: Path, value: Any, convert: Callable[[Any], Value]) -> list[Value]:
    """*value*, or every item of it if it is a list, converted."""
    converted: list[Value] = []
    for index, item in enumerate(value if isinstance(value, list) else [value]):
        at = (*path, index) if isinstance(value, list) else path
        try:
            converted.append(convert(item))
        except ValueError as fault:
            layer.refuse(at, str(fault))
    return converted


def _dialect(layer: _Layer, given: str, folder: FilePath) -> str | None:
    # Imported here because the dialects need this module's neighbours, and a policy without one needs no dialect.
    from ratelimiter.dialects import loader as dialects  # noqa: PLC0415

    name = given
    if "/" in given or given.endswith(dialects.SUFFIXES):
        # Unlike `folder / given`, this keeps a slash, by which a path is told from a name.
        name = os.path.join(folder, os.path.normpath(given))
        if not os.path.isfile(name):
            msg = f"{shown(given)} is not a file; write the path of a dialect file, relative to the policy"
            raise ValueError(msg)
    elif given not in dialects.names():
        msg = f"{shown(given)} is not a dialect; {schema.suggestion(given, dialects.names())}"
        raise ValueError(msg)
    try:
        dialects.load(name)
    except ConfigError as fault:
        layer.foreign += fault.problems
        return None
    return name


def _principal(layer: _Layer, path: Path, value: Any) -> tuple[Source, ...] | None:
    before = len(layer.problems)
    sources = _each(layer, path, value, values.read_source)
    if len(layer.problems) > before:
        return None
    for index, one in enumerate(sources):
        if one.kind in ("client", "everyone") and index < len(sources) - 1:
            layer.refuse((*path, index + 1), f"{one} is always found, so nothing after it is asked; write {one} last")
            return None
        if one == ORG and "identity" not in layer.document.value:
            layer.refuse((*path, index) if isinstance(value, list) else path, f"{one} {_NEEDS_IDENTITY}")
            return None
        if one in sources[:index]:
            layer.refuse((*path, index), f"{shown(str(one))} is there twice; write it once")
            return None
    return tuple(sources)


def _networks(layer: _Layer, value: Any) -> tuple[Network, ...]:
    networks = tuple(_each(layer, ("trusted_proxies",), value, values.read_network))
    for version in (4, 6):
        same = [network for network in networks if network.version == version]
        if any(network.prefixlen == 0 for network in ipaddress.collapse_addresses(same)):  # type: ignore[type-var]
            text = f"all of IPv{version} is trusted, so every client may choose its address"
            layer.refuse(("trusted_proxies",), f"{text}; write the networks of your proxies")
    return networks


def _proxy(layer: _Layer, value: Mapping[str, Any]) -> dict[str, Any]:
    bounds: dict[str, Any] = {}
    for name, item in value.items():
        if not isinstance(item, str) or name in _NO_DURATION:
            bounds[name] = item
            continue
        try:
            bounds[f"{name}_ms"] = values.read_proxy_timeout_ms(item, 0 if name in _MAY_BE_NOTHING else 1)
        except ValueError as fault:
            layer.refuse(("proxy", name), str(fault))
    return bounds


def _overrides_file(layer: _Layer, path: str) -> str:
    listed = overrides.read_overrides_file(FilePath(path), layer.foreign)
    layer.fields["overrides"] = (*layer.fields.get("overrides", ()), *listed)
    return path


def _identity(layer: _Layer, folder: FilePath) -> Reader:
    return Reader(folder, layer.refuse, layer.foreign)


def _read_secret(layer: _Layer, name: str, value: Any) -> None:
    try:
        if not isinstance(value, (str, bytes)):
            msg = f"a value of type {type(value).__name__} is not a secret; write text or bytes"
            raise ValueError(msg)  # all that is wrong with a value goes the same way
        layer.fields[name] = values.read_secret(value.encode() if isinstance(value, str) else value)
    except ValueError as fault:
        layer.refuse((name,), str(fault))


def _refuse_conflicts(layer: _Layer) -> None:
    stated = layer.document.value if isinstance(layer.document.value, dict) else {}
    for index, requirement in enumerate(layer.fields.get("requirements", ()) if "identity" not in stated else ()):
        if requirement.credentials:
            text = "asks for credentials, and nothing can tell good ones; write identity: with jwt: or api_keys:, too"
            layer.refuse(("require", index), text)
    if layer.fields.get("trusted_proxies") and layer.fields.get("trusted_hops"):
        text = "excludes trusted_proxies; write the one that you know, addresses or number"
        layer.refuse(("trusted_hops",), text, at_key=True)


# --- Rules


def _drafts(layer: _Layer, rules: list[Any]) -> Iterator[_Draft]:
    seen: dict[str, int] = {}
    for index, rule in enumerate(rules):
        path: Path = ("rules", index)
        if not isinstance(rule, dict):
            continue
        draft = _draft(layer, path, rule)
        name = rule.get("name")
        if isinstance(name, str) and layer.sound((*path, "name")):
            if name in seen:
                text = f"{shown(name)} is also the name of rules[{seen[name]}]; write another"
                layer.refuse((*path, "name"), text)
            seen.setdefault(name, index)
        if draft is not None:
            yield draft


def _draft(layer: _Layer, path: Path, rule: Mapping[str, Any]) -> _Draft | None:
    def part(name: str, convert: Callable[[Any], Value]) -> Value | None:
        if name not in rule or not layer.sound((*path, name)):
            return None
        try:
            return convert(rule[name])
        except ValueError as fault:
            layer.refuse((*path, name), str(fault))
            return None

    terms = Terms(
        part("algorithm", str) or "",
        (part("burst", int) or 0) if rule.get("algorithm") == TOKEN_BUCKET else 0,
        part("timezone", values.read_timezone) or "UTC",
        part("lease_ttl", values.read_lease_ttl_ms) or LEASE_TTL_MS,
    )
    limits = part("limit", lambda value: _limits(layer, (*path, "limit"), value, lambda text: parse_limit(text, terms)))
    quota, plans = limits or (None, ())
    stated = {
        "burst": part("burst", int),
        "plans": plans or None,
        "cost": part("cost", int),
        "cost_from": part("cost_from", values.read_cost_from),
        "count": part("count", values.read_count),
        "warn_at": part("warn_at", float),
        "mode": part("mode", Mode),
        "quiet": part("quiet", bool),
        "on_store_error": part("on_store_error", OnStoreError),
        "principal": part("principal", lambda value: _principal(layer, (*path, "principal"), value)),
        "match": part("match", lambda value: _match(layer, (*path, "match"), value)),
    }
    if quota is None:
        return None
    stated = {name: value for name, value in stated.items() if value is not None}
    _refuse_strangers(layer, path, quota, rule)
    if isinstance(quota, Bucket):
        stated.pop("burst", None)  # its capacity
    if layer.sound((*path, "burst")) and layer.sound((*path, "cost")):
        for each in {quota, *(other for _, other in plans if other is not None)}:
            _check_numbers(layer, path, each, stated)
    if isinstance(quota, Slots):
        _refuse_settling(layer, path, stated)
    return _Draft(rule.get("name", ""), quota, stated)


def _limits(
    layer: _Layer, path: Path, value: Any, convert: Callable[[str], AnyQuota]
) -> tuple[AnyQuota, tuple[tuple[str, AnyQuota | None], ...]] | None:
    """The limit, and those of the plans; None if one of them was refused."""
    if not isinstance(value, dict):
        return convert(value), ()
    plans: dict[str, AnyQuota | None] = {}
    for plan, text in value.items():
        try:
            plans[plan] = None if text == UNLIMITED else convert(text)
        except ValueError as fault:
            layer.refuse((*path, plan), str(fault))
    limited = [quota for quota in plans.values() if quota is not None]
    if len(plans) < len(value):
        return None
    if not limited:
        msg = "no plan has a limit here; leave the rule out, or write one like 60/minute"
        raise ValueError(msg)
    if len({quota.kind for quota in limited}) > 1:
        msg = "the plans have limits of different kinds; write limits of one kind, and a rule for each"
        raise ValueError(msg)
    choice = layer.fields.get("plan")
    default = None if choice is None else plans.get(choice.default)
    return default or limited[0], tuple(plans.items())


def _check_plans(layer: _Layer) -> None:
    """Refuse rules that do not have all plans, the default among them."""
    stated = layer.document.value.get("rules") if isinstance(layer.document.value, dict) else None
    limits = [rule.get("limit") for rule in stated if isinstance(rule, dict)] if isinstance(stated, list) else []
    known = {
        plan: index for index, limit in reversed(list(enumerate(limits))) if isinstance(limit, dict) for plan in limit
    }
    choice = layer.fields.get("plan")
    for index, limit in enumerate(limits):
        path: Path = ("rules", index, "limit")
        if not isinstance(limit, dict) or not layer.sound(path):
            continue
        if "plan" not in layer.document.value:
            what = f"write plan: {{default: {next(iter(limit))}}}, too"
            layer.refuse(path, f"is by plan, and nothing says which plan a request is on; {what}")
            continue
        for plan, where in ({} if choice is None else {choice.default: -1} | known).items():
            if plan not in limit:
                who = (
                    "is the default" if choice is not None and plan == choice.default else f"has one in rules[{where}]"
                )
                layer.refuse(
                    path, f"has no limit for plan {shown(plan)}, which {who}; write it, or {plan}: {UNLIMITED}"
                )


def _refuse_settling(layer: _Layer, path: Path, stated: Mapping[str, Any]) -> None:
    source: CostFrom | None = stated.get("cost_from")
    for name in ("count", "cost_from"):
        if name in stated and (name == "count" or (source is not None and source.where == RESPONSE_HEADER)):
            text = "does nothing for what runs at the same time, as all of it is given back; leave it out"
            layer.refuse((*path, name), text, at_key=True)


def _refuse_strangers(layer: _Layer, path: Path, quota: AnyQuota, rule: Mapping[str, Any]) -> None:
    """Refuse fields that mean nothing for the kind of limit that stands beside them."""
    limit = shown(rule["limit"]) if isinstance(rule["limit"], str) else spell_limit(quota)
    strangers = {
        "algorithm": isinstance(quota, Slots | Balance)
        or (isinstance(quota, Period) and quota.credits and rule.get("algorithm") != CALENDAR),
        "burst": bool(rule.get("burst")) and not isinstance(quota, Quota | Bucket),
        "timezone": not isinstance(quota, Period),
        "lease_ttl": not quota.lease_ttl_ms,
    }
    for name, strange in strangers.items():
        if name in rule and strange and layer.sound((*path, name)):
            layer.refuse((*path, name), f"means nothing for {limit}; leave it out", at_key=True)
    if quota.credits and rule.get("on_store_error") == OnStoreError.LOCAL:
        text = "'local' is not for credits, as every process would hand out its share again; write deny or allow"
        layer.refuse((*path, "on_store_error"), text)


def _check_numbers(layer: _Layer, path: Path, quota: AnyQuota, stated: Mapping[str, Any]) -> None:
    burst, cost = stated.get("burst", 0), stated.get("cost", 1)
    if burst and quota.window_ms * LONG_WINDOWS > WINDOW_MS_MAX:
        spans = f"a burst spans {LONG_WINDOWS} windows, and that is over 366 days"
        text = f"{spans}; write a window of at most 36 days, or no burst"
        layer.refuse((*path, "burst"), text)
        return
    try:
        Rule("any", quota, burst=burst)
    except ValueError:
        text = f"{burst} and ten times the limit exceed 1000000000; write a smaller burst or limit"
        layer.refuse((*path, "burst"), text)
        return
    if cost > quota.limit + burst and not isinstance(quota, Balance):  # which may be topped up
        text = f"{cost} never fits a limit of {quota.limit + burst}; write at most {quota.limit + burst}"
        layer.refuse((*path, "cost"), text)


def _match(layer: _Layer, path: Path, value: Mapping[str, Any]) -> Match | None:
    stated = value.get("except", ())
    excepted = (stated,) if isinstance(stated, str) else tuple(stated)
    places = [((*path, "path"), value["path"])] if "path" in value else []
    places += [
        ((*path, "except") if isinstance(stated, str) else (*path, "except", i), t) for i, t in enumerate(excepted)
    ]
    for place, template in places:
        try:
            values.read_template(template)
        except ValueError as fault:
            layer.refuse(place, str(fault))
            return None
    json_fields = _json_fields(layer, (*path, "json"), value.get("json", {}))
    return Match(frozenset(value.get("methods", ())), value.get("path"), excepted, json=json_fields)


def _read_store(url: str) -> str:
    """Return *url* if a store can be opened for it."""
    opened(url)
    return url


def _json_fields(layer: _Layer, path: Path, value: Mapping[str, Any]) -> tuple[Field, ...]:
    fields: dict[str, Field] = {}
    for name, wanted in value.items():
        same = fields.get(name.casefold())
        if same is not None:
            text = f"{shown(name)} is the same as {shown(same.name)}, as case makes no difference; write one of them"
            layer.refuse((*path, name), text, at_key=True)
            continue
        try:
            fields[name.casefold()] = values.read_json_field(name, wanted)
        except ValueError as fault:
            layer.refuse((*path, name), str(fault))
    return tuple(fields.values())


def _assemble(fields: Mapping[str, Any], drafts: Sequence[_Draft], *, whole: bool = True) -> Policy:
    """The policy of *fields*, every one of which is sound; if not *whole*, without its overrides."""
    common = {name: fields[name] for name in ("principal", "mode", "on_store_error") if name in fields}
    ignore_case = fields.get("path_case") == "insensitive"
    rules = []
    for name, draft in zip(_names(drafts), drafts, strict=True):
        stated = common | draft.stated
        if ignore_case and "match" in stated:
            stated["match"] = replace(stated["match"], ignore_case=True)
        rules.append(Rule(name, draft.quota, **stated))
    others = _of_policy(fields)
    drafted = others.pop("overrides", ())
    if ignore_case and "requirements" in others:
        others["requirements"] = tuple(
            replace(requirement, match=replace(requirement.match, ignore_case=True))
            for requirement in others["requirements"]
        )
    policy = Policy(tuple(rules), **others)
    if not whole or not drafted:
        return policy
    try:
        return replace(policy, overrides=overrides.made(drafted, policy))
    except ValueError as fault:  # in its own file, and told of there; but rules may come from elsewhere
        msg = f"overrides: {fault}"
        raise ConfigError(msg) from None


def _of_policy(fields: Mapping[str, Any]) -> dict[str, Any]:
    """The fields of a policy that are no rule's."""
    trust = {_OF_TRUST[name]: value for name, value in fields.items() if name in _OF_TRUST}
    elsewhere = {*_OF_TRUST, *_OF_RULES, "proxy"}
    others = {name: value for name, value in fields.items() if name not in elsewhere}
    if "decision_timeout" in others:
        others["decision_timeout_ms"] = others.pop("decision_timeout")
    return others | ({"trust": Trust(**trust)} if trust else {})


def _names(drafts: Sequence[_Draft]) -> list[str]:
    """A name for every rule: its own, or one for its window, made unique by a number."""
    taken = {draft.name for draft in drafts}
    names = []
    for draft in drafts:
        name = draft.name
        if not name:
            stem = name = name_of(draft.quota)
            number = 2
            while name in taken:
                name = f"{stem}-{number}"
                number += 1
            taken.add(name)
        names.append(name)
    return names


def _changed(policy: Policy, given: Mapping[str, Any]) -> Policy:
    """*policy* with arguments in place of its fields."""
    layer = _read_arguments(given)
    for name in _OF_RULES:
        if name in given:
            layer.refuse((name,), "is a matter of the rules of a ready policy; write it there")
    if layer.problems or layer.foreign:
        raise ConfigError(*layer.told())
    changes = _of_policy(layer.fields)
    trust: dict[str, Any] = {_OF_TRUST[name]: value for name, value in layer.fields.items() if name in _OF_TRUST}
    if "proxies" in trust or "hops" in trust:
        trust = {"proxies": (), "hops": 0} | trust
    if trust:
        changes["trust"] = replace(policy.trust, **trust)
    return replace(policy, **changes)
