"""The fields of a policy at the top level: a table of readers, from plain values that fit the schema to the core's."""

from __future__ import annotations

import ipaddress
import os
from pathlib import Path as FilePath
from typing import TYPE_CHECKING, Any

from ratelimiter.config import override_rows, overrides
from ratelimiter.config.assembly import assemble
from ratelimiter.config.identity import Reader as IdentityReader
from ratelimiter.config.layers import DraftRule
from ratelimiter.config.match import read_match
from ratelimiter.config.principal import read_principal
from ratelimiter.config.rules import check_plans, read_rules
from ratelimiter.core.cors import Cors
from ratelimiter.core.policy import AmbiguousPaths
from ratelimiter.core.rule import Mode, OnStoreError
from ratelimiter.errors import ConfigError
from ratelimiter.parsing import schema, values
from ratelimiter.parsing.document import shown
from ratelimiter.parsing.units import parse_limit
from ratelimiter.stores.factory import opened

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from ratelimiter.config.layers import Layer
    from ratelimiter.core.client_address import Network
    from ratelimiter.core.match import Match

    Reader = Callable[[Layer, Any], Any]  # raises ValueError, or notes the problem itself and returns None

ZERO_ALLOWED = ("lame_duck",)  # of the durations of a proxy
NO_DURATION = ("access_log", "access_log_caller", "half_closed", "underscore_headers", "via")  # of the texts of a proxy
CALLED = {"secret_file": "secret", "require": "requirements"}  # fields that a policy has under another name


def read_layer(layer: Layer) -> None:
    """Read every field and rule of *layer*, and note all problems in it."""
    layer.problems += schema.differences(layer.document, layer.schema)
    if not isinstance(layer.document.value, dict):
        return
    for name, reader in READERS.items():
        if name in layer.document.value and layer.sound((name,)):
            _read_field(layer, name, reader)
    _refuse_conflicts(layer)
    if isinstance(layer.document.value.get("rules"), list):
        layer.rules = list(read_rules(layer, layer.document.value["rules"]))
    elif "limit" in layer.fields:
        limits = layer.fields.pop("limit")
        layer.rules = [DraftRule("", quota, {}) for quota in limits]
    check_plans(layer)
    if not layer.problems and "overrides" in layer.fields:
        for path, text in overrides.faults(layer.fields["overrides"], assemble(layer.fields, layer.rules, whole=False)):
            layer.refuse(path, text)
    if not layer.problems and not layer.foreign and "override_rows" in layer.fields:
        policy = assemble(layer.fields, layer.rules, whole=False)
        layer.foreign += override_rows.faults(layer.fields["override_rows"], layer.fields["overrides_file"], policy)


def _read_field(layer: Layer, name: str, reader: Reader) -> None:
    read = layer.read((name,), layer.document.value[name], lambda value: reader(layer, value))
    if read is not None:
        layer.fields[CALLED.get(name, name)] = read


def _by(convert: Callable[[Any], Any]) -> Reader:
    return lambda _layer, value: convert(value)


def _as_it_is(_layer: Layer, value: Any) -> Any:
    return value


def _read_store(_layer: Layer, url: str) -> str:
    """Return *url* if a store can be opened for it."""
    opened(url)
    return url


def _read_dialect(layer: Layer, given: str) -> str | None:
    # Imported here because a policy without a dialect of its own loads none.
    from ratelimiter.dialects import loader as dialects  # noqa: PLC0415

    name = given
    if "/" in given or given.endswith(dialects.SUFFIXES):
        # Unlike `folder / given`, this keeps a slash, by which a path is told from a name.
        name = os.path.join(layer.folder, os.path.normpath(given))
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


def _read_networks(layer: Layer, value: Any) -> tuple[Network, ...]:
    networks = tuple(layer.read_each(("trusted_proxies",), value, values.read_network))
    for version in (4, 6):
        same = [network for network in networks if network.version == version]
        if any(network.prefixlen == 0 for network in ipaddress.collapse_addresses(same)):  # type: ignore[type-var]
            text = f"all of IPv{version} is trusted, so every client may choose its address"
            layer.refuse(("trusted_proxies",), f"{text}; write the networks of your proxies")
    return networks


def _read_proxy(layer: Layer, value: Mapping[str, Any]) -> dict[str, Any]:
    settings: dict[str, Any] = {}
    for name, item in value.items():
        if name == "upstream_timeouts":
            settings[name] = _read_upstream_timeouts(layer, item)
            continue
        if not isinstance(item, str) or name in NO_DURATION:
            settings[name] = item
            continue
        try:
            settings[f"{name}_ms"] = values.read_proxy_timeout_ms(item, 0 if name in ZERO_ALLOWED else 1)
        except ValueError as fault:
            layer.refuse(("proxy", name), str(fault))
    return settings


def _read_upstream_timeouts(layer: Layer, value: Sequence[Mapping[str, Any]]) -> tuple[tuple[Match, int], ...]:
    timeouts = []
    for index, item in enumerate(value):
        path = ("proxy", "upstream_timeouts", index)
        match = read_match(layer, (*path, "match"), item["match"])
        try:
            timeout_ms = values.read_proxy_timeout_ms(item["timeout"], 1)
        except ValueError as fault:
            layer.refuse((*path, "timeout"), str(fault))
            continue
        if match is not None:
            timeouts.append((match, timeout_ms))
    return tuple(timeouts)


def _read_cors(layer: Layer, value: Mapping[str, Any]) -> Cors | None:
    stated = dict(value)
    origins = stated.pop("origins")
    stated = {name: tuple(item) if isinstance(item, list) else item for name, item in stated.items()}
    try:
        if "max_age" in stated:
            stated["max_age_ms"] = values.read_proxy_timeout_ms(stated.pop("max_age"), 0)
        return Cors((origins,) if isinstance(origins, str) else tuple(origins), **stated)
    except ValueError as fault:
        layer.refuse(("cors",), str(fault))
        return None


def _read_overrides_file(layer: Layer, name: str) -> str:
    path = overrides.path_in(layer.folder, name)
    if FilePath(path).suffix in override_rows.SUFFIXES:
        rows = override_rows.read_rows(FilePath(path), layer.foreign)
        layer.fields["override_rows"] = rows
        listed = overrides.drafts_of(rows)
    else:
        listed = overrides.read_overrides_file(FilePath(path), layer.foreign)
    layer.fields["overrides"] = (*layer.fields.get("overrides", ()), *listed)
    return path


def _refuse_conflicts(layer: Layer) -> None:
    stated = layer.document.value if isinstance(layer.document.value, dict) else {}
    for index, requirement in enumerate(layer.fields.get("requirements", ()) if "identity" not in stated else ()):
        if requirement.credentials:
            text = "needs verified credentials; write identity: with jwt: or api_keys:, too"
            layer.refuse(("require", index), text)
    if layer.fields.get("trusted_proxies") and layer.fields.get("trusted_hops"):
        text = "excludes trusted_proxies; write the one that you know, addresses or number"
        layer.refuse(("trusted_hops",), text, at_key=True)


# Field of a policy -> its reader, in the order in which problems are found. `overrides` stands before `overrides_file`,
# whose entries come after those of the policy file.
READERS: dict[str, Reader] = {
    "name": _as_it_is,
    "domain": _as_it_is,
    "expose_headers": _as_it_is,
    "ipv6_prefix": _as_it_is,
    "trusted_hops": _as_it_is,
    "method_override": _as_it_is,
    "show_principals": _as_it_is,
    "path_case": _as_it_is,
    "json_bytes_max": _as_it_is,
    "store": _read_store,
    "dialect": _read_dialect,
    "headers": _by(values.read_headers),
    "principal": lambda layer, value: read_principal(layer, ("principal",), value),
    "trusted_proxies": _read_networks,
    "client_header": _by(str.lower),
    "on_store_error": _by(OnStoreError),
    "decision_timeout": _by(values.read_decision_timeout_ms),
    "local_share": _by(values.read_local_share),
    "ambiguous_paths": _by(AmbiguousPaths),
    "cors": _read_cors,
    "mode": _by(Mode),
    "proxy": _read_proxy,
    "identity": lambda layer, value: IdentityReader(layer).identity(value),
    "require": lambda layer, value: IdentityReader(layer).requirements(value),
    "plan": _by(overrides.read_plan),
    "overrides": lambda layer, value: overrides.read_overrides(value, ("overrides",), layer.refuse),
    "overrides_file": _read_overrides_file,
    "secret_file": lambda layer, value: values.read_secret_file(layer.folder / value),
    "limit": lambda layer, value: layer.read_each(("limit",), value, parse_limit),
}
