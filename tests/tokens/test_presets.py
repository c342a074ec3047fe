"""Presets: those of the package, your own, and what is wrong with them."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from ratelimiter.core.usage import Usage
from ratelimiter.errors import ConfigError
from ratelimiter.tokens import presets
from ratelimiter.tokens.usage_reader import UsageReader

if TYPE_CHECKING:
    from pathlib import Path

PACKAGED = ["anthropic", "bedrock", "cohere", "gemini", "mistral", "ollama", "openai", "openai-responses"]

OWN = """\
about: Example gateway
usage:
  - at: [x_groq.usage]
    input: [prompt_tokens]
    output: [completion_tokens]
stream:
  ends: [{text: "[DONE]"}]
"""


def test_the_package_has_these() -> None:
    """Each API of the documentation has a preset."""
    assert presets.names() == PACKAGED


@pytest.mark.parametrize("name", PACKAGED)
def test_each_says_what_it_is(name: str) -> None:
    """A preset of the package can be loaded, and is found by a text search of a few needles."""
    preset = presets.load(name)

    assert preset.about
    assert 1 <= len(preset.needles) <= 16
    assert {"input", "output"} <= set(preset.kinds())


def test_a_file_of_your_own_has_the_same_powers(tmp_path: Path) -> None:
    """A preset in a file reads places that no preset of the package reads."""
    path = tmp_path / "groq.yaml"
    path.write_text(OWN)
    reader = UsageReader(presets.load(str(path)), [(b"content-type", b"text/event-stream")])
    reader.feed(b'data: {"x_groq":{"usage":{"prompt_tokens":5,"completion_tokens":6}}}\n\ndata: [DONE]\n\n')

    assert Usage(5, 6) == reader.end(clean=False)


@pytest.mark.parametrize(
    ("text", "place", "issue"),
    [
        (OWN.replace("about: Example gateway", "about: 5"), "1:8", "about: 5 is not text"),
        (OWN.replace("input: [prompt_tokens]", "input: []"), "4:12", "an empty list is not a list of paths"),
        (OWN.replace("prompt_tokens]", '"prompt..tokens"]'), "4:13", "is not a path of names"),
        (OWN.replace("    output: [completion_tokens]\n", ""), "3:5", "output"),
        (OWN.replace("ends", "end"), "7:3", "did you mean ends"),
        (OWN.replace("text:", "texts:"), "7:11", "did you mean text"),
        (OWN.replace("[prompt_tokens]", "[usage, usage.prompt_tokens]"), "1:1", "leads through usage"),
    ],
)
def test_what_is_wrong_is_told_with_its_place(tmp_path: Path, text: str, place: str, issue: str) -> None:
    """A problem names the file, the line, the value and what would do."""
    path = tmp_path / "mine.yaml"
    path.write_text(text)

    with pytest.raises(ConfigError) as caught:
        presets.load(str(path))

    assert f"mine.yaml:{place}:" in str(caught.value)
    assert issue in str(caught.value)


def test_an_unknown_name_gets_a_hint() -> None:
    """A misspelt preset is told which was meant."""
    with pytest.raises(ConfigError, match="did you mean anthropic"):
        presets.load("antropic")
    with pytest.raises(ConfigError, match="openai-responses"):
        presets.load("x")
