"""What in a policy may not be meant: it can be used, and someone should look."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ratelimiter import documents

if TYPE_CHECKING:
    from collections.abc import Iterator

    from ratelimiter.core.policy import Policy
    from ratelimiter.documents import Document, Path

_FORWARDING = frozenset(
    {"x-forwarded-for", "forwarded", "x-real-ip", "x-client-ip", "true-client-ip", "cf-connecting-ip", "client-ip"}
)


def warnings(policy: Policy, document: Document | None = None) -> list[str]:
    """What in *policy* may not be meant, one line each, with its place in *document* if there is one."""
    told = [
        *_coverage_warnings(policy),
        *_credential_warnings(policy),
        *_twin_warnings(policy),
        *_header_warnings(policy, document),
    ]
    if document is None:
        return [text for _, text in told]
    return documents.told(document, (document.problem(path, text) for path, text in told))


def _coverage_warnings(policy: Policy) -> Iterator[tuple[Path, str]]:
    if not policy.catch_all:
        yield ("rules",), "rules: what none of them matches is admitted; add a rule without match if that is not meant"


def _credential_warnings(policy: Policy) -> Iterator[tuple[Path, str]]:
    """Rules whose principal the caller makes up, where nothing is counted against an address."""
    anchored = [rule for rule in policy.rules if rule.principal[0].kind in ("client", "everyone")]
    for index, rule in enumerate(policy.rules):
        if rule in anchored or any(other.match.everything or other.match == rule.match for other in anchored):
            continue
        text = (
            f"rules[{index}]: {rule.principal[0]} is not verified, so who sends a new one each time meets no limit; "
            "add a rule with principal: [client]"
        )
        yield ("rules", index), text


def _twin_warnings(policy: Policy) -> Iterator[tuple[Path, str]]:
    """Rules that another makes superfluous: the same requests, principals and window."""
    for index, rule in enumerate(policy.rules):
        for other_index, other in enumerate(policy.rules):
            same = (other.match, other.principal, other.quota.window_ms, other.burst, other.cost, other.mode) == (
                (rule.match, rule.principal, rule.quota.window_ms, rule.burst, rule.cost, rule.mode)
            )
            if same and other_index < index and other.quota == rule.quota:
                yield ("rules", index), f"rules[{index}]: is the same as rules[{other_index}]; leave one out"
                break
            if same and other.quota.limit < rule.quota.limit:
                text = f"rules[{index}]: never refuses before rules[{other_index}] does; leave one out"
                yield ("rules", index), text
                break


def _header_warnings(policy: Policy, document: Document | None) -> Iterator[tuple[Path, str]]:
    for index, rule in enumerate(policy.rules):
        for source in rule.principal:
            if source.name in _FORWARDING:
                text = (
                    f"rules[{index}]: {source} is whatever the caller writes; "
                    "write client, and your proxies into trusted_proxies"
                )
                yield ("rules", index), text
    stated = document is not None and isinstance(document.value, dict) and "client_header" in document.value
    if stated and not policy.trust.anyone:
        yield ("client_header",), "client_header: is never read, as no proxy is trusted; write trusted_proxies, too"
