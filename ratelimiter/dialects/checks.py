"""The faults of a dialect's document that its schema cannot find: in templates, words, references and parts."""

from __future__ import annotations

from difflib import get_close_matches
from typing import TYPE_CHECKING, Any

from ratelimiter.dialects.template import TemplateError, tokens
from ratelimiter.dialects.words import GIVABLE, OF_FINDING, VOCABULARY

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping

    Path = tuple[str | int, ...]

OUR_HEADERS = frozenset(  # which follow from the answer, or from the connection (RFC 9110 section 7.6.1)
    {"cache-control", "connection", "content-length", "content-type", "retry-after", "transfer-encoding"}
)


def faults(document: Mapping[str, Any]) -> list[tuple[Path, str]]:
    """Return every fault of *document*, with its path."""
    return [*_template_faults(document), *_reference_faults(document), *_part_faults(document)]


def _template_faults(document: Mapping[str, Any]) -> Iterator[tuple[Path, str]]:
    """Yield every string that is not a template, or uses a word that has no value in its place."""
    whole = VOCABULARY
    yield from _word_faults(document["body"], ("body",), whole)
    yield from _word_faults(document.get("shapes"), ("shapes",), whole)
    yield from _word_faults(document.get("details"), ("details",), whole - {"details"})
    yield from _word_faults(document.get("headers"), ("headers",), whole - {"details", "findings"})
    yield from _word_faults(document.get("titles"), ("titles",), frozenset())
    finding = document.get("validation", {}).get("finding")
    yield from _word_faults(finding, ("validation", "finding"), OF_FINDING | {"code", "message", "status", "title"})
    for path, use in (*_entries(document), *_uses(document)):
        yield from _use_faults(use, path)


def _use_faults(use: Any, path: Path) -> Iterator[tuple[Path, str]]:
    if not isinstance(use, dict):
        return
    yield from _word_faults(use.get("code"), (*path, "code"), frozenset())
    message = "message" if "message" in use else "cause"
    yield from _word_faults(use.get(message), (*path, message), VOCABULARY - {"message", "details"})
    yield from _word_faults(use.get("details"), (*path, "details"), VOCABULARY - {"details"})
    yield from _word_faults(use.get("body"), (*path, "body"), VOCABULARY)
    yield from _word_faults(use.get("headers"), (*path, "headers"), VOCABULARY - {"details", "findings"})
    for word, value in use.get("defaults", {}).items():
        if word not in GIVABLE:
            yield (*path, "defaults", word), f"{word!r} is not a word; {suggestion(word, GIVABLE)}"
        yield from _word_faults(value, (*path, "defaults", word), frozenset())


def _word_faults(node: Any, path: Path, allowed: frozenset[str]) -> Iterator[tuple[Path, str]]:
    if isinstance(node, dict):
        for key, value in node.items():
            yield from _word_faults(value, (*path, key), allowed)
    elif isinstance(node, list):
        for index, value in enumerate(node):
            yield from _word_faults(value, (*path, index), allowed)
    elif isinstance(node, str):
        try:
            words = [word for _, word in tokens(node) if word]
        except TemplateError as fault:
            yield path, str(fault)
            return
        for word in words:
            if word not in VOCABULARY:
                yield path, f"{{{word}}} is not a word; {suggestion(word, allowed or VOCABULARY, '{{{}}}')}"
            elif word not in allowed:
                yield path, f"{{{word}}} has no value here; {_words(allowed)}"


def _reference_faults(document: Mapping[str, Any]) -> Iterator[tuple[Path, str]]:
    """Yield every reference to an answer or shape that does not exist."""
    answers, shapes = document["answers"], document.get("shapes", {})
    for path, use in (*_entries(document), *_uses(document)):
        if isinstance(use, dict) and "shape" in use:
            if use["shape"] not in shapes:
                yield (*path, "shape"), f"there is no shape {use['shape']!r}; {suggestion(use['shape'], shapes)}"
            if "body" in use:
                yield (*path, "shape"), "shape and body exclude each other; leave one out"
    for path, use in _uses(document):
        place, name = (path, use) if isinstance(use, str) else ((*path, "answer"), use["answer"])
        if name not in answers:
            yield place, f"there is no answer {name!r}; {suggestion(name, answers)}"
        elif path[0] == "statuses" and answers[name]["status"] != int(path[1]):
            yield place, f"{name} has the status {answers[name]['status']}; name an answer with {path[1]}"


def _part_faults(document: Mapping[str, Any]) -> Iterator[tuple[Path, str]]:
    """Yield every body whose type differs from the dialect's, and every header field that a dialect may not set."""
    text = isinstance(document["body"], str)
    bodies: list[tuple[Path, Any]] = [(("shapes", name), body) for name, body in document.get("shapes", {}).items()]
    for path, use in (*_entries(document), *_uses(document)):
        if isinstance(use, dict) and "body" in use:
            bodies.append(((*path, "body"), use["body"]))
    for path, body in bodies:
        if isinstance(body, str) is not text:
            yield path, f"one body is text, another an object; write {'text' if text else 'an object'}, as body is"
    for path, holder in (((), document), *_entries(document)):
        for name in holder.get("headers", {}):
            if name.lower() in OUR_HEADERS:
                yield (*path, "headers", name), f"{name} is written by the limiter; leave it out"


def _entries(document: Mapping[str, Any]) -> Iterator[tuple[Path, Any]]:
    """Yield every entry that defines an answer, with its path."""
    yield ("general",), document["general"]
    for name, entry in document["answers"].items():
        yield ("answers", name), entry


def _uses(document: Mapping[str, Any]) -> Iterator[tuple[Path, Any]]:
    """Yield every reference to an answer, with its path: a name, or a mapping with a name and replaced parts."""
    for section in ("refusals", "statuses"):
        for name, use in document.get(section, {}).items():
            yield (section, name), use
    validation = document.get("validation", {})
    if "answer" in validation:
        yield ("validation", "answer"), validation["answer"]
    for kind, use in validation.get("kinds", {}).items():
        yield ("validation", "kinds", kind), use


def unavailable(word: str) -> str:
    """Return the fault of a template that uses *word* where it has no value."""
    return f"uses {{{word}}}, which has no value here; give it a message, details or a body without"


def _words(allowed: frozenset[str]) -> str:
    return f"write {_listed(allowed, '{{{}}}')}" if allowed else "write plain text"


def suggestion(word: str, known: Iterable[str], shown: str = "{}") -> str:
    """Return what to write for *word*, which is none of *known*; each is formatted with *shown*."""
    close = get_close_matches(word, list(known), n=1, cutoff=0.6)
    if close:
        return f"did you mean {shown.format(close[0])}?"
    return f"write {_listed(known, shown)}" if known else "there is none"


def _listed(words: Iterable[str], shown: str) -> str:
    *others, last = [shown.format(word) for word in sorted(words)]
    return f"{', '.join(others)} or {last}" if others else last
