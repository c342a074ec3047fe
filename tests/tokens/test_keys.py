"""Budgets by model and caller, and what is wrong with a rule."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import pytest

from ratelimiter.cli.main import main
from ratelimiter.config.loader import load
from ratelimiter.core.request import Request
from ratelimiter.engine.limiter import Limiter
from ratelimiter.stores.memory import MemoryStore

if TYPE_CHECKING:
    from pathlib import Path

BY_MODEL = """\
principal: [[header:X-API-Key, json:model]]
rules:
  - {name: tokens, limit: 1000/minute, tokens: openai}
"""


async def admitted(limiter: Limiter, key: str, model: str, bound: int = 900) -> bool:
    body = json.dumps({"model": model, "max_tokens": bound, "messages": []}).encode()
    headers = [(b"x-api-key", key.encode()), (b"content-length", b"%d" % len(body))]
    request = Request("POST", b"/v1/chat/completions", headers, "192.0.2.1", body=body)
    return (await limiter.judge(request)).decision.allowed


async def test_each_model_and_caller_has_a_budget_of_its_own(tmp_path: Path) -> None:
    """With a combination of header and model as principal, one model's use leaves the others' room."""
    path = tmp_path / "policy.yaml"
    path.write_text(BY_MODEL)
    limiter = Limiter(load(path), MemoryStore())

    assert await admitted(limiter, "a", "gpt-x")
    assert not await admitted(limiter, "a", "gpt-x")
    assert await admitted(limiter, "a", "gpt-y")
    assert await admitted(limiter, "b", "gpt-x")


@pytest.mark.parametrize(
    ("rule", "issue"),
    [
        ("tokens: opnai", "rules[0].tokens: 'opnai' is not a preset; did you mean openai?"),
        ("tokens: ./nosuch.yaml", "rules[0].tokens: './nosuch.yaml' is not a file"),
        ("weights: {input: 1}", "rules[0].weights: is for rules with tokens; write tokens: with one of"),
        ("tokens: openai, cost: 5", "rules[0].cost: is what the estimate says, in a rule with tokens"),
        ("tokens: openai, weights: {inptu: 1}", "rules[0].weights: 'inptu' is unknown; did you mean input?"),
        ("tokens: openai, weights: {input: 0, output: 0}", "nothing has a weight above 0"),
        ("tokens: openai, weights: {input: 0.00000001}", "rules[0].weights: input must be"),
        ("tokens: openai, weights: {input: -1}", "rules[0].weights.input: must be 0 to 1000000, not -1"),
        ("tokens: openai, estimate: strickt", "rules[0].estimate: 'strickt' is not"),
        ("tokens: openai, estimate: {output: -1}", "rules[0].estimate.output: must be 0 to 1000000000, not -1"),
        ("tokens: openai, on_disconnect: drian", "'drian' is not keep or drain; did you mean drain?"),
        ("tokens: openai, prices: ./nosuch.yaml", "cannot be read"),
        ("tokens: openai, prices: {credit: 1, models: {}}", "an empty mapping is not"),
        (
            "tokens: openai, prices: {credit: 1, models: {m: {input: 1}}}, weights: {input: 1}",
            "excludes prices",
        ),
    ],
)
def test_what_is_wrong_with_a_rule_is_told(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], rule: str, issue: str
) -> None:
    """check-config names the place, the value and what would do, and the exit code is 2."""
    path = tmp_path / "policy.yaml"
    path.write_text(f"rules:\n  - {{name: tokens, limit: 1000/minute, {rule}}}\n")

    assert 2 == main(["check-config", str(path)])
    told = capsys.readouterr()
    assert issue in told.out + told.err
    assert "policy.yaml:2:" in told.err or "nosuch.yaml:" in told.err


def test_prices_in_a_file(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A price table may be a file beside the policy; what is wrong in it is told with its own place."""
    policy, prices = tmp_path / "policy.yaml", tmp_path / "prices.yaml"
    policy.write_text("rules: [{name: money, limit: 1000 credits, tokens: openai, prices: ./prices.yaml}]\n")
    prices.write_text("credit: 0.0001\nmodels: {gpt-x: {input: 2.5, output: 10}}\n")
    terms = load(policy).rules[0].tokens

    assert terms is not None
    assert terms.prices is not None
    assert str(prices) == terms.prices_file
    assert str(prices) in load(policy).files
    prices.write_text("credit: 0.0001\nmodels: {gpt-x: {input: 2.5, outptu: 10}}\n")
    assert 2 == main(["check-config", str(policy)])
    told = capsys.readouterr()
    assert "prices.yaml:2:30: models.gpt-x: 'outptu' is unknown; did you mean output?" in told.out + told.err
