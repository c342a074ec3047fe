"""The section `match` of a rule or a requirement: from plain values, which fit the schema, to `Match`."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from ratelimiter.core.match import Match
from ratelimiter.parsing import values
from ratelimiter.parsing.document import shown

if TYPE_CHECKING:
    from collections.abc import Mapping

    from ratelimiter.config.layers import Layer
    from ratelimiter.core.json_body import JsonField
    from ratelimiter.parsing.document import Path


def read_match(layer: Layer, path: Path, value: Mapping[str, Any]) -> Match | None:
    """Return the condition in *value*, which stands at *path*; None if a path template was refused."""
    stated = value.get("except", ())
    excepted = (stated,) if isinstance(stated, str) else tuple(stated)
    places: list[tuple[Path, str]] = [((*path, "path"), value["path"])] if "path" in value else []
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
    return Match(frozenset(value.get("methods", ())), value.get("path"), excepted, json=json_fields)


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
