"""`tokens:` of a rule, and the fields that only such a rule has."""

from __future__ import annotations

import os
from decimal import Decimal
from typing import TYPE_CHECKING, Any

from ratelimiter.core.prices import Prices
from ratelimiter.core.token_terms import EstimateTerms, OnDisconnect, TokenTerms
from ratelimiter.core.weights import PLAIN, WEIGHT_MAX, Weights
from ratelimiter.errors import ConfigError
from ratelimiter.parsing import schema, yaml
from ratelimiter.parsing.document import problem_lines, shown
from ratelimiter.tokens import presets

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from ratelimiter.config.layers import Layer
    from ratelimiter.parsing.document import Path

FIELD = "tokens"
ONLY_HERE = ("weights", "prices", "estimate", "on_disconnect", "models")  # fields that mean nothing without it
NEVER_HERE = {  # fields that mean nothing beside it, and why
    "cost": "is what the estimate says, in a rule with tokens; write estimate: {output: 4096}",
    "cost_from": "is what the preset says, in a rule with tokens",
}
STRICT = "strict"


def read_terms(layer: Layer, path: Path, rule: Mapping[str, Any]) -> TokenTerms | None:
    """Return what *rule*, a mapping that keeps to the schema, says of tokens; None if that is nothing, or refused."""
    if FIELD not in rule:
        for name in ONLY_HERE:
            if name in rule:
                what = f"write tokens: with one of {', '.join(presets.names())}, or leave it out"
                layer.refuse((*path, name), f"is for rules with tokens; {what}", at_key=True)
        return None
    for name, why in NEVER_HERE.items():
        if name in rule:
            layer.refuse((*path, name), f"{why}, or leave it out", at_key=True)
    if "weights" in rule and "prices" in rule:
        text = "excludes prices, which have a weight for each model; leave one out"
        layer.refuse((*path, "weights"), text, at_key=True)
    file = _file_in(layer, rule["prices"]) if isinstance(rule.get("prices"), str) else ""

    def part(name: str, absent: Any, convert: Callable[[Any], Any]) -> Any:
        if name not in rule:
            return absent
        return layer.read((*path, name), rule[name], convert) if layer.sound((*path, name)) else None

    preset: str | None = part(FIELD, None, lambda value: _read_preset(layer, value))
    weights: Weights | None = part("weights", PLAIN, _read_weights)
    prices: Prices | None = part("prices", None, lambda value: _read_prices(layer, file, value))
    estimate: EstimateTerms | None = part("estimate", EstimateTerms(), _read_estimate)
    on_disconnect: OnDisconnect | None = part("on_disconnect", OnDisconnect.KEEP, OnDisconnect)
    models: tuple[str, ...] | None = part("models", (), tuple)
    if preset is None or weights is None or estimate is None or on_disconnect is None or models is None:
        return None
    if "prices" in rule and prices is None:
        return None
    return TokenTerms(preset, weights, prices, estimate, on_disconnect, models, file)


def _file_in(layer: Layer, name: str) -> str:
    # Unlike `folder / name`, this keeps a slash, by which a path is told from a name.
    return os.path.join(layer.folder, os.path.normpath(name))


def _read_preset(layer: Layer, given: str) -> str | None:
    name = given
    if presets.is_path(given):
        name = _file_in(layer, given)
        if not os.path.isfile(name):
            msg = f"{shown(given)} is not a file; write the path of a preset file, relative to the policy"
            raise ValueError(msg)
        name = name if "/" in name else f"./{name}"
    elif given not in presets.names():
        msg = f"{shown(given)} is not a preset; {schema.suggestion(given, presets.names())}"
        raise ValueError(msg)
    try:
        presets.load(name)
    except ConfigError as fault:
        layer.foreign += fault.problems
        return None
    return name


def _decimal(value: float) -> Decimal:
    return Decimal(str(value))  # as it was written: in binary 0.1 is a little more


def _read_weights(value: Mapping[str, float]) -> Weights:
    try:
        weights = Weights(**{kind: _decimal(number) for kind, number in value.items()}) if value else PLAIN
    except ValueError as fault:
        msg = f"{fault}; write fewer decimals, or a number up to {WEIGHT_MAX}"
        raise ValueError(msg) from None
    if weights.of_input_max == weights.of_output_max == 0:
        msg = "nothing has a weight above 0, so nothing would be counted; write one for input or output"
        raise ValueError(msg)
    return weights


def _read_estimate(value: Mapping[str, Any] | str) -> EstimateTerms:
    return EstimateTerms(strict=True) if value == STRICT else EstimateTerms(**dict(value))  # type: ignore[arg-type]


def _read_prices(layer: Layer, file: str, value: Mapping[str, Any] | str) -> Prices | None:
    if isinstance(value, str):
        table = _table_in(layer, file)
        if table is None:
            return None
        value = table
    models = tuple(
        (model, tuple((kind, _decimal(money)) for kind, money in price.items()))
        for model, price in value["models"].items()
    )
    try:
        return Prices(models, _decimal(value["credit"]), value.get("per", 1_000_000))
    except ValueError as fault:
        msg = f"{fault}; write a larger credit"
        raise ValueError(msg) from None


def _table_in(layer: Layer, file: str) -> Mapping[str, Any] | None:
    """Return the price table in *file*; None if it was refused, with its problems noted."""
    try:
        document = yaml.examine_file(file)
    except ConfigError as fault:
        layer.foreign += fault.problems
        return None
    problems = list(document.problems)
    if document.readable:
        wanted = layer.schema["$defs"]["prices"] | {"$defs": layer.schema["$defs"]}
        problems += schema.differences(document, wanted)
    if problems:
        layer.foreign += problem_lines(document, problems)
        return None
    table: Mapping[str, Any] = document.value
    return table
