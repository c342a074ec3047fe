"""Tokens by rule, kind and model; estimates against the truth; unreadable answers by cause."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from prometheus_client import CollectorRegistry

from ratelimiter.core.policy import Policy
from ratelimiter.core.quota import Quota
from ratelimiter.core.request import Request
from ratelimiter.core.rule import Rule
from ratelimiter.core.token_terms import TokenTerms
from ratelimiter.core.usage import Usage
from ratelimiter.engine.limiter import Limiter
from ratelimiter.metrics.limiter_metrics import Metrics
from ratelimiter.stores.memory import MemoryStore
from ratelimiter.tokens.figures import Cause
from tests.requesting import per_minute
from tests.tokens.answers import JSON, openai_chat, openai_usage

if TYPE_CHECKING:
    from typing import Any

TOKENS = Rule("tokens", Quota(10_000, 60_000), tokens=TokenTerms("openai", models=("gpt-x", "gpt-x-mini*")))
POLICY = Policy((TOKENS, per_minute(100)))


def counts(registry: CollectorRegistry) -> dict[tuple[str, ...], float]:
    """Every count above 0 of the metrics of tokens, by name and labels."""
    return {
        (sample.name.removeprefix("ratelimiter_"), *sample.labels.values()): sample.value
        for metric in registry.collect()
        for sample in metric.samples
        if sample.name.startswith("ratelimiter_token") and sample.name.endswith("_total") and sample.value
    }


def test_what_is_used_is_counted_by_kind_and_model() -> None:
    """Each kind of an answer's usage, under the model's name, is counted once for its rule."""
    registry = CollectorRegistry()
    metrics = Metrics(registry, POLICY)
    metrics.used("tokens", "gpt-x", Usage(100, 50, 10, 0, 5), 200, 150)
    metrics.used("tokens", "other", Usage(7, 0), 5, 7)

    assert {
        ("tokens_total", "tokens", "input", "gpt-x"): 100,
        ("tokens_total", "tokens", "output", "gpt-x"): 50,
        ("tokens_total", "tokens", "cached", "gpt-x"): 10,
        ("tokens_total", "tokens", "reasoning", "gpt-x"): 5,
        ("tokens_total", "tokens", "input", "other"): 7,
        ("token_units_reserved_total", "tokens"): 205,
        ("token_units_used_total", "tokens"): 157,
        ("token_overdrafts_total", "tokens"): 1,
        ("token_units_overdrawn_total", "tokens"): 2,
    } == counts(registry)


def test_unreadable_answers_are_counted_by_cause() -> None:
    """Every cause has a series from the start, so that rate() sees its first event."""
    registry = CollectorRegistry()
    metrics = Metrics(registry, POLICY)
    metrics.unreadable("tokens", Cause.CUT)
    series = {
        sample.labels["cause"]
        for metric in registry.collect()
        for sample in metric.samples
        if sample.name == "ratelimiter_token_answers_unreadable_total"
    }

    assert {("token_answers_unreadable_total", "tokens", "cut"): 1} == counts(registry)
    assert {cause.value for cause in Cause} == series


def test_a_policy_without_tokens_has_no_series_of_them() -> None:
    """Rules that count requests leave the metrics of tokens empty."""
    registry = CollectorRegistry()
    Metrics(registry, Policy((per_minute(5),)))

    assert not [
        sample
        for metric in registry.collect()
        for sample in metric.samples
        if sample.name.startswith("ratelimiter_token")
    ]


async def judged(limiter: Limiter, model: str) -> Any:
    body = b'{"model":"%s","messages":"%s","max_tokens":100}' % (model.encode(), b"x" * 400)
    request = Request("POST", b"/v1/chat/completions", [(b"content-length", b"%d" % len(body))], "192.0.2.1", body=body)
    return (await limiter.judge(request)).pending


async def test_models_are_of_the_policy_s_list() -> None:
    """Models that the policy does not list are one, however callers call them; name* stands for all that begin so."""
    registry = CollectorRegistry()
    limiter = Limiter(POLICY, MemoryStore(), observer=Metrics(registry, POLICY))
    for model in ("gpt-x", "gpt-x-mini-2026", "invented-1", "invented-2"):
        pending = await judged(limiter, model)
        pending.responded(200, JSON)(openai_chat(openai_usage(100, 10, 0, 0)))
        pending.ended()
    pending = await judged(limiter, "gpt-x")
    pending.responded(200, JSON)
    pending.ended(False, True)
    pending = await judged(limiter, "gpt-x")
    pending.responded(500, JSON)
    pending.ended(False, False)
    found = counts(registry)

    assert {"gpt-x": 100, "gpt-x-mini*": 100, "other": 200} == {
        key[3]: value for key, value in found.items() if key[:3] == ("tokens_total", "tokens", "input")
    }
    assert 1 == found["token_answers_unreadable_total", "tokens", "disconnected"]
    assert 1 == sum(value for key, value in found.items() if key[0] == "token_answers_unreadable_total")


async def test_what_was_learnt_survives_a_reload() -> None:
    """A new policy with the same terms of estimates goes on with the ratios of the old one."""
    limiter = Limiter(POLICY, MemoryStore())
    for _ in range(30):
        pending = await judged(limiter, "gpt-x")
        pending.responded(200, JSON)(openai_chat(openai_usage(200, 0, 0, 0)))
        pending.ended()
    limiter.swap(replace(POLICY, rules=(replace(TOKENS, quota=Quota(20_000, 60_000)), *POLICY.rules[1:])))
    body = b'{"model":"gpt-x","max_tokens":0,"x":"%s"}' % (b"x" * 960)
    judgement = await limiter.judge(Request("POST", b"/x", [], "192.0.2.1", body=body))

    assert 350 < judgement.hits[0].cost <= 510
