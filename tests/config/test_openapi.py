from __future__ import annotations

import json
from typing import TYPE_CHECKING

import pytest

from ratelimiter.config.loader import load
from ratelimiter.config.openapi import Operation, differences, read_operations
from ratelimiter.errors import ConfigError

if TYPE_CHECKING:
    from pathlib import Path

API = {
    "openapi": "3.1.0",
    "servers": [{"url": "https://api.example.com/v1"}],
    "paths": {
        "/items": {"get": {}, "post": {}},
        "/items/{id}": {"get": {}, "parameters": []},
        "/reports/{id}/export": {"post": {}},
    },
}
POLICY = """
rules:
  - {name: all, limit: 60/minute}
  - {name: writes, limit: 5/minute, match: {methods: [POST], path: /v1/items}}
  - {name: typo, limit: 5/minute, match: {path: /v1/itmes/**}}
  - {name: wrong-method, limit: 5/minute, match: {methods: [DELETE], path: "/v1/items/{id}"}}
  - {name: exports, limit: 5/minute, match: {path: "/v1/reports/{report}/export"}}
"""


def written(folder: Path, name: str, text: str) -> Path:
    path = folder / name
    path.write_text(text)
    return path


@pytest.mark.parametrize("name", ["api.json", "api.yaml"])
def test_typos_are_found_beside_the_api(name: str, tmp_path: Path) -> None:
    """A rule that matches no operation is told, and so is an operation without a rule of its own."""
    operations = read_operations(written(tmp_path, name, json.dumps(API)))
    policy = load(written(tmp_path, "p.yaml", POLICY))

    assert Operation("POST", "/v1/items") in operations
    assert [
        "rules[2]: typo matches no operation; check its path and methods",
        "rules[3]: wrong-method matches no operation; check its path and methods",
        "GET /v1/items: only rules for all requests",
        "GET /v1/items/{id}: only rules for all requests",
    ] == differences(policy, operations)


def test_without_a_catch_all_an_operation_is_unlimited(tmp_path: Path) -> None:
    """The line says that no rule applies."""
    policy = load(written(tmp_path, "p.yaml", "rules: [{limit: 1/minute, match: {path: /a, except: /a/b}}]"))

    assert ["GET /b: no rule"] == differences(policy, [Operation("GET", "/a"), Operation("GET", "/b")])


def test_an_api_in_yaml_may_use_what_our_files_may_not(tmp_path: Path) -> None:
    """Anchors, aliases and tabs in other people's files are read."""
    text = "openapi: 3.0.0\npaths:\n  /a: &a {get: {}}\n  /b: *a\n"

    assert [Operation("GET", "/a"), Operation("GET", "/b")] == read_operations(written(tmp_path, "a.yaml", text))


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("[]", "is not an OpenAPI document, as it has no paths"),
        ('{"swagger"', "cannot be read"),
        ("a: [", "cannot be read"),
    ],
)
def test_a_file_that_is_no_api_is_refused(text: str, problem: str, tmp_path: Path) -> None:
    """With its name, the reason and what would do."""
    with pytest.raises(ConfigError, match=problem):
        read_operations(written(tmp_path, "a.yaml", text))
    with pytest.raises(ConfigError, match="No such file"):
        read_operations(tmp_path / "nowhere.yaml")
