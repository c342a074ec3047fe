"""What a request is reserved: from its bytes, its bounds, and what answers taught."""

from __future__ import annotations

import json
from decimal import Decimal
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ratelimiter.core.token_terms import EstimateTerms
from ratelimiter.core.weights import PLAIN, Weights
from ratelimiter.tokens import presets
from ratelimiter.tokens.estimate import MODELS_MAX, Estimate, Estimator, reserved_units
from ratelimiter.tokens.request_reader import RequestReader, Wanted


def read(preset: str, body: Any, path: str = "/v1/chat/completions") -> Wanted:
    return RequestReader(presets.load(preset)).read(path, json.dumps(body).encode())


MESSAGES = [{"role": "user", "content": '"max_tokens": 5, "n": 9'}]


@pytest.mark.parametrize(
    ("preset", "path", "body", "expected"),
    [
        ("openai", "/v1/chat/completions", {"model": "gpt-x", "messages": MESSAGES}, Wanted("gpt-x", None)),
        ("openai", "/x", {"messages": MESSAGES, "model": "m", "max_tokens": 100, "n": 3}, Wanted("m", 100, 3)),
        ("openai", "/x", {"model": "m", "max_tokens": 100, "max_completion_tokens": 50}, Wanted("m", 50)),
        ("openai", "/x", {"model": "m", "max_completion_tokens": None, "max_tokens": 100}, Wanted("m", 100)),
        ("openai", "/x", {"model": "m", "max_tokens": -1}, Wanted("m", None)),
        ("openai", "/x", {"model": "m", "max_tokens": "7"}, Wanted("m", None)),
        ("openai", "/x", {"model": "m", "n": 0, "best_of": 4}, Wanted("m", None, 4)),
        ("openai", "/x", {"model": "m", "n": 10**8}, Wanted("m", None, 1024)),
        ("openai", "/x", {"model": ["m"]}, Wanted(None, None)),
        ("openai", "/openai/deployments/my%2Fgpt/chat/completions", {"max_tokens": 7}, Wanted("my/gpt", 7)),
        ("openai", "/x", {"model": "m", "messages": [{"file_id": "f"}]}, Wanted("m", None, unseen=True)),
        ("openai-responses", "/x", {"model": "m", "previous_response_id": "r"}, Wanted("m", None, unseen=True)),
        ("openai-responses", "/x", {"model": "m", "tools": [{"type": "web_search"}]}, Wanted("m", None, unseen=True)),
        ("openai-responses", "/x", {"model": "m", "max_output_tokens": 9}, Wanted("m", 9)),
        ("anthropic", "/v1/messages", {"model": "c", "max_tokens": 200}, Wanted("c", 200)),
        (
            "gemini",
            "/v1beta/models/gemini-x:generateContent",
            {"generationConfig": {"maxOutputTokens": 10, "candidateCount": 2}},
            Wanted("gemini-x", 10, 2),
        ),
        ("bedrock", "/model/arn%3Aaws%2Fy/converse", {"inferenceConfig": {"maxTokens": 5}}, Wanted("arn:aws/y", 5)),
        ("ollama", "/api/chat", {"model": "llama", "options": {"num_predict": -1}}, Wanted("llama", None)),
    ],
)
def test_what_a_request_asks_for(preset: str, path: str, body: Any, expected: Wanted) -> None:
    """Model, bound and choices come from the members of the API, never from content; a bound that is none sets none."""
    assert expected == read(preset, body, path)


@pytest.mark.parametrize("body", [None, b"", b"{", b'{"model":"m","max_tokens":5,"x":"' + b"x" * 100, b"<html>"])
def test_a_body_that_is_not_known_as_a_whole_may_refer_elsewhere(body: bytes | None) -> None:
    """Of a body that is missing, cut or no JSON the constant for unseen input is reserved, too."""
    assert RequestReader(presets.load("openai")).read("/x", body).unseen


def test_names_in_escapes_are_seen() -> None:
    """A reference that is spelled in escapes does not slip by."""
    body = b'{"model":"m","previous\\u005fresponse_id":"r"}'

    assert RequestReader(presets.load("openai-responses")).read("/x", body).unseen


@pytest.mark.parametrize(
    ("preset", "method", "path", "expected"),
    [
        ("anthropic", "POST", "/v1/messages", False),
        ("anthropic", "POST", "/gateway/v1/messages/count_tokens", True),
        ("gemini", "POST", "/v1beta/models/gemini-x:countTokens", True),
        ("openai", "GET", "/v1/models", True),
        ("openai-responses", "POST", "/v1/responses/input_tokens", True),
        ("bedrock", "POST", "/model/x/count-tokens", True),
        ("openai", "POST", "/v1/anything", False),
    ],
)
def test_what_uses_no_tokens_is_free(preset: str, method: str, path: str, expected: bool) -> None:
    """Counting tokens and listing models is not charged; every other POST is."""
    assert expected == RequestReader(presets.load(preset)).free(method, path)


def test_an_estimate_adds_input_and_output() -> None:
    """Four bytes are a token at first; the output is the bound times the choices, the input what bytes come to."""
    estimator = Estimator(EstimateTerms())

    assert Estimate(250, 300, bounded=True) == estimator.estimate(Wanted("m", 100, 3), 1000)
    assert Estimate(250, 4096, bounded=False) == estimator.estimate(Wanted("m", None), 1000)
    assert Estimate(10_250, 4096, bounded=False) == estimator.estimate(Wanted("m", None, unseen=True), 1000)


def test_the_ratio_adapts_to_answers_within_bounds() -> None:
    """Answers move the bytes per token of their model, by at most a factor of two, whatever they say."""
    estimator = Estimator(EstimateTerms())
    for _ in range(500):
        estimator.observe(Wanted("dense", None), 1000, 333)
        estimator.observe(Wanted("images", None), 1_000_000, 1)
        estimator.observe(Wanted("wild", None), 1000, 10**9)

    assert 3.0 == pytest.approx(estimator.ratio("dense"), rel=0.03)
    assert 8.0 == pytest.approx(estimator.ratio("images"), rel=0.03)
    assert 2.0 == pytest.approx(estimator.ratio("wild"), rel=0.03)
    assert 4.0 == estimator.ratio("another")


def test_the_ratio_is_that_of_dense_texts() -> None:
    """Where half of the requests are denser than the others, estimates are nearly those of the denser ones."""
    estimator = Estimator(EstimateTerms())
    for _ in range(500):
        estimator.observe(Wanted("m", None), 1000, 200)
        estimator.observe(Wanted("m", None), 1000, 300)

    assert 290 <= estimator.estimate(Wanted("m", 0), 1000).input <= 300


def test_requests_that_teach_nothing_are_not_learnt_from() -> None:
    """Neither a tiny body nor one that refers to input elsewhere says how many bytes a token has."""
    estimator = Estimator(EstimateTerms())
    for _ in range(100):
        estimator.observe(Wanted("m", None), 10, 10)
        estimator.observe(Wanted("m", None, unseen=True), 1000, 10_000)

    assert 4.0 == estimator.ratio("m")


def test_invented_models_cost_no_memory() -> None:
    """A caller that invents model names fills a bounded table, and later ones share one ratio."""
    estimator = Estimator(EstimateTerms())
    for number in range(1000):
        estimator.observe(Wanted(f"model-{number}", None), 1000, 500)

    assert len(estimator._per_kib) <= MODELS_MAX + 1


def test_strict_reserves_the_upper_bound() -> None:
    """With strict a token is half of the bytes that the policy says, and nothing that was learnt lowers it."""
    estimator = Estimator(EstimateTerms(strict=True))
    for _ in range(100):
        estimator.observe(Wanted("m", None), 1000, 100)

    assert 500 == estimator.estimate(Wanted("m", 1), 1000).input


@given(
    input_=st.integers(0, 10**6), output=st.integers(0, 10**6), bounded=st.booleans(), capacity=st.integers(1, 10**6)
)
def test_a_guess_never_refuses_for_good(input_: int, output: int, bounded: bool, capacity: int) -> None:
    """Only what the request itself allows can exceed the capacity; with strict nothing is cut."""
    estimate = Estimate(input_, output, bounded=bounded)
    units = reserved_units(estimate, PLAIN, capacity, strict=False)

    assert units == min(input_ + output, max(capacity, output if bounded else 0))
    assert input_ + output == reserved_units(estimate, PLAIN, capacity, strict=True)


def test_weights_apply_to_what_is_reserved() -> None:
    """Input and output are reserved at their own weights."""
    weights = Weights(output=Decimal(4))

    assert 100 + 4 * 50 == reserved_units(Estimate(100, 50, bounded=True), weights, 10**6, strict=False)


@pytest.mark.parametrize("terms", [{"bytes_per_token": 0.1}, {"output": -1}, {"unseen": 10**10}])
def test_terms_out_of_range_are_refused(terms: dict[str, Any]) -> None:
    """A value that cannot be meant is refused by its name."""
    with pytest.raises(ValueError, match=next(iter(terms))):
        EstimateTerms(**terms)
