"""The section `match` of a rule or a requirement: from plain values, which fit the schema, to `Match`."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from ratelimiter.core.match import Condition, Match
from ratelimiter.core.overrides import parse_pattern
from ratelimiter.parsing import values
from ratelimiter.parsing.document import shown

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from ratelimiter.config.layers import Layer
    from ratelimiter.core.json_body import JsonField
    from ratelimiter.parsing.document import Path


def read_match(layer: Layer, path: Path, value: Mapping[str, Any]) -> Match | None:
    """Return the condition in *value*, which stands at *path*; None if a path template was refused."""
    stated = value.get("except", ())
    excepted = (stated,) if isinstance(stated, str) else tuple(stated)
    stated_path = value.get("path", ())
    places: list[tuple[Path, str]] = (
        [((*path, "path"), stated_path)]
        if isinstance(stated_path, str)
        else [((*path, "path", index), template) for index, template in enumerate(stated_path)]
    )
    places += [
        ((*path, "except") if isinstance(stated, str) else (*path, "except", index), template)
        for index, template in enumerate(excepted)
    ]
    for place, template in places:
        try:
            values.read_template(template)
        except ValueError as fault:
            layer.refuse(place, str(fault))
            return None
    json_fields = _read_json_fields(layer, (*path, "json"), value.get("json", {}))
    conditions = tuple(_read_conditions(layer, path, value))
    networks = layer.read_each((*path, "networks"), value.get("networks", []), values.read_network)
    if "plan" in value and "plan" not in layer.document.value and layer.sound((*path, "plan")):
        text = "is a condition, and nothing says which plan a request is on; write plan: {default: NAME}, too"
        layer.refuse((*path, "plan"), text)
    several = isinstance(value.get("path"), list)
    return Match(
        frozenset(value.get("methods", ())),
        None if several else value.get("path"),
        excepted,
        json=json_fields,
        excepted_methods=frozenset(value.get("except_methods", ())),
        paths=tuple(value["path"]) if several else (),
        conditions=conditions,
        networks=tuple(networks),
        plans=frozenset(_listed(value.get("plan", ()))),
        identified=value.get("identified"),
    )


def _listed(value: Any) -> list[Any]:
    return list(value) if isinstance(value, (list, tuple)) else [value]


def _read_conditions(layer: Layer, path: Path, value: Mapping[str, Any]) -> Iterator[Condition]:
    """Yield the conditions on the host, headers, query parameters and cookies."""
    if "host" in value:
        hosts = [str(host).lower() for host in _listed(value["host"])]
        yield from _read_condition(layer, (*path, "host"), "host", "", hosts)
    for kind in ("header", "query", "cookie"):
        seen: dict[str, str] = {}
        for name, wanted in value.get(kind, {}).items():
            called = name.lower() if kind == "header" else name
            if called in seen:
                text = f"{shown(name)} is the same header as {shown(seen[called])}; write one of them"
                layer.refuse((*path, kind, name), text, at_key=True)
                continue
            seen[called] = name
            yield from _read_condition(layer, (*path, kind, name), kind, called, _listed(wanted))


def _read_condition(layer: Layer, path: Path, kind: str, name: str, wanted: list[Any]) -> Iterator[Condition]:
    patterns = []
    for each in wanted:
        try:
            patterns.append(parse_pattern(str(each)))
        except ValueError as fault:
            layer.refuse(path, str(fault))
            return
    exact = frozenset(str(each).encode() for each, pattern in zip(wanted, patterns, strict=True) if pattern is None)
    yield Condition(kind, name, exact, tuple(pattern for pattern in patterns if pattern is not None))


def _read_json_fields(layer: Layer, path: Path, value: Mapping[str, Any]) -> tuple[JsonField, ...]:
    fields: dict[str, JsonField] = {}
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
