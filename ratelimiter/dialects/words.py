"""The words of a dialect's templates, and the values that decisions and findings give them.

There is no word for the principal, so no answer can reveal one (invariant 8).

| word | value | known |
|---|---|---|
| `{code}` | the answer's code | always |
| `{message}` | the answer's message | where it has one |
| `{status}` | the status code, a number | always |
| `{title}` | the dialect's title of the status, else its reason phrase | always |
| `{details}` | the answer's details: a list or an object | where it has some |
| `{request_id}` | id that a caller quotes to support | always; empty if the dialect has none |
| `{retry_after_s}` | seconds to wait, whole, at least 1 | in refusals that end |
| `{retry_after_ms}` | milliseconds to wait, exact, at least 1 | in refusals that end |
| `{should_retry}` | `false` if no wait helps, or a wait of more than a minute; else `true` | in refusals that may end |
| `{limit}` | units that the binding rule admits in one window | in refusals by a limit |
| `{remaining}` | units of it that are left | in refusals by a limit |
| `{reset_s}` | seconds until it resets, whole, at least 1 | in refusals by a limit |
| `{reset_at_s}` | the Unix time of that, in seconds | in refusals by a limit |
| `{window_s}` | length of its window in seconds, perhaps a fraction; 0 if it has none | in refusals by a limit |
| `{window}` | its window in words: `1 minute`, `5 minutes`, `month`; empty if it has none | in refusals by a limit |
| `{quota}` | its quota in words: `60 per 60 s`, `10 at the same time`, `500 per month` | in refusals by a limit |
| `{unit}` | `tokens` of a language model, or `requests` | in refusals by a limit |
| `{rule}` | name of the binding rule | in refusals by a limit |
| `{rules}` | names of all rules that refuse, a list | in refusals by a limit |
| `{location}` | where a finding is: body, query, path, header or cookie | in findings |
| `{field}` | place of the fault, like `identifiers[0].type` | in findings; in a malformed request |
| `{issue}` | the fault, a predicate: `must be a number` | in findings; in a malformed request |
| `{Issue}` | the same, capitalized: `Must be a number` | in findings; in a malformed request |
| `{findings}` | all findings: a list, or text joined by semicolons | in validation |
| `{resource}` | name of the missing resource | from the application |
| `{requested}` | units that the request needed | where credits are exhausted; from the application |
| `{shortfall}` | units of these that were missing | where credits are exhausted; from the application |
| `{credential_used}` | kind of the credential that came, like `org_api_key` | when another is required |
| `{credential_required}` | kind of the credential that would do | when another is required |

An application may give any of them but those of the answer itself; a message and details it may. A member that is
nothing but one placeholder is left out where its word has no value, and so is a header field that tells a wait. Only
the words from the application, those of credentials and `{findings}` must have one.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

from ratelimiter.core.decision import BLOCKED, CREDIT_EXHAUSTED, MALFORMED, OVER_CAPACITY, OVER_LIMIT, STORE_ERROR
from ratelimiter.core.headers import exact_s, retry_after_s, seconds_of
from ratelimiter.core.identity import UNAVAILABLE
from ratelimiter.core.quota import Balance, Bucket, Period, Slots
from ratelimiter.core.requirement import CREDENTIAL_KIND, HEADER_MISSING, REASONS, Unmet
from ratelimiter.dialects.template import to_text
from ratelimiter.parsing.units import spell_window

if TYPE_CHECKING:
    from collections.abc import Callable

    from ratelimiter.core.decision import Decision, Outcome

FINDINGS_MAX = 100  # in one reply: a body with a million bad values must not get a million findings
TEXT_MAX = 200  # characters of a field or an issue in a reply
STORE_RETRY_AFTER_S = 1  # enforcement is back within a second of a fault's end
RETRY_MS_MAX = 60_000  # clients that retry by themselves ignore longer waits and come back at once, or sleep for hours
IDENTITY_RETRY_AFTER_S = 5  # by then the identity provider has been asked again

OF_ANSWER = frozenset({"code", "message", "status", "title", "details", "request_id"})
OF_DECISION = frozenset({"retry_after_s", "limit", "remaining", "reset_s", "reset_at_s", "window_s", "rule", "rules"})
OF_DECISION |= {"quota", "window", "unit", "retry_after_ms", "should_retry"}
OF_FINDING = frozenset({"location", "field", "issue", "Issue"})
OF_APPLICATION = frozenset({"resource", "requested", "shortfall", "credential_used", "credential_required"})
VOCABULARY = OF_ANSWER | OF_DECISION | OF_FINDING | OF_APPLICATION | {"findings"}
OPTIONAL = frozenset({"message", "details"}) | OF_DECISION | OF_FINDING
GIVABLE = VOCABULARY - {"code", "status", "title", "request_id", "Issue", "findings"}

# Kind of finding -> the kind that replaces it in a dialect that does not know it.
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


class Finding(NamedTuple):
    """One fault of a request, as an application's framework found it."""

    location: str  # body, query, path, header or cookie
    field: str  # like identifiers[0].type; never its value
    issue: str  # a predicate of the field, like "must be a number"
    kind: str = INVALID  # one of KINDS


def with_issue(facts: dict[str, Any]) -> dict[str, Any]:
    """Return *facts* with `Issue` beside an `issue`."""
    return {**facts, "Issue": capitalized(to_text(facts["issue"]))} if "issue" in facts else facts


def facts_of(finding: Finding) -> dict[str, Any]:
    """Return the words of one finding."""
    location, field, issue, _ = finding
    return {"location": location, "field": field, "issue": issue, "Issue": capitalized(issue)}


def bounded(finding: Finding) -> Finding:
    """Return *finding* with its texts cut to `TEXT_MAX`."""
    return finding._replace(field=finding.field[:TEXT_MAX], issue=finding.issue[:TEXT_MAX])


def lacking_of(lacking: Unmet) -> dict[str, Any]:
    """Return the words of a requirement that a request does not meet."""
    reason, field, issue, used, required, _ = lacking
    if reason == UNAVAILABLE:
        return {"retry_after_s": IDENTITY_RETRY_AFTER_S}
    if reason == CREDENTIAL_KIND:
        return {"credential_used": used, "credential_required": required}
    return {"field": field, "issue": issue, "Issue": capitalized(issue)} if reason == HEADER_MISSING else {}


def shortfall_of(decision: Decision) -> dict[str, Any]:
    """Return the words of a refusal for want of credits."""
    requested, shortfall = decision.missing or (0, 0)
    wait_s = retry_after_s(decision)
    return {"requested": requested, "shortfall": shortfall} | ({} if wait_s is None else {"retry_after_s": wait_s})


def wait_of(wait_ms: int | None) -> dict[str, Any]:
    """Return the words of a wait of *wait_ms*, beside its whole seconds; None if no wait helps."""
    if wait_ms is None:
        return {"should_retry": "false"}
    return {"retry_after_ms": max(1, wait_ms), "should_retry": "false" if wait_ms > RETRY_MS_MAX else "true"}


def capitalized(text: str) -> str:
    """Return *text* with its first letter in upper case."""
    return text[:1].upper() + text[1:]


def _window_s(_: Decision, outcome: Outcome) -> int | float:
    return exact_s(outcome.rule.quota.window_ms)


def _quota(_: Decision, outcome: Outcome) -> str:
    quota = outcome.rule.quota
    match quota:
        case Bucket():
            return f"{quota.refill} per {exact_s(quota.window_ms)} s, {quota.limit} at once"
        case Period():
            return f"{quota.limit} per {quota.unit}"
        case Slots():
            return f"{quota.limit} at the same time"
        case Balance():
            return f"{quota.limit} in all"
        case _:
            return f"{quota.limit} per {exact_s(quota.window_ms)} s"


def _window(_: Decision, outcome: Outcome) -> str:
    quota = outcome.rule.quota
    match quota:
        case Period():
            return quota.unit
        case Slots() | Balance():
            return ""
        case _:
            return _counted(spell_window(quota.window_ms))


def _counted(window: str) -> str:
    """Return *window* with its number, as `limits` and slowapi write it: `1 minute`."""
    return window if window[0].isdigit() else f"1 {window}"


def table() -> list[tuple[str, str, str]]:
    """Return the table above: word, value, and the condition under which it has one."""
    lines = [line for line in (__doc__ or "").splitlines() if line.startswith("| `{")]
    return [(word, value, known) for word, value, known in (_cells(line) for line in lines)]


def _cells(line: str) -> list[str]:
    return [cell.strip().strip("`") for cell in line.strip("|").split(" | ")]


def _rules(decision: Decision, _: Outcome) -> list[str]:
    return [outcome.rule.name for outcome in decision.outcomes if outcome.refuses and not outcome.rule.shadow]


# Word -> its value, read from a decision and its binding outcome.
READERS: dict[str, Callable[[Decision, Outcome], Any]] = {
    "unit": lambda _, outcome: "requests" if outcome.rule.tokens is None else "tokens",
    "limit": lambda _, outcome: outcome.rule.quota.limit,
    "remaining": lambda _, outcome: outcome.remaining,
    "reset_s": lambda decision, outcome: seconds_of(decision, outcome).reset,
    "reset_at_s": lambda decision, outcome: seconds_of(decision, outcome).reset_at,
    "window_s": _window_s,
    "quota": _quota,
    "window": _window,
    "rule": lambda _, outcome: outcome.rule.name,
    "rules": _rules,
}

# Reason of a refusal -> the words that have a value then.
GIVEN = {
    OVER_LIMIT: OF_DECISION,
    BLOCKED: frozenset({"retry_after_s", "retry_after_ms", "should_retry"}),
    OVER_CAPACITY: OF_DECISION - {"retry_after_s", "retry_after_ms"},
    CREDIT_EXHAUSTED: OF_DECISION - {"retry_after_s", "retry_after_ms"} | {"requested", "shortfall"},
    MALFORMED: frozenset({"field", "issue", "Issue"}),
    STORE_ERROR: frozenset({"retry_after_s"}),
    **dict.fromkeys(REASONS, frozenset[str]()),
    UNAVAILABLE: frozenset({"retry_after_s"}),
    CREDENTIAL_KIND: frozenset({"credential_used", "credential_required"}),
    HEADER_MISSING: frozenset({"field", "issue", "Issue"}),
}
