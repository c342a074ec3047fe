"""How one API words its errors: every documented answer, as data, and the exact bytes of each reply.

A dialect is a mapping (a YAML file, see `dialect.schema.json`). Its texts and bodies are templates (`core/template.py`)
over these words, and no others. There is no word for the principal, so no answer can give one away (invariant 8).

| word | value | known |
|---|---|---|
| `{code}` | the answer's code | always |
| `{message}` | the answer's message | where it has one |
| `{status}` | the status code, a number | always |
| `{title}` | the dialect's title of the status, else its reason phrase | always |
| `{details}` | the answer's details: a list or an object | where it has some |
| `{request_id}` | what a caller quotes to support | always; empty if the dialect has none |
| `{retry_after_s}` | seconds to wait, whole, at least 1 | in refusals that end |
| `{limit}` | units that the binding rule admits in one window | in refusals by a limit |
| `{remaining}` | units of it that are left | in refusals by a limit |
| `{reset_s}` | seconds until it resets, whole, at least 1 | in refusals by a limit |
| `{reset_at_s}` | the Unix time of that, in seconds | in refusals by a limit |
| `{window_s}` | length of its window in seconds, perhaps a fraction; 0 if it has none | in refusals by a limit |
| `{quota}` | what it admits, in words: `60 per 60 s`, `10 at the same time`, `500 per month` | in refusals by a limit |
| `{rule}` | name of the binding rule | in refusals by a limit |
| `{rules}` | names of all rules that refuse, a list | in refusals by a limit |
| `{location}` | where a finding is: body, query, path, header or cookie | in findings |
| `{field}` | what is at fault, like `identifiers[0].type` | in findings; in a malformed request |
| `{issue}` | what is wrong with it, a predicate: `must be a number` | in findings; in a malformed request |
| `{Issue}` | the same, capitalized: `Must be a number` | in findings; in a malformed request |
| `{findings}` | all findings: a list, or text joined by semicolons | in validation |
| `{resource}` | what was looked for | from the application |
| `{requested}` | units that the request needed | where credits are exhausted; from the application |
| `{shortfall}` | units of these that were missing | where credits are exhausted; from the application |
| `{credential_used}` | kind of the credential that came, like `org_api_key` | when another is required |
| `{credential_required}` | kind of the credential that would do | when another is required |

An application may give any of them but those of the answer itself; a message and details it may. A member that is
nothing but one placeholder is left out where its word has no value. Only the words from the application, those of
credentials and `{findings}` must have one.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from difflib import get_close_matches
from typing import TYPE_CHECKING, Any, NamedTuple

from ratelimiter.core.decision import BLOCKED, CREDIT_EXHAUSTED, MALFORMED, OVER_CAPACITY, OVER_LIMIT, STORE_ERROR
from ratelimiter.core.headers import ceil_s, reset_at_s, retry_after_s
from ratelimiter.core.identity import FAULTS, UNAVAILABLE
from ratelimiter.core.quota import Balance, Bucket, Period, Slots
from ratelimiter.core.reply import REASON_PHRASES, Reply
from ratelimiter.core.requirement import CREDENTIAL_KIND, HEADER_MISSING, INSUFFICIENT_SCOPE, REASONS, Unmet
from ratelimiter.dialects.template import (
    MissingWordError,
    Raw,
    Scope,
    TemplateError,
    compile_header,
    compile_json,
    compile_line,
    to_text,
    tokens,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence

    from ratelimiter.core.decision import Decision, Outcome
    from ratelimiter.dialects.template import Template

    Path = tuple[str | int, ...]

FINDINGS_MAX = 100  # told at once: a body of a million bad values is not answered with a million findings
TEXT_MAX = 200  # characters of a field or an issue that are repeated
STORE_RETRY_AFTER_S = 1  # enforcement is back within a second of a fault's end
IDENTITY_RETRY_AFTER_S = 5  # by then the identity provider has been asked again
OUR_HEADERS = frozenset(  # which follow from the answer, or from the connection (RFC 9110 section 7.6.1)
    {"cache-control", "connection", "content-length", "content-type", "retry-after", "transfer-encoding"}
)
COMPILED_MAX = 1024  # templates kept for combinations of an answer and the facts that came with it

OF_ANSWER = frozenset({"code", "message", "status", "title", "details", "request_id"})
OF_DECISION = frozenset({"retry_after_s", "limit", "remaining", "reset_s", "reset_at_s", "window_s", "rule", "rules"})
OF_DECISION |= {"quota"}
OF_FINDING = frozenset({"location", "field", "issue", "Issue"})
OF_APPLICATION = frozenset({"resource", "requested", "shortfall", "credential_used", "credential_required"})
VOCABULARY = OF_ANSWER | OF_DECISION | OF_FINDING | OF_APPLICATION | {"findings"}
OPTIONAL = frozenset({"message", "details"}) | OF_DECISION | OF_FINDING
GIVABLE = VOCABULARY - {"code", "status", "title", "request_id", "Issue", "findings"}

# Kinds of finding, each with the one that stands in where a dialect does not tell them apart.
MISSING, INVALID, MALFORMED_BODY = "missing", "invalid", "malformed"
KINDS = {
    MISSING: MISSING,
    INVALID: INVALID,
    MALFORMED_BODY: MALFORMED_BODY,
    "header": MISSING,  # a required header is missing
    "uuid": INVALID,
    "enum": INVALID,
    "date": INVALID,
    "type": INVALID,
}

STATUS_CLASSES = {4: "Client Error", 5: "Server Error"}  # of what has no phrase (section 15: treat x99 as x00)

UUID, TOKEN = "uuid", "token"
_WELL_FORMED = {
    UUID: re.compile(rb"[0-9A-Fa-f]{8}-(?:[0-9A-Fa-f]{4}-){3}[0-9A-Fa-f]{12}"),  # RFC 9562 section 4
    TOKEN: re.compile(rb"[A-Za-z0-9_-]{1,64}"),
}

_CODES: dict[str, Callable[[str], str]] = {"snake_case": str.lower, "UPPER_CASE": str.upper}


class Finding(NamedTuple):
    """One thing that is wrong with a request, as an application's framework found it."""

    location: str  # body, query, path, header or cookie
    field: str  # like identifiers[0].type; never its value
    issue: str  # a predicate of the field, like "must be a number"
    kind: str = INVALID  # one of KINDS


@dataclass(frozen=True, slots=True)
class Answer:
    """One documented answer.

    Args:
        name: by which applications ask for it; unique in its dialect.
        status: 400 to 599.
        code: what the API calls it.
        message: a template; empty where there is none.
        cause: when it is given, as documented.
        resolution: what the caller can do, as documented.
    """

    name: str
    status: int
    code: str
    message: str = ""
    cause: str = ""
    resolution: str = ""


@dataclass(frozen=True, slots=True)
class RequestIds:
    """How an API names requests.

    Args:
        header: in which a request may bring an id and a response carries it; lower case.
        form: `uuid` (version 4), or `token`: *prefix*, then 15 characters that sort by time.
        prefix: of generated tokens.
        everywhere: on every response; else on errors only.
    """

    header: bytes = b"x-request-id"
    form: str = UUID
    prefix: str = ""
    everywhere: bool = True

    def well_formed(self, value: bytes) -> bool:
        """Whether a caller's id may be taken over: a UUID, or 1 to 64 of `A-Z a-z 0-9 _ -`."""
        return _WELL_FORMED[self.form].fullmatch(value) is not None


class InvalidDialectError(ValueError):
    """A mapping that is no dialect.

    Attributes:
        faults: path into the mapping, and what is wrong there and what would do.
    """

    def __init__(self, faults: Sequence[tuple[Path, str]]) -> None:
        super().__init__("\n".join(f"{'.'.join(map(str, path))}: {issue}" for path, issue in faults))
        self.faults = tuple(faults)


class _Form(NamedTuple):
    """An answer ready to be compiled."""

    status: int
    known: dict[str, Any]
    body: Any
    headers: dict[str, str]


class _Compiled(NamedTuple):
    """An answer ready to be written."""

    status: int
    headers: tuple[tuple[bytes, bytes], ...]  # the same each time
    templates: tuple[tuple[bytes, Template], ...]  # header fields that are not
    body: Template
    closing: bytes
    readers: tuple[tuple[str, Callable[[Decision, Outcome], Any]], ...]  # the facts of a decision that it speaks of

    def reply(self, facts: Mapping[str, Any]) -> Reply:
        body = self.body.render(facts) + self.closing
        headers = [*self.headers, (b"content-length", b"%d" % len(body))]
        wait_s = facts.get("retry_after_s")
        if wait_s is not None:
            headers.append((b"retry-after", b"%d" % wait_s))
        for name, template in self.templates:
            headers.append((name, template.render(facts)))
        return Reply(self.status, headers, body)


class Dialect:
    """One API's errors, compiled.

    Safe to share; what it remembers only saves time.

    Args:
        name: by which it is known.
        document: what `dialect.schema.json` describes.

    Raises:
        InvalidDialectError: a template, a word or a reference in it cannot work; with every fault, so that writing a
            reply never meets one.
    """

    def __init__(self, name: str, document: Mapping[str, Any]) -> None:
        faults = [*_template_faults(document), *_reference_faults(document), *_part_faults(document)]
        if faults:
            raise InvalidDialectError(faults)
        self.name = name
        self.about: str = document["about"]
        self.request_ids = _request_ids(document.get("request_id"))
        self.answers: Mapping[str, Answer] = {key: _answer(key, entry) for key, entry in document["answers"].items()}
        self._document = document
        self._text = isinstance(document["body"], str)
        self._memo: dict[tuple[object, frozenset[str]], _Compiled] = {}
        self._forms = {key: self._form(key) for key in self.answers}
        self._statuses = {int(key): self._overlaid(entry) for key, entry in document.get("statuses", {}).items()}
        self._refusals: dict[str, _Compiled] = {}
        self._validation: dict[str, _Form] = {}  # by kind of finding: the answer, and how a finding is listed in it
        self._findings: dict[str, Template] = {}
        self._prepare()

    def __repr__(self) -> str:
        return f"Dialect({self.name!r})"

    @property
    def validates(self) -> bool:
        """Whether the dialect words what a framework's validation finds; else that is left to the framework."""
        return "validation" in self._document

    def refusal(self, decision: Decision, request_id: str = "") -> Reply:
        """The reply to a request that was not allowed.

        A request over the limit, or of a blocked principal, is told when to come back; one that can never fit is told
        that instead, without Retry-After. Exhausted credits get its 402, with Retry-After if they come back by
        themselves, a malformed request its 400, and a store that did not answer its 503. One that lacks what is
        required is told what that is, with WWW-Authenticate where it can make up for it.

        Raises:
            ValueError: the decision is none of these.
        """
        reason = decision.reason
        facts: dict[str, Any] = {"request_id": request_id}
        if reason in (OVER_LIMIT, BLOCKED):
            wait_s = retry_after_s(decision)
            if wait_s is None:
                reason = OVER_CAPACITY
            else:
                facts["retry_after_s"] = wait_s
        elif reason == CREDIT_EXHAUSTED:
            facts["requested"], facts["shortfall"] = decision.missing or (0, 0)
            wait_s = retry_after_s(decision)
            if wait_s is not None:
                facts["retry_after_s"] = wait_s
        elif reason == STORE_ERROR:
            facts["retry_after_s"] = STORE_RETRY_AFTER_S
        elif isinstance(decision.fault, Unmet):
            facts |= _lacking(decision.fault)
        elif reason == MALFORMED:
            field, issue = decision.fault or ("request", "can be read in two ways")
            facts["field"], facts["issue"], facts["Issue"] = field, issue, _capitalized(issue)
        compiled = self._refusals.get(reason)
        if compiled is None or decision.allowed:
            msg = f"a decision that is {'allowed' if decision.allowed else reason} is no refusal; let the request pass"
            raise ValueError(msg)
        binding = decision.binding
        if binding is not None:
            for word, read in compiled.readers:
                facts[word] = read(decision, binding)
        reply = compiled.reply(facts)
        # RFC 9110 section 15.5.2: a 401 says what would do; RFC 6750 section 3.1 has it of a scope, too.
        if isinstance(decision.fault, Unmet) and (reply.status == 401 or reason == INSUFFICIENT_SCOPE):
            reply.headers.extend((b"www-authenticate", text.encode()) for text in decision.fault.challenges)
        return reply

    def reply(self, answer_name: str, /, *, request_id: str = "", **facts: Any) -> Reply:
        """The answer that the dialect calls *answer_name*.

        Args:
            answer_name: one of `answers`.
            request_id: of the request; empty if the dialect has none.
            facts: values of the words that the answer speaks of. `message` and `details` replace the answer's own, and
                `retry_after_s` becomes a Retry-After, too.

        Raises:
            ValueError: there is no such answer or word, or a word that it needs is missing.
            TypeError: a fact is nothing that JSON could hold.
        """
        form = self._forms.get(answer_name)
        if form is None:
            msg = f"{self.name} has no answer {answer_name!r}; {_suggestion(answer_name, self.answers)}"
            raise ValueError(msg)
        for word in facts:
            if word not in GIVABLE:
                msg = f"{word!r} is no word that an answer speaks of; {_suggestion(word, GIVABLE)}"
                raise ValueError(msg)
        return self._write(answer_name, form, _with_issue(facts), request_id)

    def reply_for_status(
        self, status: int, *, message: str | None = None, code: str | None = None, request_id: str = "", **facts: Any
    ) -> Reply:
        """The error that has nothing but a status: the dialect's answer for it, else its general form.

        Args:
            status: 400 to 599.
            message: instead of the answer's own.
            code: an answer's name, or a code instead of the general one.
            request_id: of the request; empty if the dialect has none.
            facts: as in `reply`; those that are no word are ignored, as they come from wherever the error was raised.

        Raises:
            ValueError: the status is no error.
            TypeError: a fact is nothing that JSON could hold.
        """
        if not 400 <= status <= 599:
            msg = f"status must be 400 to 599, not {status}"
            raise ValueError(msg)
        given = _with_issue({word: value for word, value in facts.items() if word in GIVABLE})
        if message is not None:
            given["message"] = message
        if code is not None:
            named = self._forms.get(code)
            if named is not None and named.status == status:
                try:
                    return self._write(code, named, given, request_id)
                except ValueError:
                    pass  # it needs more facts than were given: the general form needs none
            given["code"] = code
        form = self._statuses.get(status)
        if form is None:
            form = self._statuses[status] = self._general(status)
        return self._write(status, form, given, request_id)

    def validation_reply(self, findings: Sequence[Finding], request_id: str = "") -> Reply | None:
        """What a request that a framework found invalid is answered; None where the API leaves that to its framework.

        The answer is that of the first finding, or of a body that could not be read at all.

        Args:
            findings: at least one; of very many only the first are told.
            request_id: of the request; empty if the dialect has none.
        """
        validation = self._document.get("validation")
        if validation is None:
            return None
        told = [_bounded(finding) for finding in findings[:FINDINGS_MAX]]
        first = next((finding for finding in told if finding.kind == MALFORMED_BODY), told[0])
        facts = _facts(first)
        if self._findings:
            facts["findings"] = self._written(told)
        kind = self._kind(first)
        return self._write(("validation", kind), self._validation[kind], facts, request_id)

    def _written(self, findings: Sequence[Finding]) -> str | Raw:
        parts = [self._findings[self._kind(finding)].render(_facts(finding)) for finding in findings]
        if isinstance(self._document["validation"]["finding"], str):
            return b"; ".join(parts).decode()
        return Raw(b"[%b]" % b", ".join(parts))

    def _kind(self, finding: Finding) -> str:
        kinds = self._document["validation"]["kinds"]
        return finding.kind if finding.kind in kinds else KINDS[finding.kind]

    def _write(self, key: object, form: _Form, facts: dict[str, Any], request_id: str) -> Reply:
        given = frozenset(facts)
        compiled = self._memo.get((key, given))
        if compiled is None:
            try:
                compiled = self._compiled(form, given)
            except MissingWordError as missing:
                msg = f"{self.name}: the answer {key} speaks of {missing.word}; give {missing.word}=..."
                raise ValueError(msg) from None
            if len(self._memo) >= COMPILED_MAX:
                self._memo.clear()
            self._memo[key, given] = compiled
        return compiled.reply({**facts, "request_id": request_id})

    def _form(self, name: str) -> _Form:
        """The answer *name* as it stands."""
        entry = self._document["answers"][name]
        answer = self.answers[name]
        known: dict[str, Any] = {**entry.get("defaults", {}), "code": answer.code}
        known |= {"status": answer.status, "title": _title(answer.status, self._document)}
        if answer.message:
            known["message"] = answer.message
        details = entry.get("details", self._document.get("details"))
        if details is not None:
            known["details"] = details
        headers = {**self._document.get("headers", {}), **entry.get("headers", {})}
        return _Form(answer.status, known, self._body(entry), headers)

    def _overlaid(self, use: str | Mapping[str, Any]) -> _Form:
        """An answer with some of its parts replaced for one use of it."""
        if isinstance(use, str):
            return self._forms[use]
        form = self._forms[use["answer"]]
        known = {**form.known, **{word: use[word] for word in ("code", "message", "details") if word in use}}
        body = self._body(use) if "body" in use or "shape" in use else form.body
        return form._replace(known=known, body=body)

    def _general(self, status: int) -> _Form:
        general = self._document["general"]
        title = _title(status, self._document)
        known: dict[str, Any] = {"status": status, "title": title, "code": _code(title, general["code"])}
        if "message" in general:
            known["message"] = general["message"]
        details = self._document.get("details")
        if details is not None:
            known["details"] = details
        return _Form(status, known, self._body(general), self._document.get("headers", {}))

    def _unworded(self, reason: str) -> _Form:
        """The answer to a *reason* that the dialect has no words for: that of its status."""
        if reason == UNAVAILABLE:
            return self._overlaid(self._document["refusals"][STORE_ERROR])
        if reason == CREDIT_EXHAUSTED:
            return self._statuses.get(402) or self._general(402)
        status = 401 if reason in FAULTS else 400 if reason == HEADER_MISSING else 403
        return self._statuses.get(status) or self._general(status)

    def _body(self, entry: Mapping[str, Any]) -> Any:
        if "body" in entry:
            return entry["body"]
        return self._document["shapes"][entry["shape"]] if "shape" in entry else self._document["body"]

    def _compiled(self, form: _Form, given: frozenset[str], *, refusal: bool = False) -> _Compiled:
        scope = Scope(given | {"request_id"}, {w: v for w, v in form.known.items() if w not in given}, OPTIONAL)
        body = (compile_line if self._text else compile_json)(form.body, scope)
        headers = [(b"content-type", self._document["media_type"].encode())]
        # RFC 6585 section 4: a 429 must not be stored by a cache.
        if refusal or form.status == 429:
            headers.append((b"cache-control", b"no-store"))
        templates = tuple((name.lower().encode(), compile_header(text, scope)) for name, text in form.headers.items())
        used = body.words.union(*(template.words for _, template in templates))
        readers = tuple((word, read) for word, read in _READERS.items() if word in used)
        return _Compiled(form.status, tuple(headers), templates, body, b"\n" if self._text else b"", readers)

    def _prepare(self) -> None:
        """Compile all that must never fail when a reply is due.

        Raises:
            InvalidDialectError: something speaks of a word that will not be there.
        """
        faults: list[tuple[Path, str]] = []
        document = self._document
        for name, form in self._forms.items():
            self._attempt(faults, ("answers", name), form, VOCABULARY - {"findings"} - form.known.keys())
        for reason, use in document["refusals"].items():
            given = _GIVEN[reason]
            compiled = self._attempt(faults, ("refusals", reason), self._overlaid(use), given, refusal=True)
            if compiled is not None:
                self._refusals[reason] = compiled
        for status, form in self._statuses.items():
            self._attempt(faults, ("statuses", str(status)), form, frozenset())
        self._attempt(faults, ("general",), self._general(400), frozenset())
        if "validation" in document:
            self._prepare_validation(faults, document["validation"])
        if faults:
            raise InvalidDialectError(faults)
        for reason in (*REASONS, CREDIT_EXHAUSTED):
            if reason not in self._refusals:
                self._refusals[reason] = self._compiled(self._unworded(reason), _GIVEN[reason], refusal=True)
        self._refusals.setdefault(BLOCKED, self._refusals[OVER_LIMIT])

    def _prepare_validation(self, faults: list[tuple[Path, str]], validation: Mapping[str, Any]) -> None:
        finding = validation.get("finding")
        given = OF_FINDING if finding is None else OF_FINDING | {"findings"}
        for kind, use in validation["kinds"].items():
            form = self._overlaid(use)
            if finding is not None:
                compiler = compile_line if isinstance(finding, str) else compile_json
                try:
                    self._findings[kind] = compiler(finding, Scope(OF_FINDING, form.known, OPTIONAL))
                except MissingWordError as missing:
                    faults.append((("validation", "finding"), _unavailable(missing.word)))
            whole = self._overlaid(validation["answer"]) if "answer" in validation else form
            self._validation[kind] = whole
            self._attempt(faults, ("validation", "kinds", kind), whole, given)

    def _attempt(
        self, faults: list[tuple[Path, str]], path: Path, form: _Form, given: frozenset[str], *, refusal: bool = False
    ) -> _Compiled | None:
        try:
            return self._compiled(form, given, refusal=refusal)
        except MissingWordError as missing:
            faults.append((path, _unavailable(missing.word)))
            return None


def _reset_s(_: Decision, outcome: Outcome) -> int:
    return max(1, ceil_s(max(outcome.reset_ms, outcome.retry_after_ms or 0)))


def _window_s(_: Decision, outcome: Outcome) -> int | float:
    return _seconds(outcome.rule.quota.window_ms)


def _seconds(ms: int) -> int | float:
    seconds, rest = divmod(ms, 1000)
    return ms / 1000 if rest else seconds


def _quota(_: Decision, outcome: Outcome) -> str:
    quota = outcome.rule.quota
    match quota:
        case Bucket():
            return f"{quota.refill} per {_seconds(quota.window_ms)} s, {quota.limit} at once"
        case Period():
            return f"{quota.limit} per {quota.unit}"
        case Slots():
            return f"{quota.limit} at the same time"
        case Balance():
            return f"{quota.limit} in all"
        case _:
            return f"{quota.limit} per {_seconds(quota.window_ms)} s"


def _rules(decision: Decision, _: Outcome) -> list[str]:
    return [outcome.rule.name for outcome in decision.outcomes if outcome.refuses and not outcome.rule.shadow]


# How the facts of a decision are read off it and its binding outcome.
_READERS: dict[str, Callable[[Decision, Outcome], Any]] = {
    "limit": lambda _, outcome: outcome.rule.quota.limit,
    "remaining": lambda _, outcome: outcome.remaining,
    "reset_s": _reset_s,
    "reset_at_s": reset_at_s,
    "window_s": _window_s,
    "quota": _quota,
    "rule": lambda _, outcome: outcome.rule.name,
    "rules": _rules,
}

# What a refusal can speak of.
_GIVEN = {
    OVER_LIMIT: OF_DECISION,
    BLOCKED: frozenset({"retry_after_s"}),
    OVER_CAPACITY: OF_DECISION - {"retry_after_s"},
    CREDIT_EXHAUSTED: OF_DECISION - {"retry_after_s"} | {"requested", "shortfall"},
    MALFORMED: frozenset({"field", "issue", "Issue"}),
    STORE_ERROR: frozenset({"retry_after_s"}),
    **dict.fromkeys(REASONS, frozenset[str]()),
    UNAVAILABLE: frozenset({"retry_after_s"}),
    CREDENTIAL_KIND: frozenset({"credential_used", "credential_required"}),
    HEADER_MISSING: frozenset({"field", "issue", "Issue"}),
}


def _template_faults(document: Mapping[str, Any]) -> Iterator[tuple[Path, str]]:
    """Every string that is no template, or speaks of a word that means nothing where it stands."""
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
            yield (*path, "defaults", word), f"{word!r} is no word; {_suggestion(word, GIVABLE)}"
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
                yield path, f"{{{word}}} is no word; {_suggestion(word, allowed or VOCABULARY, '{{{}}}')}"
            elif word not in allowed:
                yield path, f"{{{word}}} means nothing here; {_words(allowed)}"


def _reference_faults(document: Mapping[str, Any]) -> Iterator[tuple[Path, str]]:
    """Every name that names nothing."""
    answers, shapes = document["answers"], document.get("shapes", {})
    for path, use in (*_entries(document), *_uses(document)):
        if isinstance(use, dict) and "shape" in use:
            if use["shape"] not in shapes:
                yield (*path, "shape"), f"there is no shape {use['shape']!r}; {_suggestion(use['shape'], shapes)}"
            if "body" in use:
                yield (*path, "shape"), "shape and body exclude each other; leave one out"
    for path, use in _uses(document):
        place, name = (path, use) if isinstance(use, str) else ((*path, "answer"), use["answer"])
        if name not in answers:
            yield place, f"there is no answer {name!r}; {_suggestion(name, answers)}"
        elif path[0] == "statuses" and answers[name]["status"] != int(path[1]):
            yield place, f"{name} has the status {answers[name]['status']}; name an answer with {path[1]}"


def _part_faults(document: Mapping[str, Any]) -> Iterator[tuple[Path, str]]:
    """Every body that is text among objects or the other way round, and every header that is not a dialect's to set."""
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
                yield (*path, "headers", name), f"{name} is ours to write; leave it out"


def _entries(document: Mapping[str, Any]) -> Iterator[tuple[Path, Any]]:
    """What makes an answer of its own."""
    yield ("general",), document["general"]
    for name, entry in document["answers"].items():
        yield ("answers", name), entry


def _uses(document: Mapping[str, Any]) -> Iterator[tuple[Path, Any]]:
    """What refers to an answer: its name, or a mapping of that and of what differs."""
    for section in ("refusals", "statuses"):
        for name, use in document.get(section, {}).items():
            yield (section, name), use
    validation = document.get("validation", {})
    if "answer" in validation:
        yield ("validation", "answer"), validation["answer"]
    for kind, use in validation.get("kinds", {}).items():
        yield ("validation", "kinds", kind), use


def _answer(name: str, entry: Mapping[str, Any]) -> Answer:
    return Answer(
        name,
        entry["status"],
        entry.get("code", name),
        entry.get("message", entry.get("cause", "")),
        entry.get("cause", ""),
        entry.get("resolution", ""),
    )


def _request_ids(entry: Mapping[str, Any] | None) -> RequestIds | None:
    if entry is None:
        return None
    return RequestIds(
        entry.get("header", "X-Request-Id").lower().encode(),
        entry["form"],
        entry.get("prefix", ""),
        entry.get("responses", "all") == "all",
    )


def _title(status: int, document: Mapping[str, Any]) -> str:
    titles: Mapping[str, str] = document.get("titles", {})
    return titles.get(str(status)) or REASON_PHRASES.get(status) or STATUS_CLASSES[status // 100]


def _code(title: str, style: str) -> str:
    words = re.findall("[A-Za-z0-9]+", title.replace("'", ""))
    return _CODES[style]("_".join(words))


def _with_issue(facts: dict[str, Any]) -> dict[str, Any]:
    return {**facts, "Issue": _capitalized(to_text(facts["issue"]))} if "issue" in facts else facts


def _facts(finding: Finding) -> dict[str, Any]:
    location, field, issue, _ = finding
    return {"location": location, "field": field, "issue": issue, "Issue": _capitalized(issue)}


def _bounded(finding: Finding) -> Finding:
    return finding._replace(field=finding.field[:TEXT_MAX], issue=finding.issue[:TEXT_MAX])


def _lacking(lacking: Unmet) -> dict[str, Any]:
    """The facts of a request that lacks something."""
    reason, field, issue, used, required, _ = lacking
    if reason == UNAVAILABLE:
        return {"retry_after_s": IDENTITY_RETRY_AFTER_S}
    if reason == CREDENTIAL_KIND:
        return {"credential_used": used, "credential_required": required}
    return {"field": field, "issue": issue, "Issue": _capitalized(issue)} if reason == HEADER_MISSING else {}


def _capitalized(text: str) -> str:
    return text[:1].upper() + text[1:]


def _unavailable(word: str) -> str:
    return f"speaks of {{{word}}}, which has no value here; give it a message, details or a body without"


def _words(allowed: frozenset[str]) -> str:
    return f"write {_listed(allowed, '{{{}}}')}" if allowed else "write plain text"


def _suggestion(word: str, known: Iterable[str], shown: str = "{}") -> str:
    close = get_close_matches(word, list(known), n=1, cutoff=0.6)
    if close:
        return f"did you mean {shown.format(close[0])}?"
    return f"write {_listed(known, shown)}" if known else "there is none"


def _listed(words: Iterable[str], shown: str) -> str:
    *others, last = [shown.format(word) for word in sorted(words)]
    return f"{', '.join(others)} or {last}" if others else last
