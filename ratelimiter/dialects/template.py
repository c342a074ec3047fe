"""Data with placeholders in it, compiled once into byte segments, so that writing it out is a join.

`{word}` stands for a value, `{{` and `}}` for the braces themselves. A string that is nothing but one placeholder takes
the value as it is (number, list, object); inside other text the value becomes text. Every value is escaped for its
place: none can end the JSON string, the line or the header field that holds it.
"""

from __future__ import annotations

import json
import re
from typing import TYPE_CHECKING, Any, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping

    Encoder = Callable[[Any], bytes]

# Separators and key order as json.dumps has them; characters beyond ASCII as they are, in UTF-8 (RFC 8259 section 8.1).
_write = json.JSONEncoder(ensure_ascii=False, allow_nan=False).encode
_write_ascii = json.JSONEncoder(allow_nan=False).encode

_TOKEN = re.compile(r"\{\{|\}\}|\{([^{}]*)\}|[{}]")
_BRACES = {"{{": "{", "}}": "}"}

EXPANDED_MAX = 256 * 1024  # bytes of one template with all its words filled in: words within words multiply

# Characters that end a line for some reader, or that a header field may not hold (RFC 9110 section 5.5).
_CONTROL = re.compile("[\x00-\x1f\x7f-\x9f\u2028\u2029]+")


class Raw(bytes):
    """JSON that is written already."""

    __slots__ = ()


class TemplateError(ValueError):
    """A string that is not a template; the message says why and what would do."""


class MissingWordError(LookupError):
    """A template needs a word without a value.

    Attributes:
        word: the word.
    """

    def __init__(self, word: str) -> None:
        super().__init__(f"{{{word}}} has no value here")
        self.word = word


class Scope(NamedTuple):
    """The words that are known when a template is compiled.

    Args:
        given: words whose values come with each occurrence.
        known: words that have a value already, itself a template.
        optional: words that need no value: an object's member that is nothing but one of these is left out without it.
    """

    given: frozenset[str]
    known: Mapping[str, Any]
    optional: frozenset[str] = frozenset()

    def inside(self, word: str) -> Scope:
        """Return the scope within the value of *word*, where that word itself has no value."""
        return self._replace(known={other: value for other, value in self.known.items() if other != word})


class Template(NamedTuple):
    """Byte segments with holes."""

    segments: tuple[bytes, ...]
    holes: tuple[tuple[int, str, Encoder], ...]  # index into the segments, word, how its value is written

    @property
    def words(self) -> frozenset[str]:
        """The words that `render` needs."""
        return frozenset(word for _, word, _ in self.holes)

    def render(self, facts: Mapping[str, Any]) -> bytes:
        """Fill the holes.

        Raises:
            KeyError: a word of the template is not among *facts*.
            TypeError: JSON cannot hold a value.
        """
        segments = list(self.segments)
        for index, word, encode in self.holes:
            segments[index] = encode(facts[word])
        return b"".join(segments)


def compile_json(node: Any, scope: Scope) -> Template:
    """Make *node* (mapping, list, string, number, true, false, nothing) a template of JSON.

    Raises:
        MissingWordError: it needs a word that *scope* does not have.
        TemplateError: a string in it is no template.
    """
    return _assemble(_json_pieces(node, scope))


def compile_line(text: str, scope: Scope) -> Template:
    """Make *text* a template of plain text on one line, in UTF-8.

    Raises:
        MissingWordError: it needs a word that *scope* does not have.
        TemplateError: it is no template.
    """
    return _assemble(_text_pieces(text, scope, _line))


def compile_header(text: str, scope: Scope) -> Template:
    """Make *text* a template of a header field's value, in ASCII; other characters become `?`.

    Raises:
        MissingWordError: it needs a word that *scope* does not have.
        TemplateError: it is no template.
    """
    return _assemble(_text_pieces(text, scope, _header))


def tokens(text: str) -> Iterator[tuple[str, str]]:
    """Yield *text* in pairs: plain text (braces undoubled), and the word that follows it; the last word is empty.

    Raises:
        TemplateError: a brace stands alone.
    """
    plain, position = "", 0
    for match in _TOKEN.finditer(text):
        plain += text[position : match.start()]
        position = match.end()
        token, word = match.group(), match.group(1)
        if word:
            yield plain, word
            plain = ""
        elif word is not None:
            msg = "{} names no word; write {{}} for the braces themselves"
            raise TemplateError(msg)
        elif token in _BRACES:
            plain += _BRACES[token]
        else:
            msg = f"a single {token}; write {token * 2} for the brace itself"
            raise TemplateError(msg)
    yield plain + text[position:], ""


def lone_word(node: Any) -> str | None:
    """Return the word of a string that is nothing but one placeholder."""
    match = _TOKEN.fullmatch(node) if isinstance(node, str) else None
    return match.group(1) if match else None


def to_json(value: Any) -> bytes:
    """Return *value* as JSON.

    Raises:
        TypeError: JSON cannot hold it.
        ValueError: it holds a number that is not finite.
    """
    kind = type(value)
    if kind is int:
        return b"%d" % value
    if kind is Raw:
        return bytes(value)
    if kind is list and value and all(type(item) is str for item in value):
        return b"[%b]" % b", ".join([to_json(item) for item in value])
    try:
        return _write(value).encode()
    except UnicodeEncodeError:
        # Half of a surrogate pair is no UTF-8; as an escape it is still JSON.
        return _write_ascii(value).encode()


def to_text(value: Any) -> str:
    """Return *value* as it reads inside a sentence."""
    if isinstance(value, str):
        return value
    if isinstance(value, Raw):
        return value.decode()
    if isinstance(value, (list, tuple)) and all(isinstance(item, str) for item in value):
        return ", ".join(value)
    return to_json(value).decode()


def _quoted(value: Any) -> bytes:
    if type(value) is int:
        return b"%d" % value
    return to_json(to_text(value))[1:-1]


def _line(value: Any) -> bytes:
    if type(value) is int:
        return b"%d" % value
    return _CONTROL.sub(" ", to_text(value)).encode("utf-8", "replace")


def _header(value: Any) -> bytes:
    return _CONTROL.sub(" ", to_text(value)).encode("ascii", "replace")


class _Hole(NamedTuple):
    word: str
    encode: Encoder


def _assemble(pieces: Iterator[bytes | _Hole]) -> Template:
    segments: list[bytes] = []
    holes: list[tuple[int, str, Encoder]] = []
    plain: list[bytes] = []  # since the last hole
    length = 0
    for piece in pieces:
        length += 1 if isinstance(piece, _Hole) else len(piece) + 1
        if length > EXPANDED_MAX:
            msg = f"grows beyond {EXPANDED_MAX} bytes, as its words contain other words; write these out"
            raise TemplateError(msg)
        if isinstance(piece, _Hole):
            segments += (b"".join(plain), b"")
            holes.append((len(segments) - 1, piece.word, piece.encode))
            plain = []
        else:
            plain.append(piece)
    segments.append(b"".join(plain))
    return Template(tuple(segments), tuple(holes))


def _json_pieces(node: Any, scope: Scope) -> Iterator[bytes | _Hole]:
    word = lone_word(node)
    if word is not None:
        if word in scope.given:
            yield _Hole(word, to_json)
        elif word in scope.known:
            yield from _json_pieces(scope.known[word], scope.inside(word))
        else:
            raise MissingWordError(word)
    elif isinstance(node, str):
        yield b'"'
        yield from _text_pieces(node, scope, _quoted)
        yield b'"'
    elif isinstance(node, dict):
        yield from _object_pieces(node, scope)
    elif isinstance(node, list):
        yield b"["
        for index, item in enumerate(node):
            yield b", " if index else b""
            yield from _json_pieces(item, scope)
        yield b"]"
    else:
        yield to_json(node)


def _object_pieces(node: Mapping[str, Any], scope: Scope) -> Iterator[bytes | _Hole]:
    separator = b"{"
    for name, value in node.items():
        if _left_out(value, scope):
            continue
        yield b"%b%b: " % (separator, to_json(name))
        yield from _json_pieces(value, scope)
        separator = b", "
    yield b"{}" if separator == b"{" else b"}"


def _left_out(node: Any, scope: Scope) -> bool:
    word = lone_word(node)
    if word is None or word in scope.given:
        return False
    if word in scope.known:
        return _left_out(scope.known[word], scope.inside(word))
    return word in scope.optional


def _text_pieces(text: str, scope: Scope, encode: Encoder) -> Iterator[bytes | _Hole]:
    for plain, word in tokens(text):
        yield encode(plain)
        if not word:
            continue
        if word in scope.given:
            yield _Hole(word, encode)
        elif word not in scope.known:
            raise MissingWordError(word)
        elif isinstance(scope.known[word], str):
            yield from _text_pieces(scope.known[word], scope.inside(word), encode)
        else:
            yield encode(scope.known[word])
