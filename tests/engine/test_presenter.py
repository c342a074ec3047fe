"""The presenter: all that a policy looks like from outside, made once."""

from __future__ import annotations

import pytest

from ratelimiter import ConfigError
from ratelimiter.config import loader
from ratelimiter.core.decision import Decision, decide, malformed
from ratelimiter.core.identity import Identity, IdentityPolicy
from ratelimiter.core.policy import Policy
from ratelimiter.core.receipt import Receipt, Tally
from ratelimiter.engine.presenter import Presenter
from tests.requesting import per_minute

NOW_MS = 1_800_000_000_000
TOLD = IdentityPolicy(tell_upstream=(("principal", "X-Auth-Principal"), ("plan", "X-Auth-Plan")))


def decision(*, allowed: bool = True) -> Decision:
    rule = per_minute(2)
    from ratelimiter.core.rule import Hit

    hit = Hit(b"key", rule.quota, 1, rule)
    return decide([hit], Receipt(NOW_MS, allowed, [Tally(1 if allowed else 2, 60_000, 0 if allowed else 60_000)]))


def test_names_that_are_ours_are_reserved() -> None:
    """A client cannot send the headers that tell of an identity, nor an upstream the figures and the request id."""
    presenter = Presenter(Policy((per_minute(),), dialect="tracefinance", headers=("x-ratelimit",), identity=TOLD))

    assert {b"x-auth-principal", b"x_auth_principal", b"x-auth_plan"} <= presenter.reserved_request
    assert {b"x-ratelimit-limit", b"x-ratelimit-remaining", b"x-ratelimit-reset"} <= presenter.reserved_response
    assert presenter.id_header is not None
    assert presenter.id_header in presenter.reserved_request & presenter.reserved_response


def test_a_plain_policy_reserves_nothing_of_requests() -> None:
    """Without identity and without request ids every header of a request passes."""
    presenter = Presenter(Policy((per_minute(),), dialect="problem", headers=()))

    assert (frozenset(), frozenset(), None) == (
        presenter.reserved_request,
        presenter.reserved_response,
        presenter.id_header,
    )
    assert "" == presenter.request_id([(b"x-request-id", b"a")])
    assert [] == presenter.id_headers("")
    assert [] == presenter.upstream_headers(Identity(principal="alice"))


def test_the_request_id_is_in_the_header_and_in_the_body() -> None:
    """One that the client sends is taken over where the dialect's form fits it."""
    presenter = Presenter(Policy((per_minute(),), dialect="intrace"))
    identifier = presenter.request_id([])
    reply, headers = presenter.refused(decision(allowed=False), identifier)

    assert [(presenter.id_header, identifier.encode())] == presenter.id_headers(identifier)
    assert identifier.encode() in reply.body
    assert b"x-ratelimit-remaining" in dict(headers)


@pytest.mark.parametrize("dialect", ["problem", "trace", "tracefinance-v1"])
def test_a_refusal_is_the_same_whichever_way_it_is_asked_for(dialect: str) -> None:
    """With and without its rate limit headers the reply has the same bytes (9)."""
    presenter = Presenter(Policy((per_minute(),), dialect=dialect))
    refused = decision(allowed=False)

    assert presenter.refusal(refused) == presenter.refused(refused)[0]
    assert presenter.refusal(refused, "id") == presenter.refused(refused, "id")[0]


def test_faults_that_were_never_judged_are_worded_too() -> None:
    """A 400 names what is at fault, and any other status has the dialect's words."""
    presenter = Presenter(Policy((per_minute(),), dialect="problem"))

    assert presenter.refusal(malformed(0, "request", "has no Host")) == presenter.malformed("request", "has no Host")
    assert 502 == presenter.error(502).status


def test_an_identity_is_told_in_its_headers() -> None:
    """What is not known is not told."""
    presenter = Presenter(Policy((per_minute(),), identity=TOLD))

    assert [(b"x-auth-principal", b"alice")] == presenter.upstream_headers(Identity(principal="alice"))


def test_a_policy_whose_dialect_is_missing_has_no_presenter() -> None:
    """It is told before the policy takes effect."""
    policy = loader.build(limit="1/minute", environ={})
    with pytest.raises(ConfigError, match="no-such"):
        Presenter(Policy(policy.rules, dialect="no-such"))
