"""Strict YAML 1.2: a file becomes plain values with their places, or a list of all its faults.

Constructs that two readers could read differently (duplicate keys, aliases, merge keys, tags, octal numbers) are
refused, and so is everything that makes a small file large. These checks run on the parser's event stream, before
values are composed: the cost of a hostile file is bounded by its size.
"""

from __future__ import annotations

import json
import re
from typing import TYPE_CHECKING, Any

from ratelimiter.errors import ConfigError
from ratelimiter.parsing.document import (
    SHOWN_MAX,
    START,
    Document,
    Mark,
    Path,
    Problem,
    problem_lines,
    shown,
    shown_name,
)

if TYPE_CHECKING:
    import os
    from collections.abc import Iterator

BYTES_MAX = 1024 * 1024
FOREIGN_BYTES_MAX = 8 * 1024 * 1024
DEPTH_MAX = 20  # lists and mappings inside each other
NODES_MAX = 20_000  # keys and values, in the whole file
DIGITS_MAX = 18  # of a number: no setting needs more
_DROPPED = -1  # key of a refused key: no mapping has a number as key

_WHOLE = re.compile(r"-?(?:0|[1-9][0-9]*)")
_DECIMAL = re.compile(r"-?(?:0|[1-9][0-9]*)\.[0-9]+")
# Scalars that some YAML reader (1.1 or 1.2) takes for a number beside the two above.
_NUMBER_LIKE = re.compile(
    r"""[-+]?(?: [0-9][0-9_]*+\.?+[0-9_]*+(?:[eE][-+]?[0-9]+)?
               | \.[0-9][0-9_]*+(?:[eE][-+]?[0-9]+)?
               | 0[xX][0-9a-fA-F_]+ | 0[oO][0-7_]+ | 0[bB][01_]+
               | \.(?:inf|Inf|INF) ) | \.(?:nan|NaN|NAN)""",
    re.VERBOSE,
)
_BOOLEANS = {"true": True, "false": False}
_NULLS = frozenset({"", "~", "null"})
_WORD_LIKE = {"True": "true", "TRUE": "true", "False": "false", "FALSE": "false", "Null": "null", "NULL": "null"}
# YAML 1.2.2 section 5.1, c-printable, less the tab.
_UNPRINTABLE = re.compile("[^\n\r\x20-\x7e\x85\xa0-\ud7ff\ue000-\ufefe\uff00-\ufffd\U00010000-\U0010ffff]")
_SURROGATE = re.compile("[\ud800-\udfff]")


def read_file(path: str | os.PathLike[str]) -> Document:
    """Read the file at *path*.

    Raises:
        ConfigError: it cannot be read, or is not strict YAML; with every problem.
    """
    return _without_problems(examine_file(path))


def read_text(text: str, name: str) -> Document:
    """Read *text*, which problems call *name*.

    Raises:
        ConfigError: it is not strict YAML; with every problem.
    """
    return _without_problems(examine(text.encode("utf-8", "surrogatepass"), name))


def examine_file(path: str | os.PathLike[str]) -> Document:
    """Read the file at *path* and keep its problems, for a caller that has more to say about it.

    Raises:
        ConfigError: it cannot be read at all.
    """
    name = shown_name(path)
    try:
        with open(path, "rb") as file:
            data = file.read(BYTES_MAX + 1)
    except (OSError, ValueError) as fault:  # ValueError: a NUL in the path
        reason = getattr(fault, "strerror", None) or str(fault)
        msg = f"{name}: cannot be read ({reason}); name a file that this process may read"
        raise ConfigError(msg) from None
    return examine(data, name)


def read_foreign_file(path: str | os.PathLike[str]) -> Any:
    """Return the value of the YAML or JSON file at *path*, which other people wrote: without the strictness of our own.

    Raises:
        ConfigError: it cannot be read, is larger than `FOREIGN_BYTES_MAX`, or is not YAML.
    """
    from ruamel.yaml import YAML  # noqa: PLC0415 - as below
    from ruamel.yaml.error import YAMLError  # noqa: PLC0415

    name = shown_name(path)
    try:
        with open(path, "rb") as file:
            data = file.read(FOREIGN_BYTES_MAX + 1)
        if len(data) > FOREIGN_BYTES_MAX:
            msg = f"{name}: is larger than {FOREIGN_BYTES_MAX} bytes; name a smaller file"
            raise ConfigError(msg)
        text = data.decode("utf-8-sig")
        return json.loads(text) if text.lstrip().startswith("{") else YAML(typ="safe", pure=True).load(text)
    except (OSError, ValueError, RecursionError, YAMLError) as fault:
        reason = getattr(fault, "strerror", None) or " ".join(str(fault).split())[:200]
        msg = f"{name}: cannot be read ({reason}); name a file of JSON or YAML"
        raise ConfigError(msg) from None


def examine(data: bytes, name: str) -> Document:
    """Read *data* and keep its problems."""
    problems = tuple(_raw_problems(data))
    if problems:
        return Document(name, None, problems, readable=False)
    builder = _Builder()
    readable = builder.build(data.decode())
    value = builder.root[0] if builder.root and readable else None
    return Document(name, value, tuple(builder.problems), readable, builder.values, builder.keys)


def _without_problems(document: Document) -> Document:
    if document.problems:
        raise ConfigError(*problem_lines(document, document.problems))
    return document


def _raw_problems(data: bytes) -> Iterator[Problem]:
    """Yield the faults of the bytes, before any YAML."""
    if len(data) > BYTES_MAX:
        yield _at(START, f"the file is larger than {BYTES_MAX} bytes; write a smaller one")
    elif data.startswith((b"\xff\xfe", b"\xfe\xff")) or (b"\0" in data[:4] and data.strip(b"\0")):
        yield _at(START, "the file is UTF-16 or UTF-32; save it as UTF-8")
    elif data.startswith(b"\xef\xbb\xbf"):
        yield _at(START, "the file begins with a byte order mark; save it as UTF-8 without one")
    else:
        yield from _text_problems(data)


def _text_problems(data: bytes) -> Iterator[Problem]:
    try:
        text = data.decode()
    except UnicodeDecodeError as fault:
        before = data[: fault.start].decode()
        yield _at(_mark_after(before), f"byte 0x{data[fault.start]:02x} is not UTF-8; save the file as UTF-8")
        return
    for number, line in enumerate(text.split("\n"), 1):
        unprintable = _UNPRINTABLE.search(line)
        if unprintable is None:
            continue
        mark = (number, unprintable.start() + 1)
        if unprintable.group() == "\t":
            yield _at(mark, "a tab; write spaces, or \\t inside double quotes")
        else:
            character = f"U+{ord(unprintable.group()):04X}"
            yield _at(mark, f"the character {character}; leave it out, or write it as an escape inside double quotes")


def _mark_after(text: str) -> Mark:
    return text.count("\n") + 1, len(text) - (text.rfind("\n") + 1) + 1


def _at(mark: Mark, text: str, path: Path = ()) -> Problem:
    return Problem(*mark, path, text)


class _StopReadingError(Exception):
    """Raised to stop reading: the rest is unreadable, or over a bound."""


class _Frame:
    """One list or mapping that is not complete yet."""

    __slots__ = ("container", "is_key", "key", "key_mark", "lines", "path")

    def __init__(self, container: dict[str, Any] | list[Any], path: Path, *, is_key: bool) -> None:
        self.container = container
        self.path = path
        self.is_key = is_key  # it stands in the place of a key
        self.key: str | int | None = None  # of the value that comes next; None: a key comes next
        self.key_mark: Mark = START
        self.lines: dict[str, int] = {}  # where each key was seen first

    @property
    def awaits_key(self) -> bool:
        return isinstance(self.container, dict) and self.key is None

    @property
    def next_path(self) -> Path:
        step = len(self.container) if isinstance(self.container, list) else self.key
        return (*self.path, _DROPPED if step is None else step)


class _Builder:
    """Turns parser events into values and problems, without recursion."""

    def __init__(self) -> None:
        self.problems: list[Problem] = []
        self.values: dict[Path, Mark] = {}
        self.keys: dict[Path, Mark] = {}
        self.root: list[Any] = []
        self._frames: list[_Frame] = []
        self._documents = 0
        self._nodes = 0

    def build(self, text: str) -> bool:
        """Read *text*; return True if it was read to its end."""
        # Imported here because a limiter without a file needs neither of them.
        from ruamel.yaml import YAML  # noqa: PLC0415
        from ruamel.yaml.error import MarkedYAMLError  # noqa: PLC0415

        parser = YAML(typ="safe", pure=True)
        mark = START
        try:
            for event in parser.parse(text):
                mark = (event.start_mark.line + 1, event.start_mark.column + 1)
                self._take(type(event).__name__, event, mark)
        except _StopReadingError:
            return False
        except MarkedYAMLError as fault:
            where = fault.problem_mark or fault.context_mark
            self._refuse((where.line + 1, where.column + 1) if where else mark, _syntax(fault.problem, fault.context))
            return False
        except Exception:  # a failure of the parser itself, as for "\UFFFFFFFF", is a bad file, too
            self._refuse(mark, "not YAML from here on; check quotes, escapes and indentation")
            return False
        if not self.root and not self.problems:
            self._refuse(START, "the file is empty; write a mapping of settings")
        return bool(self.root)

    def _take(self, kind: str, event: Any, mark: Mark) -> None:
        if kind == "DocumentStartEvent":
            self._begin_document(event, mark)
        elif kind in ("MappingStartEvent", "SequenceStartEvent"):
            self._count(mark)
            self._refuse_decoration(event, mark)
            self._open({} if kind == "MappingStartEvent" else [], mark)
        elif kind in ("MappingEndEvent", "SequenceEndEvent"):
            self._close()
        elif kind == "ScalarEvent":
            self._count(mark)
            self._refuse_decoration(event, mark)
            self._take_scalar(event.value, mark, plain=not event.style)
        elif kind == "AliasEvent":
            self._count(mark)
            self._refuse(mark, f"the alias *{_short(event.anchor)}; write its value out")
            self._put(None, mark)

    def _begin_document(self, event: Any, mark: Mark) -> None:
        self._documents += 1
        if self._documents > 1:
            self._refuse(mark, "a second document begins; write one document per file")
            raise _StopReadingError
        if event.version or event.tags:
            self._refuse(START, "a directive (%YAML or %TAG); leave it out, files are YAML 1.2")

    def _count(self, mark: Mark) -> None:
        self._nodes += 1
        if self._nodes > NODES_MAX:
            self._refuse(mark, f"more than {NODES_MAX} keys and values; write fewer")
            raise _StopReadingError

    def _refuse_decoration(self, event: Any, mark: Mark) -> None:
        if event.anchor is not None:
            self._refuse(mark, f"the anchor &{_short(event.anchor)}; leave it out, aliases are not read")
        if event.tag is not None:
            tag = _short(event.tag).replace("tag:yaml.org,2002:", "!!")
            self._refuse(mark, f"the tag {tag}; leave it out, a value's type is how it is written")

    def _open(self, container: dict[str, Any] | list[Any], mark: Mark) -> None:
        if len(self._frames) == DEPTH_MAX:
            self._refuse(mark, f"nested more than {DEPTH_MAX} deep; write it flatter")
            raise _StopReadingError
        is_key = self._awaits_key()
        if is_key:
            self._refuse(mark, "a key is a list or a mapping; write text")
        path = self._frames[-1].next_path if self._frames else ()
        if not is_key:
            self._put(container, mark)
        self._frames.append(_Frame(container, path, is_key=is_key))

    def _close(self) -> None:
        frame = self._frames.pop()
        if frame.is_key:
            self._frames[-1].key = _DROPPED

    def _take_scalar(self, text: str, mark: Mark, *, plain: bool) -> None:
        if self._awaits_key():
            self._take_key(text, mark, plain=plain)
            return
        if _SURROGATE.search(text):
            self._refuse(mark, "half a surrogate pair; write the character itself")
            self._put(None, mark)
            return
        value, refusal = _resolve(text) if plain else (text, "")
        if refusal:
            self._refuse(mark, refusal)
        # The parser places a value that is not written at the end of the line or at the next: its key says more.
        self._put(value, self._frames[-1].key_mark if plain and not text and self._in_mapping() else mark)

    def _take_key(self, text: str, mark: Mark, *, plain: bool) -> None:
        frame = self._frames[-1]
        frame.key, frame.key_mark = _DROPPED, mark
        value, refusal = _resolve(text) if plain else (text, "")
        if plain and text == "<<":
            self._refuse(mark, "a merge key (<<); write the settings out", frame.path)
        elif refusal or not isinstance(value, str):
            what = shown(text) if text else "nothing"
            self._refuse(mark, f"the key {what} is not text; write it in quotes if it is meant", frame.path)
        elif _SURROGATE.search(text):
            self._refuse(mark, "half a surrogate pair; write the character itself", frame.path)
        elif text in frame.lines:
            self._refuse(mark, f"the key {shown(text)} is also on line {frame.lines[text]}; write it once", frame.path)
        else:
            frame.key = text
            frame.lines[text] = mark[0]
            self.keys[*frame.path, text] = mark

    def _put(self, value: Any, mark: Mark) -> None:
        """Give *value* its place in the list or mapping that is open."""
        if not self._frames:
            self.root.append(value)
            self.values[()] = mark
            return
        frame = self._frames[-1]
        if frame.awaits_key:  # an alias, already refused
            frame.key, frame.key_mark = _DROPPED, mark
            return
        self.values[frame.next_path] = mark
        if isinstance(frame.container, list):
            frame.container.append(value)
        else:
            if isinstance(frame.key, str):
                frame.container[frame.key] = value
            frame.key = None

    def _refuse(self, mark: Mark, text: str, path: Path | None = None) -> None:
        if path is None:
            path = self._frames[-1].next_path if self._frames else ()
        self.problems.append(_at(mark, text, path))

    def _awaits_key(self) -> bool:
        return bool(self._frames) and self._frames[-1].awaits_key

    def _in_mapping(self) -> bool:
        return bool(self._frames) and isinstance(self._frames[-1].container, dict)


def _resolve(text: str) -> tuple[Any, str]:
    """Return the value of a plain scalar (a strict part of YAML 1.2.2 section 10.3), and the reason to refuse it."""
    if text in _NULLS or text in _BOOLEANS:
        return _BOOLEANS.get(text), ""
    if text in _WORD_LIKE:
        return None, f"{text} is a word to some readers; write {_WORD_LIKE[text]}, or '{text}' if you mean text"
    return _number(text) if _NUMBER_LIKE.fullmatch(text) else (text, "")


def _number(text: str) -> tuple[Any, str]:
    if len(text) > DIGITS_MAX:
        return None, f"the number {_short(text)} has more than {DIGITS_MAX} digits; write a smaller one"
    if _WHOLE.fullmatch(text):
        return int(text), ""
    if _DECIMAL.fullmatch(text):
        return float(text), ""
    return None, f"{_short(text)} is read as different numbers by different readers; write a plain number like 1000"


def _syntax(problem: str | None, context: str | None) -> str:
    """Return the parser's error in the words of our messages."""
    if problem and "<document start>" in problem:
        return "this does not fit the lines above it; check the indentation"
    if problem and re.search(r"but got '[\[{]'", problem):
        return "a bracket within a value; write values that hold { } [ ] or , in quotes"
    parts = [part.replace("'<stream end>'", "the end of the file") for part in (problem, context) if part]
    text = ", ".join(" ".join(part.split()) for part in parts) or "not YAML"
    return f"{text[:200]}; check quotes, brackets and indentation"


def _short(text: str) -> str:
    text = text if text.isprintable() else repr(text)
    return text if len(text) <= SHOWN_MAX else text[: SHOWN_MAX - 3] + "..."
