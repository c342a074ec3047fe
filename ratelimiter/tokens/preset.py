"""One provider's spelling of the model, the bound of the output and the usage, as data."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, NamedTuple

from ratelimiter.core.usage import KINDS
from ratelimiter.tokens.json_scanner import tree_of

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from ratelimiter.tokens.json_scanner import Tree

NAME_CHARACTERS_MAX = 64  # of one name in a path
NEEDLE_CHARACTERS_MIN = 6  # of a text that stands for several names; shorter ones would be met too often

MemberPath = tuple[str, ...]


class Member(NamedTuple):
    """A figure below the place of a usage object."""

    path: MemberPath
    optional: bool = False  # counts as 0 where it is absent; else the sum is unknown


class Form(NamedTuple):
    """One way to spell usage. Each sum is over members of the same object."""

    places: tuple[MemberPath, ...]  # where the object may be; the empty path is the document itself
    sums: Mapping[str, tuple[Member, ...]]  # by one of `KINDS`


class Mark(NamedTuple):
    """Something of an event that says that the stream ends, or that it failed."""

    path: MemberPath = ()  # of a member that is there and not null; with *value*, that equals it
    value: str | bool | None = None
    text: str = ""  # instead: the whole data of an event
    event: str = ""  # instead: the event's name


class HeaderSums(NamedTuple):
    """Response header fields that have figures where the body has none."""

    input: str
    output: str


@dataclass(frozen=True, slots=True)
class Preset:
    """The members of interest in requests and answers of one API.

    Args:
        name: of its file.
        about: the API, in one line.
        free: ends of the paths of POST requests that use no tokens, like those that count them.
        model: member of the request with the model.
        model_path: texts of the path before and behind the model, for APIs that have it there; before the body's.
        output: members of the request that bound the output; the first one that is there counts.
        output_absent: bound of the output where the request names none and the API has a default; None if the API has
            no default.
        times: members of the request that multiply the output; the largest one counts.
        unseen: names and values in the request that refer to input which is not in it, like stored prompts.
        forms: ways to spell usage; the first one that is complete counts.
        headers: response header fields with figures, for answers whose body has none.
        ends: marks of the event after which a stream has said everything.
        end_required: without such an event a stream's figures are not final, even if it ended cleanly.
        fails: marks of the event that ends a stream in an error.
        array: the answer may be one array of events.
        base64: member of an event's payload that has the event in base64; empty if the payload is the event.

    Attributes:
        tree: of all members of answers that matter.
        uses: by index in *tree*, the (form, member) pairs that the member is a figure of.
        ends_at: by index in *tree*, the values that end a stream; None stands for any.
        fails_at: by index in *tree*, the values that fail a stream.
        figure_needles: texts of which an event has at least one if it has figures.
        mark_needles: texts of which an event has at least one if it ends or fails a stream.
        needles: both.
        quoted: the name of each figure in quotes, with its (form, member) pairs.

    Raises:
        ValueError: paths collide.
    """

    name: str
    about: str
    forms: tuple[Form, ...]
    free: tuple[str, ...] = ()
    model: MemberPath = ("model",)
    model_path: tuple[str, str] | None = None
    output: tuple[MemberPath, ...] = ()
    output_absent: int | None = None
    times: tuple[MemberPath, ...] = ()
    unseen: tuple[str, ...] = ()
    headers: HeaderSums | None = None
    ends: tuple[Mark, ...] = ()
    end_required: bool = False
    fails: tuple[Mark, ...] = ()
    array: bool = False
    base64: str = ""
    tree: Tree = field(init=False, repr=False)
    uses: tuple[tuple[tuple[int, MemberPath], ...], ...] = field(init=False, repr=False)
    ends_at: Mapping[int, frozenset[str | bool | None]] = field(init=False, repr=False)
    fails_at: Mapping[int, frozenset[str | bool | None]] = field(init=False, repr=False)
    end_texts: frozenset[bytes] = field(init=False, repr=False)
    end_events: frozenset[str] = field(init=False, repr=False)
    fail_events: frozenset[str] = field(init=False, repr=False)
    figure_needles: tuple[bytes, ...] = field(init=False, repr=False)
    mark_needles: tuple[bytes, ...] = field(init=False, repr=False)
    needles: tuple[bytes, ...] = field(init=False, repr=False)
    quoted: tuple[tuple[bytes, Sequence[tuple[int, MemberPath]]], ...] = field(init=False, repr=False)

    def __post_init__(self) -> None:
        uses: dict[MemberPath, list[tuple[int, MemberPath]]] = {}
        for number, form in enumerate(self.forms):
            for place in form.places:
                for member in dict.fromkeys(member.path for sum_ in form.sums.values() for member in sum_):
                    uses.setdefault((*place, *member), []).append((number, member))
        marks = [mark.path for mark in (*self.ends, *self.fails) if mark.path]
        paths = list(dict.fromkeys([*uses, *marks]))
        set_ = object.__setattr__
        set_(self, "tree", tree_of(paths))
        set_(self, "uses", tuple(tuple(uses.get(path, ())) for path in paths))
        set_(self, "ends_at", _marked(self.ends, paths))
        set_(self, "fails_at", _marked(self.fails, paths))
        set_(self, "end_texts", frozenset(mark.text.encode() for mark in self.ends if mark.text))
        set_(self, "end_events", frozenset(mark.event for mark in self.ends if mark.event))
        set_(self, "fail_events", frozenset(mark.event for mark in self.fails if mark.event))
        names = sorted({path[-1] for path in uses})
        set_(self, "figure_needles", _figure_needles(names))
        set_(self, "mark_needles", tuple(dict.fromkeys(map(_mark_needle, (*self.ends, *self.fails)))))
        set_(self, "needles", tuple(dict.fromkeys([*self.figure_needles, *self.mark_needles])))
        set_(self, "quoted", tuple((f'"{path[-1]}"'.encode(), uses[path]) for path in uses))

    def kinds(self) -> Sequence[str]:
        """Return the kinds of figures that this API tells apart."""
        return [kind for kind in KINDS if any(form.sums.get(kind) for form in self.forms)]


def _marked(marks: Iterable[Mark], paths: Sequence[MemberPath]) -> Mapping[int, frozenset[str | bool | None]]:
    values: dict[int, set[str | bool | None]] = {}
    for mark in marks:
        if mark.path:
            values.setdefault(paths.index(mark.path), set()).add(mark.value)
    return {index: frozenset(found) for index, found in values.items()}


def _figure_needles(names: Sequence[str]) -> tuple[bytes, ...]:
    common = _common(names)
    found = [common] if len(common) >= NEEDLE_CHARACTERS_MIN else [f'"{name}"' for name in names]
    return tuple(needle.encode() for needle in found)


def _mark_needle(mark: Mark) -> bytes:
    if isinstance(mark.value, str):
        return f'"{mark.value}"'.encode()
    return (f'"{mark.path[-1]}"' if mark.path else mark.text or mark.event).encode()


def _common(names: Sequence[str]) -> str:
    """Return the longest text that each of *names* contains."""
    shortest = min(names, key=len, default="")
    texts = (shortest[start:end] for start in range(len(shortest)) for end in range(len(shortest), start, -1))
    return max((text for text in texts if all(text in name for name in names)), key=len, default="")
