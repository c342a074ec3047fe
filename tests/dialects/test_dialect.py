from __future__ import annotations

import json
import re
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ratelimiter.core.decision import MALFORMED, OVER_LIMIT, Decision, Outcome, unmatched
from ratelimiter.core.quota import AnyQuota, Balance, Bucket, Period, Quota, Slots
from ratelimiter.core.rule import Rule
from ratelimiter.dialects import dialect as module
from ratelimiter.dialects import loader, words
from ratelimiter.dialects.dialect import Dialect, InvalidDialectError
from ratelimiter.dialects.request_id import RequestIds
from ratelimiter.dialects.words import FINDINGS_MAX, GIVABLE, KINDS, VOCABULARY, Finding
from tests.golden_replies import (
    NOW_MS,
    TOKEN_ID,
    blocked_caller,
    credit_exhausted,
    malformed_request,
    over_capacity,
    over_limit,
    store_error,
)

if TYPE_CHECKING:
    from ratelimiter.core.reply import Reply

INTRACE = loader.load("intrace")
TRACE = loader.load("trace")
TRACEFINANCE = loader.load("tracefinance")
TRACEFINANCE_V1 = loader.load("tracefinance-v1")
SENTINEL = loader.load("sentinel")
PROBLEM = loader.load("problem")
PLAIN = loader.load("plain")
ALL = [loader.load(name) for name in loader.names()]

MINE: dict[str, Any] = {
    "about": "mine",
    "media_type": "application/json",
    "body": {"error": "{code}", "says": "{message}", "more": "{details}", "left": "{remaining}"},
    "answers": {
        "rate_limited": {"status": 429, "message": "Slow down"},
        "unavailable": {"status": 503, "message": "Later"},
        "malformed": {"status": 400, "message": "{field} {issue}"},
        "missing_word": {"status": 404, "message": "no {resource}"},
    },
    "refusals": {
        "over_limit": "rate_limited",
        "over_capacity": "rate_limited",
        "malformed": "malformed",
        "store_error": "unavailable",
    },
    "general": {"code": "snake_case", "message": "{title}"},
}

LONG = "too long " * 30_000

DOCUMENTED = {
    "intrace, an error": (
        INTRACE.reply(
            "invalid_identifier_type",
            request_id=TOKEN_ID,
            details=[{"field": "identifiers[0].type", "issue": "Must be one of: email, phone, ..."}],
        ),
        422,
        (
            '{"error": {"code": "invalid_identifier_type", "message": "The identifier type is not recognized.", '
            '"details": [{"field": "identifiers[0].type", "issue": "Must be one of: email, phone, ..."}]}, '
            '"request_id": "req_01JNQBC4X8Y2Z3A"}'
        ),
    ),
    "trace, 429": (
        TRACE.refusal(over_limit()),
        429,
        (
            '{"error": "operational_rate_limit_exceeded", "message": "Too many requests. Please wait before '
            'retrying.", "retry_after_seconds": 30}'
        ),
    ),
    "trace, 402": (
        TRACE.reply("credit_exhausted", requested=50, shortfall=12),
        402,
        (
            '{"error": "credit_exhausted", "message": "Insufficient credits to complete this request.", "requested": '
            '50, "shortfall": 12}'
        ),
    ),
    "trace, 403": (
        TRACE.reply("user_credential_required"),
        403,
        (
            '{"error": "user_credential_required", "message": "This endpoint operates on user-scoped resources and '
            "requires a user-bound credential. Org-level and admin API keys cannot access it. Use a user-scoped "
            'API key (trace_…) or authenticate via the app.", "credential_type_used": "org_api_key", '
            '"credential_type_required": "user_api_key_or_jwt"}'
        ),
    ),
    "trace, 401": (
        TRACE.reply("invalid_api_key"),
        401,
        '{"error": "invalid_api_key", "message": "Invalid or revoked API key"}',
    ),
    "trace, 404": (
        TRACE.reply("company_not_found", resource="x.example"),
        404,
        '{"error": {"code": "company_not_found", "message": "No company found for \'x.example\'"}}',
    ),
    "trace, unhandled": (TRACE.reply_for_status(500), 500, '{"error": "Internal server error"}'),
    "tracefinance, 400": (
        TRACEFINANCE.reply("INVALID_DATA", field="amount.value", issue="must be a positive integer"),
        400,
        (
            '{"code": "INVALID_DATA", "message": "The field \'amount.value\' must be a positive integer.", '
            '"details": {"field": "amount.value"}}'
        ),
    ),
    "tracefinance, 429": (
        TRACEFINANCE.refusal(over_limit()),
        429,
        '{"code": "RATE_LIMIT_EXCEEDED", "message": "Rate limit exceeded", "details": {"retry_after_seconds": 30}}',
    ),
    "tracefinance-v1, 429": (
        TRACEFINANCE_V1.refusal(over_limit()),
        429,
        '{"code": "TOO_MANY_CONCURRENT_REQUESTS", "message": "Too many concurrent requests", "details": {}}',
    ),
    "sentinel, 400": (
        SENTINEL.validation_reply([Finding("body", "customer_id", "is required", "missing")]),
        400,
        '{"error": "Bad Request", "message": "customer_id is required", "status": 400}',
    ),
    "sentinel, 401": (
        SENTINEL.reply("TENANT_NOT_FOUND"),
        401,
        '{"error": "Unauthorized", "message": "missing tenant ID", "status": 401}',
    ),
    "sentinel, 429": (
        SENTINEL.refusal(over_limit()),
        429,
        (
            '{"error": "Rate Limited", "message": "Rate limit exceeded. Please retry after the reset time.", '
            '"status": 429}'
        ),
    ),
}


@pytest.mark.parametrize(("reply", "status", "body"), DOCUMENTED.values(), ids=DOCUMENTED)
def test_documented_examples_are_reproduced_byte_for_byte(reply: Reply, status: int, body: str) -> None:
    """What an API's documentation shows is what we send."""
    assert (status, body) == (reply.status, reply.body.decode())


def test_documented_validation_example_of_tracefinance_v1() -> None:
    """The older API nests its findings. Its example writes the parameter in capitals in the message alone."""
    documented = (
        '{"code": "INVALID_DATA", "message": "Object contains invalid data", "details": {"errors": [{"code": '
        '"REQUIRED", "message": "Parameter \'XXX\' not found in request", "field": "body:xxx", "params": {}}]}}'
    )

    reply = TRACEFINANCE_V1.validation_reply([Finding("body", "xxx", "is required", "missing")])

    assert reply is not None
    assert (400, documented.replace("XXX", "xxx")) == (reply.status, reply.body.decode())


DOCUMENTED_CODES = {
    "intrace": {
        400: "request_malformed field_required field_invalid",
        401: "credentials_missing token_expired token_invalid api_key_invalid",
        403: "insufficient_scope",
        404: "not_found",
        422: "invalid_identifier_type identifier_format_invalid no_identifiers too_many_identifiers",
        429: "rate_limit_exceeded",
        500: "internal_error signing_failed database_error",
    },
    "trace": {
        401: "authentication_required invalid_api_key",
        402: "credit_exhausted",
        403: "user_credential_required key_missing_org_association email_verification_required",
        404: "company_not_found",
        429: "operational_rate_limit_exceeded",
    },
    "tracefinance": {
        400: "INVALID_DATA REQUIRED INVALID_UUID INVALID_ENUM INVALID_DATE INVALID_TYPE MISSING_REQUIRED_HEADER "
        "INCOMPATIBLE_CURRENCY INVALID_FILTER_FORMAT",
        404: "RESOURCE_NOT_FOUND",
        409: "IDEMPOTENT_ID_CONFLICT RESOURCE_ALREADY_EXISTS ATTRIBUTE_MISMATCH INVALID_MFA_CODE",
        422: "INVALID_STATUS_CHANGE CANNOT_EXECUTE_ACTION REQUIRED_ATTRIBUTE_IS_NULL MFA_NOT_ENABLED",
        429: "RATE_LIMIT_EXCEEDED",
    },
    "tracefinance-v1": {400: "INVALID_DATA", 429: "TOO_MANY_CONCURRENT_REQUESTS"},
    "sentinel": {
        400: "VALIDATION_ERROR INVALID_ENROLLMENT_REASON INVALID_SIGNAL_CATEGORY INVALID_RULE_TYPE INVALID_SEVERITY "
        "INVALID_WEIGHT",
        401: "TENANT_NOT_FOUND",
        404: "PROFILE_NOT_FOUND SIGNAL_NOT_FOUND RULE_NOT_FOUND BASELINE_NOT_FOUND BATCH_RUN_NOT_FOUND",
        409: "INVALID_STATE INVALID_STATUS_TRANSITION",
        429: "RATE_LIMIT_EXCEEDED",
    },
}


@pytest.mark.parametrize("name", DOCUMENTED_CODES)
def test_every_documented_code_is_there_with_its_status(name: str) -> None:
    """A dialect carries every documented error of its API."""
    answers = loader.load(name).answers

    for status, codes in DOCUMENTED_CODES[name].items():
        for code in codes.split():
            assert (status, code) == (answers[code].status, answers[code].code)


@pytest.mark.parametrize("dialect", ALL, ids=repr)
def test_refusal_over_the_limit_says_when_to_come_back(dialect: Dialect) -> None:
    """429, not to be stored, with Retry-After in whole seconds, rounded up."""
    reply = dialect.refusal(over_limit(), TOKEN_ID)
    headers = dict(reply.headers)

    assert 429 == reply.status
    assert (b"30", b"no-store") == (headers[b"retry-after"], headers[b"cache-control"])
    assert b"%d" % len(reply.body) == headers[b"content-length"]


@pytest.mark.parametrize("dialect", ALL, ids=repr)
def test_refusal_of_what_can_never_fit_promises_nothing(dialect: Dialect) -> None:
    """No Retry-After, in no header and no body, and words that say so."""
    reply = dialect.refusal(over_capacity(), TOKEN_ID)

    assert 429 == reply.status
    assert b"retry-after" not in dict(reply.headers)
    assert b"retry_after" not in reply.body
    assert b"waiting does not help" in reply.body.lower()


@pytest.mark.parametrize("dialect", ALL, ids=repr)
def test_refusal_of_a_malformed_request_names_what_is_at_fault(dialect: Dialect) -> None:
    """400 with field and issue, and no header that speaks of waiting."""
    reply = dialect.refusal(malformed_request(), TOKEN_ID)

    assert 400 == reply.status
    assert b"path" in reply.body
    assert b"as an encoded slash, backslash or control character" in reply.body
    assert b"retry-after" not in dict(reply.headers)


@pytest.mark.parametrize("dialect", ALL, ids=repr)
def test_refusal_without_a_store_is_no_429(dialect: Dialect) -> None:
    """Our fault is 503 with Retry-After: 1."""
    reply = dialect.refusal(store_error(), TOKEN_ID)

    assert (503, b"1") == (reply.status, dict(reply.headers)[b"retry-after"])


def test_malformed_without_a_fault_still_answers() -> None:
    """A decision that does not say what is wrong is no reason to fail."""
    assert 400 == INTRACE.refusal(Decision(False, MALFORMED, NOW_MS, (), None)).status


def test_over_limit_without_a_wait_is_over_capacity() -> None:
    """Whatever the reason says, nobody is told to come back for nothing."""
    never = over_capacity()._replace(reason=OVER_LIMIT)

    assert TRACE.refusal(over_capacity()) == TRACE.refusal(never)


def test_an_allowed_decision_is_no_refusal() -> None:
    """To refuse what was admitted is a programmer's error."""
    with pytest.raises(ValueError, match="allowed is not a refusal"):
        TRACE.refusal(unmatched(NOW_MS))


def test_rules_are_those_that_refuse() -> None:
    """The default dialect names the policies that are violated, and no others."""
    body = json.loads(PROBLEM.refusal(over_limit()).body)

    assert ["per-minute"] == body["violated-policies"]
    assert "https://iana.org/assignments/http-problem-types#quota-exceeded" == body["type"]


def test_equal_decisions_are_equal_bytes() -> None:
    """Invariant 9."""
    for dialect in ALL:
        assert dialect.refusal(over_limit(), "x") == dialect.refusal(over_limit(), "x")


def test_unknown_answer_says_what_would_do() -> None:
    """A slip in a name is told with the name that was meant."""
    with pytest.raises(ValueError, match="no answer 'credit_exausted'; did you mean credit_exhausted"):
        TRACE.reply("credit_exausted")


def test_missing_fact_is_named() -> None:
    """What an answer speaks of has to be given."""
    with pytest.raises(ValueError, match="credit_exhausted uses shortfall; give shortfall="):
        TRACE.reply("credit_exhausted", requested=50)


@pytest.mark.parametrize("word", ["shortfal", "principal", "code", "request_ids"])
def test_unknown_fact_is_refused(word: str) -> None:
    """A fact that no answer could speak of is a slip."""
    unknown: dict[str, Any] = {word: 1}
    with pytest.raises(ValueError, match=f"'{word}' is not a word"):
        TRACE.reply("credit_exhausted", requested=50, shortfall=12, **unknown)


def test_message_and_details_of_an_answer_can_be_replaced() -> None:
    """An application knows more than the documentation."""
    reply = INTRACE.reply("not_found", request_id="r", message='No "x"', details=[{"field": "id"}])

    assert {
        "error": {"code": "not_found", "message": 'No "x"', "details": [{"field": "id"}]},
        "request_id": "r",
    } == json.loads(reply.body)


def test_a_fact_of_waiting_becomes_retry_after() -> None:
    """An application that limits something itself has the same 429."""
    reply = TRACE.reply("operational_rate_limit_exceeded", retry_after_s=30)

    assert TRACE.refusal(over_limit()) == reply


def test_status_with_a_documented_answer_gives_it() -> None:
    """A bare 404 is the API's 404."""
    assert INTRACE.reply("not_found") == INTRACE.reply_for_status(404)


def test_status_without_one_has_the_general_form() -> None:
    """What the API does not document looks as if it did."""
    body = json.loads(INTRACE.reply_for_status(405).body)

    assert {"code": "method_not_allowed", "message": "Method Not Allowed.", "details": []} == body["error"]


def test_status_without_a_reason_phrase_has_that_of_its_class() -> None:
    """An unregistered status is treated as the x00 of its class (RFC 9110 section 15)."""
    assert "CLIENT_ERROR" == json.loads(TRACEFINANCE.reply_for_status(499).body)["code"]


@pytest.mark.parametrize("status", [200, 204, 302, 399, 600])
def test_status_that_is_no_error_is_refused(status: int) -> None:
    """A dialect words errors."""
    with pytest.raises(ValueError, match="status must be 400 to 599"):
        INTRACE.reply_for_status(status)


def test_status_with_the_code_of_an_answer_gives_that() -> None:
    """A code that is documented for the status selects its answer."""
    assert TRACE.reply("credit_exhausted", requested=1, shortfall=1) == TRACE.reply_for_status(
        402, code="credit_exhausted", requested=1, shortfall=1
    )


def test_status_with_the_code_of_an_answer_that_needs_more_does_not_fail() -> None:
    """An error page never fails for want of facts."""
    assert {"error": "credit_exhausted", "message": "Pay"} == json.loads(
        TRACE.reply_for_status(402, code="credit_exhausted", message="Pay").body
    )


def test_status_with_a_code_of_its_own_carries_it() -> None:
    """An undocumented code stands in the documented shape."""
    body = json.loads(INTRACE.reply_for_status(409, code="stale", message="Reload.").body)

    assert {"code": "stale", "message": "Reload.", "details": []} == body["error"]


def test_problem_leaves_out_what_it_does_not_know() -> None:
    """about:blank with the phrase as title needs no detail that repeats it."""
    assert b'{"type": "about:blank", "title": "Not Found", "status": 404}' == PROBLEM.reply_for_status(404).body


@pytest.mark.parametrize(
    ("kind", "code"),
    [("missing", "field_required"), ("invalid", "field_invalid"), ("malformed", "request_malformed")],
)
def test_validation_in_intrace(kind: str, code: str) -> None:
    """400 with the code of the finding, and the fields as details."""
    reply = INTRACE.validation_reply([Finding("body", "identifiers[0].type", "must be one of: email", kind)], "r")

    assert reply is not None
    error = json.loads(reply.body)["error"]
    assert (400, code) == (reply.status, error["code"])
    assert [{"field": "identifiers[0].type", "issue": "Must be one of: email"}] == error["details"]


@pytest.mark.parametrize(
    ("kind", "code"),
    [
        ("missing", "REQUIRED"),
        ("header", "MISSING_REQUIRED_HEADER"),
        ("invalid", "INVALID_DATA"),
        ("uuid", "INVALID_UUID"),
        ("enum", "INVALID_ENUM"),
        ("date", "INVALID_DATE"),
        ("type", "INVALID_TYPE"),
        ("malformed", "INVALID_DATA"),
    ],
)
def test_validation_in_tracefinance(kind: str, code: str) -> None:
    """400 with the documented code for each kind of finding."""
    reply = TRACEFINANCE.validation_reply([Finding("body", "id", "is wrong", kind)])

    assert reply is not None
    body = json.loads(reply.body)
    assert (400, code) == (reply.status, body["code"])
    assert ({} if kind == "malformed" else {"field": "id"}) == body["details"]


def test_a_body_that_cannot_be_read_decides_the_answer() -> None:
    """Where the JSON is broken, everything else that was found follows from that."""
    missing = Finding("query", "depth", "is required", "missing")
    reply = INTRACE.validation_reply([missing, Finding("body", "body", "is not valid JSON", "malformed")])

    assert reply is not None
    assert "request_malformed" == json.loads(reply.body)["error"]["code"]


def test_validation_in_trace_is_left_to_the_framework() -> None:
    """422 stays FastAPI's own."""
    assert TRACE.validation_reply([Finding("body", "id", "is required", "missing")]) is None
    assert not TRACE.validates


def test_validation_as_a_problem() -> None:
    """422 with the findings as an extension (RFC 9457 section 3.2)."""
    reply = PROBLEM.validation_reply([Finding("query", "depth", "must be a number")])

    assert reply is not None
    assert (422, b"application/problem+json") == (reply.status, dict(reply.headers)[b"content-type"])
    assert [{"detail": "must be a number", "in": "query", "field": "depth"}] == json.loads(reply.body)["errors"]


def test_validation_in_plain_text() -> None:
    """One line says it all."""
    reply = PLAIN.validation_reply([Finding("body", "a", "is required", "missing"), Finding("body", "b", "is\nodd")])

    assert reply is not None
    assert b"422 Unprocessable Content: a is required; b is odd\n" == reply.body


def test_findings_are_bounded() -> None:
    """A large bad body is not answered with a larger one."""
    findings = [Finding("body", "x" * 10_000, "is odd" * 10_000)] * 10_000
    reply = INTRACE.validation_reply(findings)

    assert reply is not None
    assert FINDINGS_MAX == len(json.loads(reply.body)["error"]["details"])
    assert 60_000 > len(reply.body)


TEXT = st.text(st.characters(codec=None, exclude_categories=()), max_size=40) | st.sampled_from(
    ['"', "\\", "\r\nx: y", "{message}", "{{", "\ud800", "\u2028", "</script>", "\x00"]
)


@given(text=TEXT, request_id=TEXT)
def test_whatever_is_filled_in_stays_what_it_is(text: str, request_id: str) -> None:
    """Any text yields valid JSON that reads back as that text."""
    reply = INTRACE.reply("field_invalid", request_id=request_id, message=text, details=[{"field": text, "n": [1.5]}])

    assert {
        "error": {"code": "field_invalid", "message": text, "details": [{"field": text, "n": [1.5]}]},
        "request_id": request_id,
    } == json.loads(reply.body)


@given(field=TEXT, issue=TEXT)
def test_whatever_is_filled_into_a_sentence_stays_inside_it(field: str, issue: str) -> None:
    """Inside other text, too, no value ends the string that holds it."""
    reply = TRACEFINANCE.reply("INVALID_DATA", field=field, issue=issue)

    assert f"The field '{field}' {issue}." == json.loads(reply.body)["message"]
    assert {"field": field} == json.loads(reply.body)["details"]


@given(findings=st.lists(st.builds(Finding, TEXT, TEXT, TEXT, st.sampled_from(sorted(KINDS))), min_size=1, max_size=5))
def test_any_findings_yield_a_valid_reply(findings: list[Finding]) -> None:
    """Whatever a framework finds, every dialect can say it."""
    for dialect in ALL:
        reply = dialect.validation_reply(findings, TOKEN_ID)
        if reply is not None and dialect is not PLAIN:
            json.loads(reply.body)
        if reply is not None:
            assert b"%d" % len(reply.body) == dict(reply.headers)[b"content-length"]


@given(text=TEXT)
def test_plain_text_stays_on_one_line(text: str) -> None:
    """No text that is filled in begins a second line."""
    body = PLAIN.reply_for_status(404, message=text).body.decode()

    assert 1 == len(body.splitlines())
    assert body.endswith("\n")


@given(text=TEXT)
def test_no_value_ends_a_header(text: str) -> None:
    """A header field takes a value as one line of ASCII."""
    answers = {**MINE["answers"], "gone": {"status": 410, "headers": {"X-Was": "<{resource}>"}}}
    reply = Dialect("mine", {**MINE, "answers": answers}).reply("gone", resource=text)
    value = dict(reply.headers)[b"x-was"]

    assert re.fullmatch(rb"<[\x20-\x7e]*>", value)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), object(), {1, 2}])
def test_what_json_cannot_hold_is_refused(value: object) -> None:
    """A number that is not finite would be no JSON."""
    with pytest.raises((TypeError, ValueError)):
        INTRACE.reply("not_found", details=value)


def test_a_lone_placeholder_keeps_its_type() -> None:
    """A number stays a number, a list a list."""
    body = {"n": "{limit}", "s": "{limit} and {rules}", "l": "{rules}", "b": "{{x}}"}
    refusals = {**MINE["refusals"], "over_limit": {"answer": "rate_limited", "body": body}}
    reply = Dialect("mine", {**MINE, "refusals": refusals}).refusal(over_limit())

    assert {"n": 60, "s": "60 and per-minute", "l": ["per-minute"], "b": "{x}"} == json.loads(reply.body)


def test_every_word_of_a_decision_can_be_said() -> None:
    """The words of the table are those that a dialect has."""
    words = ["retry_after_s", "limit", "remaining", "reset_s", "reset_at_s", "window_s", "quota", "rule", "rules"]
    reply = Dialect("mine", {**MINE, "body": {word: f"{{{word}}}" for word in words}}).refusal(over_limit())

    assert {
        "retry_after_s": 30,
        "limit": 60,
        "remaining": 0,
        "reset_s": 30,
        "reset_at_s": 1_800_000_030,
        "window_s": 60,
        "quota": "60 per 60 s",
        "rule": "per-minute",
        "rules": ["per-minute"],
    } == json.loads(reply.body)


@pytest.mark.parametrize(
    ("quota", "told"),
    [
        (Quota(5, 1500), {"w": 1.5, "q": "5 per 1.5 s", "p": "1500 ms"}),
        (Quota(5, 60_000), {"w": 60, "q": "5 per 60 s", "p": "1 minute"}),
        (Quota(5, 7_200_000), {"w": 7200, "q": "5 per 7200 s", "p": "2 hours"}),
        (Bucket(100, 10, 1000), {"w": 1, "q": "10 per 1 s, 100 at once", "p": "1 second"}),
        (Period(500, "month"), {"w": 0, "q": "500 per month", "p": "month"}),
        (Slots(2), {"w": 0, "q": "2 at the same time", "p": ""}),
        (Balance(1000), {"w": 0, "q": "1000 in all", "p": ""}),
    ],
)
def test_every_kind_of_limit_is_told_as_what_it_is(quota: AnyQuota, told: dict[str, object]) -> None:
    """In words that are true where there is no window, too."""
    outcome = Outcome(Rule("rule", quota), 0, 1000, 1000)
    decision = Decision(False, OVER_LIMIT, 0, [outcome], outcome)
    body = {"w": "{window_s}", "q": "{quota}", "p": "{window}"}

    assert told == json.loads(Dialect("mine", {**MINE, "body": body}).refusal(decision).body)


def test_a_block_is_over_the_limit_unless_the_dialect_says_otherwise() -> None:
    """Documented is one 429; who has a word for it may use it."""
    silent = Dialect("mine", MINE).refusal(blocked_caller())
    refusals = {**MINE["refusals"], "blocked": {"answer": "rate_limited", "message": "Not today."}}
    told = Dialect("mine", {**MINE, "refusals": refusals}).refusal(blocked_caller())

    assert (429, 429) == (silent.status, told.status)
    assert b"Not today." in told.body
    assert b"Not today." not in silent.body
    assert (b"retry-after", b"30") in silent.headers
    assert (b"retry-after", b"30") in told.headers


def test_the_vocabulary_is_the_table_in_the_documentation() -> None:
    """What the documentation lists is what there is."""
    assert words.__doc__ is not None
    table = re.findall(r"^\| `\{(\w+)\}` \|", words.__doc__, re.MULTILINE)

    assert sorted(VOCABULARY) == sorted(table)
    assert [f"{{{word}}}" for word in table] == [word for word, _, _ in words.table()]
    assert all(value and known for _, value, known in words.table())
    assert GIVABLE < VOCABULARY


def test_there_is_no_word_for_the_principal() -> None:
    """Invariant 8: what has no word cannot be said."""
    for word in VOCABULARY:
        assert not re.search("principal|client|key|token|address|user|header|cost|secret", word)


@pytest.mark.parametrize(
    ("change", "fault"),
    [
        ({"body": {"error": "{coed}"}}, "body.error: {coed} is not a word; did you mean {code}?"),
        ({"body": {"error": "{"}}, "body.error: a single {; write {{ for the brace itself"),
        ({"body": {"error": "{}"}}, "body.error: {} names no word; write {{}} for the braces themselves"),
        ({"refusals": {**MINE["refusals"], "over_limit": "x"}}, "refusals.over_limit: there is no answer 'x'; write"),
        ({"statuses": {"404": "malformed"}}, "statuses.404: malformed has the status 400; name an answer with 404"),
        ({"statuses": {"404": "missing_word"}}, "statuses.404: uses {resource}, which has no value here"),
        (
            {
                "refusals": {
                    **MINE["refusals"],
                    "over_capacity": {"answer": "rate_limited", "message": "in {retry_after_s} s"},
                }
            },
            "refusals.over_capacity: uses {retry_after_s}, which has no value here",
        ),
        ({"general": {"code": "snake_case", "shape": "x"}}, "general.shape: there is no shape 'x'; there is none"),
        (
            {"shapes": {"s": {"e": "{code}"}}, "general": {"code": "snake_case", "shape": "s", "body": {"e": 1}}},
            "general.shape: shape and body exclude each other; leave one out",
        ),
        (
            {
                "answers": {**MINE["answers"], "gone": {"status": 404, "headers": {"X-What": "{resource}"}}},
                "statuses": {"404": "gone"},
            },
            "statuses.404: uses {resource}, which has no value here",
        ),
        (
            {"validation": {"kinds": {"other": "missing_word"}, "finding": {"says": "{message}"}}},
            "validation.finding: uses {resource}, which has no value here",
        ),
        (
            {"validation": {"kinds": {"other": "missing_word"}, "finding": "{message}"}},
            "validation.finding: uses {resource}, which has no value here",
        ),
        (
            {
                "validation": {
                    "kinds": {"other": {"answer": "malformed", "message": LONG}},
                    "finding": {"m": "{message}"},
                }
            },
            "validation.finding: grows beyond 262144 bytes, as its words contain other words; write these out",
        ),
        (
            {"statuses": {"404": {"answer": "missing_word", "message": LONG}}},
            "statuses.404: grows beyond 262144 bytes, as its words contain other words; write these out",
        ),
        ({"general": {"code": "snake_case", "body": "x"}}, "general.body: one body is text, another an object"),
        ({"headers": {"Retry-After": "1"}}, "headers.Retry-After: Retry-After is written by the limiter; leave it out"),
    ],
)
def test_what_could_fail_later_is_refused_at_once(change: dict[str, Any], fault: str) -> None:
    """A dialect that was made never meets a missing word."""
    with pytest.raises(InvalidDialectError) as invalid:
        Dialect("mine", {**MINE, **change})

    assert str(invalid.value).startswith(fault)


@pytest.mark.parametrize(
    ("form", "value", "well_formed"),
    [
        ("uuid", b"7d3f6b0e-4c1a-4f5e-9b57-2d1c8a9e0f36", True),
        ("uuid", b"7D3F6B0E-4C1A-4F5E-9B57-2D1C8A9E0F36", True),
        ("uuid", b"7d3f6b0e4c1a4f5e9b572d1c8a9e0f36", False),
        ("uuid", b"7d3f6b0e-4c1a-4f5e-9b57-2d1c8a9e0f36\n", False),
        ("uuid", b"", False),
        ("token", b"req_01JNQBC4X8Y2Z3A", True),
        ("token", b"a" * 64, True),
        ("token", b"a" * 65, False),
        ("token", b"a b", False),
        ("token", b"a\r\nx: y", False),
        ("token", "é".encode(), False),
        ("token", b"", False),
    ],
)
def test_only_well_formed_ids_are_taken_over(form: str, value: bytes, well_formed: bool) -> None:
    """What a caller calls a request must be harmless in a header, a body and a log."""
    assert well_formed is RequestIds(form=form).well_formed(value)


def test_which_dialects_name_requests() -> None:
    """Request ids go where the API documents them."""
    assert {"anthropic", "intrace", "tracefinance", "tracefinance-v1"} == {
        d.name for d in ALL if d.request_ids is not None
    }
    assert RequestIds(b"x-request-id", "token", "req_") == INTRACE.request_ids
    assert RequestIds(b"x-request-id", "uuid") == TRACEFINANCE.request_ids


def test_remembered_templates_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever combinations of facts come, memory stays bounded, and the bytes the same."""
    monkeypatch.setattr(module, "COMPILED_MAX", 2)
    dialect = Dialect("mine", MINE)
    for _ in range(2):
        for facts in ({}, {"message": "a"}, {"details": 1}, {"message": "a", "details": 1}):
            assert 429 == dialect.reply("rate_limited", **facts).status


def test_exhausted_credits_are_told_as_documented() -> None:
    """Trace's 402, to the letter; a balance has no moment to come back at, a calendar quota has."""
    decision = credit_exhausted()
    assert decision.binding is not None
    later = decision._replace(binding=decision.binding._replace(retry_after_ms=86_400_001))
    reply, again = TRACE.refusal(decision), TRACE.refusal(later)

    assert 402 == reply.status
    assert {
        "error": "credit_exhausted",
        "message": "Insufficient credits to complete this request.",
        "requested": 50,
        "shortfall": 12,
    } == json.loads(reply.body)
    assert reply.body == again.body
    assert "retry-after" not in {name.decode() for name, _ in reply.headers}
    assert (b"retry-after", b"86401") in again.headers
    assert (b"cache-control", b"no-store") in reply.headers


def test_a_dialect_need_not_word_exhausted_credits() -> None:
    """Those that do not say are answered as any error of that status, which may speak of what was missing."""
    plain = Dialect("mine", MINE).refusal(credit_exhausted())
    own = {
        **MINE,
        "answers": {**MINE["answers"], "broke": {"status": 402, "message": "{shortfall} of {requested}"}},
        "refusals": {**MINE["refusals"], "credit_exhausted": "broke"},
    }
    reply = Dialect("mine", own).refusal(credit_exhausted())

    assert (402, "payment_required") == (plain.status, json.loads(plain.body)["error"])
    assert (402, "12 of 50") == (reply.status, json.loads(reply.body)["says"])


def test_findings_inside_a_sentence_are_written_out() -> None:
    """A list of objects is JSON there, too, escaped for the string that holds it."""
    validation = {
        "kinds": dict.fromkeys(KINDS, "malformed"),
        "finding": {"at": "{field}"},
        "answer": {"answer": "malformed", "message": "see {findings}", "body": {"says": "{message}"}},
    }
    reply = Dialect("mine", {**MINE, "validation": validation}).validation_reply([Finding("body", 'a"b', "is odd")])

    assert reply is not None
    assert {"says": 'see [{"at": "a\\"b"}]'} == json.loads(reply.body)
