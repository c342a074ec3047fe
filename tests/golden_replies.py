"""The exact bytes of every reply of every dialect, one file each under `tests/golden`.

Write them anew with `python -m tests.golden_replies`, then review the change with `git diff`.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from ratelimiter.core.decision import (
    CREDIT_EXHAUSTED,
    OVER_CAPACITY,
    OVER_LIMIT,
    STORE_ERROR,
    WITHIN_LIMIT,
    Decision,
    Outcome,
    blocked,
    malformed,
    refused_for,
)
from ratelimiter.core.identity import FAULTS, ApiKeys, Identity, IdentityPolicy, JwtPolicy
from ratelimiter.core.principal import Source
from ratelimiter.core.quota import Balance, Quota
from ratelimiter.core.reply import REASON_PHRASES, Reply
from ratelimiter.core.requirement import (
    CREDENTIAL_KIND,
    EMAIL_UNVERIFIED,
    HEADER_MISSING,
    INSUFFICIENT_SCOPE,
    ORG_MISSING,
    REASONS,
    Requirement,
    unmet,
)
from ratelimiter.core.rule import Rule
from ratelimiter.dialects import loader
from ratelimiter.dialects.words import Finding

if TYPE_CHECKING:
    from collections.abc import Iterator

    from ratelimiter.dialects.dialect import Dialect

DIRECTORY = Path(__file__).parent / "golden"
NOW_MS = 1_800_000_000_123
TOKEN_ID = "req_01JNQBC4X8Y2Z3A"  # noqa: S105  # an id, as documented
UUID_ID = "7d3f6b0e-4c1a-4f5e-9b57-2d1c8a9e0f36"
STATUSES = (400, 401, 402, 403, 404, 405, 408, 409, 422, 429, 500, 503)
KEYS = ApiKeys(Source("header", "X-API-Key"), "keys.yaml", {})
PER_MINUTE = Rule("per-minute", Quota(60, 60_000))
PER_HOUR = Rule("per-hour", Quota(1000, 3_600_000))

# What an application gives along, where an answer speaks of it.
FIELD = {"field": "amount.value", "issue": "must be a positive integer"}
FACTS: dict[str, dict[str, Any]] = {
    "credit_exhausted": {"requested": 50, "shortfall": 12},
    "CREDIT_EXHAUSTED": {"requested": 50, "shortfall": 12},
    "company_not_found": {"resource": "x.example"},
    "operational_rate_limit_exceeded": {"retry_after_s": 30},
    "RATE_LIMIT_EXCEEDED": {"retry_after_s": 30},
    "quota_exceeded": {"rules": ["burst"]},
    "invalid_identifier_type": {
        "details": [{"field": "identifiers[0].type", "issue": "Must be one of: email, phone, ..."}]
    },
    "REQUIRED": FIELD,
    "INVALID_UUID": FIELD,
    "INVALID_ENUM": FIELD,
    "INVALID_DATE": FIELD,
    "INVALID_TYPE": FIELD,
    "VALIDATION_ERROR": {"field": "customer_id", "issue": "is required"},
    "MISSING_REQUIRED_HEADER": {"field": "x-tenant-id"},
}
FACTS_OF = {("tracefinance", "INVALID_DATA"): FIELD}

FINDINGS = {
    "missing": [Finding("body", "customer_id", "is required", "missing")],
    "invalid": [Finding("body", "identifiers[0].type", "must be one of: email, phone", "enum")],
    "malformed": [Finding("body", "body", "is not valid JSON", "malformed")],
    "several": [
        Finding("header", "x-tenant-id", "is required", "header"),
        Finding("query", "depth", "must be a valid integer", "type"),
    ],
}


def over_limit() -> Decision:
    """One rule of two refuses, for 29.5 s: 30 in whole seconds."""
    refusing = Outcome(PER_MINUTE, 0, 29_500, 29_500)
    return Decision(False, OVER_LIMIT, NOW_MS, [refusing, Outcome(PER_HOUR, 940, 3_000_000, 0)], refusing)


def over_capacity() -> Decision:
    """A request that costs more than the limit."""
    refusing = Outcome(PER_MINUTE, 60, 0, None)
    return Decision(False, OVER_CAPACITY, NOW_MS, [refusing], refusing)


def blocked_caller() -> Decision:
    """An operator's block that ends in half a minute."""
    return blocked(NOW_MS, NOW_MS + 29_500, PER_MINUTE)


def credit_exhausted() -> Decision:
    """A call that needs 50 credits where 38 are left."""
    refusing = Outcome(Rule("credits", Balance(1000), cost=50), 38, 0, None)
    return Decision(False, CREDIT_EXHAUSTED, NOW_MS, [refusing], refusing, missing=(50, 12))


def malformed_request() -> Decision:
    """A request without one meaning."""
    return malformed(NOW_MS, "path", "has an encoded slash, backslash or control character")


def store_error() -> Decision:
    """No answer from the store, and the policy says deny."""
    return Decision(False, STORE_ERROR, NOW_MS, (), None, "fail_closed")


def lacking() -> Iterator[Decision]:
    """Requests within their limits that lack what is required, one for each reason."""
    admitted = Decision(True, WITHIN_LIMIT, NOW_MS, [Outcome(PER_MINUTE, 12, 30_000, 0)], None)
    identity = IdentityPolicy(JwtPolicy("https://id.example/", ("api",), "https://id.example/jwks.json"), KEYS)
    for reason in REASONS:
        holder = Identity(kind="org", method="api_key", fault=reason if reason in FAULTS else "")
        header = "X-Tenant-ID" if reason == HEADER_MISSING else ""
        requirement = {
            INSUFFICIENT_SCOPE: Requirement(scopes=frozenset({"lookup"})),
            CREDENTIAL_KIND: Requirement(kinds=frozenset({"user"})),
            ORG_MISSING: Requirement(org=True),
            EMAIL_UNVERIFIED: Requirement(email_verified=True),
        }.get(reason, Requirement(credentials=not header, header=header))
        missing = unmet([requirement], holder, (), identity, "default")
        assert missing is not None
        assert missing.reason == reason
        yield refused_for(admitted, missing)


def replies(dialect: Dialect) -> Iterator[tuple[str, Reply]]:
    """Yield every reply that *dialect* can send, with its name in the golden file."""
    ids = dialect.request_ids
    request_id = "" if ids is None else UUID_ID if ids.form == "uuid" else TOKEN_ID
    for name in dialect.answers:
        facts = FACTS_OF.get((dialect.name, name)) or FACTS.get(name, {})
        yield name, dialect.reply(name, request_id=request_id, **facts)
    refused = (over_limit(), over_capacity(), blocked_caller(), credit_exhausted(), malformed_request(), store_error())
    for decision in (*refused, *lacking()):
        yield f"refusal-{decision.reason}", dialect.refusal(decision, request_id)
    for status in STATUSES:
        yield f"status-{status}", dialect.reply_for_status(status, request_id=request_id)
    for name, findings in FINDINGS.items():
        reply = dialect.validation_reply(findings, request_id)
        if reply is not None:
            yield f"validation-{name}", reply


def as_http(reply: Reply) -> bytes:
    """Return *reply* for a reviewer: status line and headers, each on a line, then the exact bytes of the body."""
    lines = [f"HTTP/1.1 {reply.status} {REASON_PHRASES[reply.status]}".encode()]
    lines += [name + b": " + value for name, value in reply.headers]
    return b"\n".join([*lines, b"", reply.body])


def document(dialect: Dialect) -> bytes:
    """Return every reply of *dialect*, each below its name: the documentation of the API's errors."""
    return b"\n\n".join(f"### {name}\n".encode() + as_http(reply) for name, reply in replies(dialect)) + b"\n"


def golden(name: str) -> Path:
    """Return the path of the reviewed file of the dialect *name*."""
    return DIRECTORY / f"{name}.http"


def main() -> None:
    """Write all files anew, and remove those that belong to no dialect."""
    names = loader.names()
    for name in names:
        golden(name).write_bytes(document(loader.load(name)))
    for path in set(DIRECTORY.glob("*.http")) - {golden(name) for name in names}:
        path.unlink()


if __name__ == "__main__":
    main()
