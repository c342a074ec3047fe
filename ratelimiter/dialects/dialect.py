"""An API's way to answer errors: every documented answer, as data, and the exact bytes of each reply.

A dialect is a mapping (a YAML file, see `dialect.schema.json`). Its texts and bodies are templates (`template`) over
the words of `words`. An application may give any of them but those of the answer itself; a message and details it may.
A member that is nothing but one placeholder is left out if its word has no value. Only the words from the application,
those of credentials and `{findings}` must have one.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from ratelimiter.core.decision import BLOCKED, CREDIT_EXHAUSTED, MALFORMED, OVER_CAPACITY, OVER_LIMIT, STORE_ERROR
from ratelimiter.core.headers import retry_after_s
from ratelimiter.core.identity import FAULTS, UNAVAILABLE
from ratelimiter.core.requirement import HEADER_MISSING, INSUFFICIENT_SCOPE, REASONS, Unmet
from ratelimiter.dialects import checks
from ratelimiter.dialects.answer import CompiledAnswer, Form, answer_of, code_of, title_of
from ratelimiter.dialects.checks import suggestion, unavailable
from ratelimiter.dialects.request_id import request_ids_of
from ratelimiter.dialects.template import (
    MissingWordError,
    Raw,
    Scope,
    TemplateError,
    compile_header,
    compile_json,
    compile_line,
)
from ratelimiter.dialects.words import (
    FINDINGS_MAX,
    GIVABLE,
    GIVEN,
    KINDS,
    MALFORMED_BODY,
    OF_DECISION,
    OF_FINDING,
    OPTIONAL,
    READERS,
    STORE_RETRY_AFTER_S,
    VOCABULARY,
    bounded,
    capitalized,
    facts_of,
    lacking_of,
    shortfall_of,
    wait_of,
    with_issue,
)

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from ratelimiter.core.decision import Decision
    from ratelimiter.core.reply import Reply
    from ratelimiter.dialects.answer import Answer
    from ratelimiter.dialects.template import Template
    from ratelimiter.dialects.words import Finding

    Path = tuple[str | int, ...]

_OF_LIMITS = frozenset({OVER_LIMIT, OVER_CAPACITY, BLOCKED, CREDIT_EXHAUSTED})
COMPILED_MAX = 1024  # compiled answers kept, one for each answer and set of given words


class InvalidDialectError(ValueError):
    """A mapping that is no dialect.

    Attributes:
        faults: pairs of a path into the mapping, and the fault there with what would do.
    """

    def __init__(self, faults: Sequence[tuple[Path, str]]) -> None:
        super().__init__("\n".join(f"{'.'.join(map(str, path))}: {issue}" for path, issue in faults))
        self.faults = tuple(faults)


class Dialect:
    """The errors of one API, compiled.

    Threads and event loops may share one; it caches compiled answers.

    Args:
        name: name of the dialect.
        document: mapping that fits `dialect.schema.json`.

    Attributes:
        exact: True if refusals tell their wait to the millisecond.

    Raises:
        InvalidDialectError: a template, a word or a reference in it cannot work; with every fault, so that rendering a
            reply never meets one.
    """

    def __init__(self, name: str, document: Mapping[str, Any]) -> None:
        found = checks.faults(document)
        if found:
            raise InvalidDialectError(found)
        self.name = name
        self.about: str = document["about"]
        self.request_ids = request_ids_of(document.get("request_id"))
        self.answers: Mapping[str, Answer] = {key: answer_of(key, entry) for key, entry in document["answers"].items()}
        self._document = document
        self._text = isinstance(document["body"], str)
        self._memo: dict[tuple[object, frozenset[str]], CompiledAnswer] = {}
        self._forms = {key: self._form(key) for key in self.answers}
        self._statuses = {int(key): self._overlaid(entry) for key, entry in document.get("statuses", {}).items()}
        self._refusals: dict[str, CompiledAnswer] = {}
        self._validation: dict[str, Form] = {}  # by kind of finding: the answer, and how a finding is listed in it
        self._findings: dict[str, Template] = {}
        self._prepare()
        refusals = self._refusals.values()
        self.exact = any("retry_after_ms" in template.words for each in refusals for _, template in each.templates)

    def __repr__(self) -> str:
        return f"Dialect({self.name!r})"

    @property
    def validates(self) -> bool:
        """True if the dialect has answers for findings of a framework's validation."""
        return "validation" in self._document

    def refusal(self, decision: Decision, request_id: str = "") -> Reply:
        """Render the reply to a refused request.

        A refusal by a limit, or of a blocked principal, has Retry-After; a request that can never fit has none.
        Exhausted credits get a 402, with Retry-After if they are refilled with time; a malformed request gets a 400,
        and an unavailable store a 503. A request that lacks a requirement is told which, with WWW-Authenticate if
        credentials would do.

        Raises:
            ValueError: the decision is none of these.
        """
        reason = decision.reason
        facts: dict[str, Any] = {"request_id": request_id}
        if reason in _OF_LIMITS:
            facts |= wait_of(decision.retry_after_ms)
        if reason in (OVER_LIMIT, BLOCKED):
            wait_s = retry_after_s(decision)
            if wait_s is None:
                reason = OVER_CAPACITY
            else:
                facts["retry_after_s"] = wait_s
        elif reason == CREDIT_EXHAUSTED:
            facts |= shortfall_of(decision)
        elif reason == STORE_ERROR:
            facts["retry_after_s"] = STORE_RETRY_AFTER_S
        elif isinstance(decision.fault, Unmet):
            facts |= lacking_of(decision.fault)
        elif reason == MALFORMED:
            field, issue = decision.fault or ("request", "can be read in two ways")
            facts["field"], facts["issue"], facts["Issue"] = field, issue, capitalized(issue)
        compiled = self._refusals.get(reason)
        if compiled is None or decision.allowed:
            msg = (
                f"a decision that is {'allowed' if decision.allowed else reason} is not a refusal; let the request pass"
            )
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
        """Render the answer *answer_name* of the dialect.

        Args:
            answer_name: one of `answers`.
            request_id: id of the request; empty if the dialect has none.
            facts: values of the words that the answer uses. `message` and `details` replace the answer's own, and
                `retry_after_s` becomes a Retry-After, too.

        Raises:
            ValueError: there is no such answer or word, or a word that it needs is missing.
            TypeError: JSON cannot hold a fact.
        """
        form = self._forms.get(answer_name)
        if form is None:
            msg = f"{self.name} has no answer {answer_name!r}; {suggestion(answer_name, self.answers)}"
            raise ValueError(msg)
        for word in facts:
            if word not in GIVABLE:
                msg = f"{word!r} is not a word of answers; {suggestion(word, GIVABLE)}"
                raise ValueError(msg)
        return self._write(answer_name, form, with_issue(facts), request_id)

    def reply_for_status(
        self, status: int, *, message: str | None = None, code: str | None = None, request_id: str = "", **facts: Any
    ) -> Reply:
        """Render an error known by its status: the dialect's answer for it, else its general form.

        Args:
            status: 400 to 599.
            message: message in place of the answer's own.
            code: name of an answer, or a code in place of the general one.
            request_id: id of the request; empty if the dialect has none.
            facts: as in `reply`; unknown words are ignored, as the place that raised the error need not know the
                dialect.

        Raises:
            ValueError: the status is no error.
            TypeError: JSON cannot hold a fact.
        """
        if not 400 <= status <= 599:
            msg = f"status must be 400 to 599, not {status}"
            raise ValueError(msg)
        given = with_issue({word: value for word, value in facts.items() if word in GIVABLE})
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
        """Render the reply to a request that a framework found invalid; None if the dialect has no answer for it.

        The answer is that of the first finding, or of an unreadable body.

        Args:
            findings: at least one; at most `FINDINGS_MAX` of them are told.
            request_id: id of the request; empty if the dialect has none.
        """
        validation = self._document.get("validation")
        if validation is None:
            return None
        told = [bounded(finding) for finding in findings[:FINDINGS_MAX]]
        first = next((finding for finding in told if finding.kind == MALFORMED_BODY), told[0])
        facts = facts_of(first)
        if self._findings:
            facts["findings"] = self._written(told)
        kind = self._kind(first)
        return self._write(("validation", kind), self._validation[kind], facts, request_id)

    def _written(self, findings: Sequence[Finding]) -> str | Raw:
        parts = [self._findings[self._kind(finding)].render(facts_of(finding)) for finding in findings]
        if isinstance(self._document["validation"]["finding"], str):
            return b"; ".join(parts).decode()
        return Raw(b"[%b]" % b", ".join(parts))

    def _kind(self, finding: Finding) -> str:
        kinds = self._document["validation"]["kinds"]
        return finding.kind if finding.kind in kinds else KINDS[finding.kind]

    def _write(self, key: object, form: Form, facts: dict[str, Any], request_id: str) -> Reply:
        given = frozenset(facts)
        compiled = self._memo.get((key, given))
        if compiled is None:
            try:
                compiled = self._compiled(form, given)
            except MissingWordError as missing:
                msg = f"{self.name}: the answer {key} uses {missing.word}; give {missing.word}=..."
                raise ValueError(msg) from None
            if len(self._memo) >= COMPILED_MAX:
                self._memo.clear()
            self._memo[key, given] = compiled
        return compiled.reply({**facts, "request_id": request_id})

    def _form(self, name: str) -> Form:
        """Return the answer *name* as the document states it."""
        entry = self._document["answers"][name]
        answer = self.answers[name]
        known: dict[str, Any] = {**entry.get("defaults", {}), "code": answer.code}
        known |= {"status": answer.status, "title": title_of(answer.status, self._document)}
        if answer.message:
            known["message"] = answer.message
        details = entry.get("details", self._document.get("details"))
        if details is not None:
            known["details"] = details
        headers = {**self._document.get("headers", {}), **entry.get("headers", {})}
        return Form(answer.status, known, self._body(entry), headers)

    def _overlaid(self, use: str | Mapping[str, Any]) -> Form:
        """Return the answer that *use* names, with the parts replaced that *use* states."""
        if isinstance(use, str):
            return self._forms[use]
        form = self._forms[use["answer"]]
        known = {**form.known, **{word: use[word] for word in ("code", "message", "details") if word in use}}
        body = self._body(use) if "body" in use or "shape" in use else form.body
        return form._replace(known=known, body=body)

    def _general(self, status: int) -> Form:
        general = self._document["general"]
        title = title_of(status, self._document)
        known: dict[str, Any] = {"status": status, "title": title, "code": code_of(title, general["code"])}
        if "message" in general:
            known["message"] = general["message"]
        details = self._document.get("details")
        if details is not None:
            known["details"] = details
        return Form(status, known, self._body(general), self._document.get("headers", {}))

    def _unworded(self, reason: str) -> Form:
        """Return the answer to a *reason* that the document leaves out: that of its status."""
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

    def _compiled(self, form: Form, given: frozenset[str], *, refusal: bool = False) -> CompiledAnswer:
        scope = Scope(given | {"request_id"}, {w: v for w, v in form.known.items() if w not in given}, OPTIONAL)
        body = (compile_line if self._text else compile_json)(form.body, scope)
        headers = [(b"content-type", self._document["media_type"].encode())]
        # RFC 6585 section 4: a 429 must not be stored by a cache.
        if refusal or form.status == 429:
            headers.append((b"cache-control", b"no-store"))
        templates = tuple(_field_templates(form.headers, scope))
        used = body.words.union(*(template.words for _, template in templates))
        readers = tuple((word, read) for word, read in READERS.items() if word in used)
        return CompiledAnswer(form.status, tuple(headers), templates, body, b"\n" if self._text else b"", readers)

    def _prepare(self) -> None:
        """Compile every refusal, status and finding now, so that none fails when a reply is due.

        Raises:
            InvalidDialectError: a template uses a word that will have no value.
        """
        faults: list[tuple[Path, str]] = []
        document = self._document
        for name, form in self._forms.items():
            self._attempt(faults, ("answers", name), form, VOCABULARY - {"findings"} - form.known.keys())
        for reason, use in document["refusals"].items():
            given = GIVEN[reason]
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
                self._refusals[reason] = self._compiled(self._unworded(reason), GIVEN[reason], refusal=True)
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
                    faults.append((("validation", "finding"), unavailable(missing.word)))
                except TemplateError as fault:
                    faults.append((("validation", "finding"), str(fault)))
            whole = self._overlaid(validation["answer"]) if "answer" in validation else form
            self._validation[kind] = whole
            self._attempt(faults, ("validation", "kinds", kind), whole, given)

    def _attempt(
        self, faults: list[tuple[Path, str]], path: Path, form: Form, given: frozenset[str], *, refusal: bool = False
    ) -> CompiledAnswer | None:
        try:
            return self._compiled(form, given, refusal=refusal)
        except MissingWordError as missing:
            faults.append((path, unavailable(missing.word)))
        except TemplateError as fault:
            faults.append((path, str(fault)))
        return None


def _field_templates(fields: Mapping[str, str], scope: Scope) -> Iterator[tuple[bytes, Template]]:
    """Yield the header *fields* as templates, but for those that tell a decision what it does not know."""
    for name, text in fields.items():
        try:
            yield name.lower().encode(), compile_header(text, scope)
        except MissingWordError as missing:
            if missing.word not in OF_DECISION:
                raise
