"""One documented answer of a dialect: as the document states it, and compiled to byte segments."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

from ratelimiter.core.reply import REASON_PHRASES, Reply

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from ratelimiter.core.decision import Decision, Outcome
    from ratelimiter.dialects.template import Template

# Titles of statuses without a phrase (RFC 9110 section 15: treat x99 as x00).
STATUS_CLASSES = {4: "Client Error", 5: "Server Error"}

_CODES: dict[str, Callable[[str], str]] = {"snake_case": str.lower, "UPPER_CASE": str.upper}


@dataclass(frozen=True, slots=True)
class Answer:
    """One documented answer.

    Args:
        name: name in the dialect, unique there; applications ask for the answer by it.
        status: status code, 400 to 599.
        code: name in the API.
        message: template of the message; empty if there is none.
        cause: documented cause.
        resolution: documented resolution for the caller.
    """

    name: str
    status: int
    code: str
    message: str = ""
    cause: str = ""
    resolution: str = ""


class Form(NamedTuple):
    """An answer before it is compiled."""

    status: int
    known: dict[str, Any]
    body: Any
    headers: dict[str, str]


class CompiledAnswer(NamedTuple):
    """An answer whose bytes are ready but for the facts of one decision."""

    status: int
    headers: tuple[tuple[bytes, bytes], ...]  # equal in every reply
    templates: tuple[tuple[bytes, Template], ...]  # header fields that differ by reply
    body: Template
    closing: bytes
    readers: tuple[tuple[str, Callable[[Decision, Outcome], Any]], ...]  # words of the decision that the answer uses

    def reply(self, facts: Mapping[str, Any]) -> Reply:
        """Return the reply for *facts*: the values of all its words."""
        body = self.body.render(facts) + self.closing
        headers = [*self.headers, (b"content-length", b"%d" % len(body))]
        wait_s = facts.get("retry_after_s")
        if wait_s is not None:
            headers.append((b"retry-after", b"%d" % wait_s))
        for name, template in self.templates:
            headers.append((name, template.render(facts)))
        return Reply(self.status, headers, body)


def answer_of(name: str, entry: Mapping[str, Any]) -> Answer:
    """Return the answer *name*, whose entry in the document is *entry*."""
    return Answer(
        name,
        entry["status"],
        entry.get("code", name),
        entry.get("message", entry.get("cause", "")),
        entry.get("cause", ""),
        entry.get("resolution", ""),
    )


def title_of(status: int, document: Mapping[str, Any]) -> str:
    """Return the dialect's title of *status*, else its reason phrase."""
    titles: Mapping[str, str] = document.get("titles", {})
    return titles.get(str(status)) or REASON_PHRASES.get(status) or STATUS_CLASSES[status // 100]


def code_of(title: str, style: str) -> str:
    """Return *title* as a code in *style*: `snake_case` or `UPPER_CASE`."""
    words = re.findall("[A-Za-z0-9]+", title.replace("'", ""))
    return _CODES[style]("_".join(words))
