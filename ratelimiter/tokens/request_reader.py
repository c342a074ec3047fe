"""The part of a request that counts before the call: its model, a bound of the output, references to other input."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple
from urllib.parse import unquote

from ratelimiter.tokens.json_scanner import JsonScanner, tree_of
from ratelimiter.tokens.needles import matters

if TYPE_CHECKING:
    from ratelimiter.tokens.json_scanner import Tree, Value
    from ratelimiter.tokens.preset import Preset

MODEL_CHARACTERS_MAX = 256  # as of an ARN; a longer one is none
TIMES_MAX = 1024  # of the choices that a request asks for; more is not believed


class Wanted(NamedTuple):
    """The model and the output that a request asks for."""

    model: str | None  # None if it does not say
    output: int | None  # tokens that may be made for one choice; None if it sets no bound
    times: int = 1  # choices
    unseen: bool = False  # it refers to input that is not in it, or may do so


class RequestReader:
    """Reads requests of one API.

    Args:
        preset: says what to look for.
    """

    __slots__ = ("_model", "_outputs", "_preset", "_times", "_tree", "_unseen")

    def __init__(self, preset: Preset) -> None:
        self._preset = preset
        paths = list(dict.fromkeys([preset.model, *preset.output, *preset.times]))
        self._tree: Tree = tree_of(paths)
        self._model = paths.index(preset.model)
        self._outputs = tuple(paths.index(path) for path in preset.output)
        self._times = tuple(paths.index(path) for path in preset.times)
        self._unseen = tuple(f'"{text}"'.encode() for text in preset.unseen)

    def free(self, method: str, path: str) -> bool:
        """Return True if a request of *method* on *path* uses no tokens."""
        return method.upper() != "POST" or path.endswith(self._preset.free)

    def read(self, path: str, body: bytes | None) -> Wanted:
        """Return what a request on *path* asks for, as far as *body* or its beginning says.

        A bound that is not an integer sets none. A body that is not known as a whole may refer to input elsewhere.
        """
        model = self._model_of(path)
        if body is None:
            return Wanted(model, None, unseen=bool(self._unseen))
        scanner = JsonScanner(self._tree)
        scanner.feed(body)
        scanner.end()
        values = {} if scanner.broken else scanner.values
        if model is None:
            named = values.get(self._model)
            model = named if isinstance(named, str) and len(named) <= MODEL_CHARACTERS_MAX else None
        output = next((values[index] for index in self._outputs if index in values), None)
        times = max((_times(values[index]) for index in self._times if index in values), default=1)
        unseen = bool(self._unseen) and (not scanner.complete or matters(body, self._unseen))
        return Wanted(model, _bound(output), times, unseen)

    def _model_of(self, path: str) -> str | None:
        if self._preset.model_path is None:
            return None
        after, until = self._preset.model_path
        _, found, rest = path.rpartition(after)
        if not found:
            return None
        model = unquote(rest.partition(until)[0])
        return model if 0 < len(model) <= MODEL_CHARACTERS_MAX else None


def _bound(value: Value | None) -> int | None:
    return value if type(value) is int else None


def _times(value: Value) -> int:
    return max(1, min(value, TIMES_MAX)) if type(value) is int else 1
