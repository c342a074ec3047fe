"""The guide from another limiter: one application on both sides, with the same verdicts to the same requests."""

from __future__ import annotations

import importlib.util
import random
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from fastapi.testclient import TestClient

if TYPE_CHECKING:
    from types import ModuleType

APPLICATIONS = Path(__file__).parent / "data" / "moving"
GUIDE = Path(__file__).parent.parent / "docs" / "howto" / "move-from-slowapi.md"


def loaded(name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(name, APPLICATIONS / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def requests(seed: int, number: int) -> list[tuple[str, dict[str, str]]]:
    """Requests of three users and one without a name, on all paths."""
    chance = random.Random(seed)  # noqa: S311
    users: list[dict[str, str]] = [{}, {"x-user": "ann"}, {"x-user": "bob"}, {"x-user": "eve"}]
    return [
        (chance.choice(["/reports", "/search", "/suggest", "/health"]), chance.choice(users)) for _ in range(number)
    ]


@pytest.mark.parametrize("seed", range(5))
def test_slowapi_and_ours_agree(seed: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """On who is refused, request by request, while no window has turned."""
    asked = requests(seed, 60)
    monkeypatch.setattr("time.time", lambda: 1_800_000_000.0)  # so that slowapi's minute does not turn, either

    def verdicts(app: Any) -> list[int]:
        with TestClient(app) as client:
            return [client.get(path, headers=headers).status_code for path, headers in asked]

    before, after = verdicts(loaded("slowapi_before").app), verdicts(loaded("slowapi_after").app)

    assert before == after
    assert {200, 429} == set(after)


@pytest.mark.parametrize("name", ["slowapi_before", "slowapi_after"])
def test_the_guide_shows_what_is_run(name: str) -> None:
    """Each application whole, to the letter."""
    assert f"```python\n{(APPLICATIONS / f'{name}.py').read_text()}```" in GUIDE.read_text()
