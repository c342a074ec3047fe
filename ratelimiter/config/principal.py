"""The setting `principal` of a policy or a rule: the sources that are tried in order."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from ratelimiter.core.principal import ORG, Source
from ratelimiter.parsing import values
from ratelimiter.parsing.document import shown

if TYPE_CHECKING:
    from ratelimiter.config.layers import Layer
    from ratelimiter.parsing.document import Path

NEEDS_IDENTITY = "needs verified credentials; write identity: with jwt: or api_keys:, too"


def read_principal(layer: Layer, path: Path, value: Any) -> tuple[Source, ...] | None:
    """Return the sources in *value*, which stands at *path*; None if any was refused."""
    before = len(layer.problems)
    sources: list[Source] = []
    for index, item in enumerate(value if isinstance(value, list) else [value]):
        at = (*path, index) if isinstance(value, list) else path
        if isinstance(item, list):
            parts = layer.read_each(at, item, values.read_source)
            if len(layer.problems) > before:
                continue
            twice = sorted({str(part) for part in parts if parts.count(part) > 1})
            if twice:
                layer.refuse(at, f"{twice[0]} is there twice in one combination; write it once")
            sources.append(Source("all", parts=tuple(parts)) if len(parts) > 1 else parts[0])
        else:
            sources += layer.read_each(at, item, values.read_source)
    if len(layer.problems) > before:
        return None
    for index, source in enumerate(sources):
        if source.kind in ("client", "everyone") and index < len(sources) - 1:
            text = f"{source} is always found, so later sources are never used; write {source} last"
            layer.refuse((*path, index + 1), text)
            return None
        if ORG in source.each and "identity" not in layer.document.value:
            layer.refuse((*path, index) if isinstance(value, list) else path, f"{source} {NEEDS_IDENTITY}")
            return None
        if source in sources[:index]:
            layer.refuse((*path, index), f"{shown(str(source))} is there twice; write it once")
            return None
    return tuple(sources)
