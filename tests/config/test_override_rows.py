"""Overrides from CSV and JSON lines: as those of the policy file, and very many of them."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ratelimiter.config import loader, override_rows
from ratelimiter.core.override_table import PARTS, WIDTH, OverrideTableBuilder
from ratelimiter.core.overrides import Override
from ratelimiter.engine.limiter import Limiter
from ratelimiter.errors import ConfigError
from ratelimiter.stores.memory import MemoryStore
from tests.requesting import request

if TYPE_CHECKING:
    from pathlib import Path

POLICY = """
rules:
  - {name: per-minute, principal: [header:X-API-Key, client], limit: 3/minute}
overrides_file: ./customers.%s
"""
ROWS = [
    {"principal": "header:X-API-Key=alice", "limit": "5/minute"},
    {"principal": "bob", "limit": "unlimited"},
    {"principal": "client=192.0.2.1", "limit": "1/minute", "rule": "per-minute"},
    {"principal": "client=10.0.0.0/8", "limit": "2/minute"},
    {"principal": "header:X-API-Key=big-*", "limit": "6/minute"},
    {"principal": "header:X-API-Key=past", "limit": "9/minute", "until": "2001-01-01T00:00:00Z"},
]


def written(folder: Path, suffix: str, text: str) -> Path:
    (folder / "p.yaml").write_text(POLICY % suffix)
    (folder / f"customers.{suffix}").write_text(text)
    return folder / "p.yaml"


def spelled(suffix: str) -> str:
    if suffix == "csv":
        lines = [",".join(row.get(name, "") for name in override_rows.FIELDS) for row in ROWS]
        return "\n".join([",".join(override_rows.FIELDS), *lines, ""])
    return "\n".join([*map(json.dumps, ROWS), ""])


@pytest.mark.parametrize("suffix", ["csv", "jsonl", "ndjson"])
async def test_rows_are_overrides(tmp_path: Path, suffix: str) -> None:
    """Single principals, values for any source, networks, patterns and ends mean what they mean in the policy file."""
    limiter = Limiter(loader.load(written(tmp_path, suffix, spelled(suffix))), MemoryStore())

    async def admitted(key: str = "", peer: str = "203.0.113.1") -> int:
        one = request("/", headers=[("X-API-Key", key)] if key else [], peer=peer)
        return sum([(await limiter.judge(one)).decision.allowed for _ in range(10)])

    by_key = [await admitted(key) for key in ("alice", "bob", "big-one", "past", "carol")]
    assert [5, 10, 6, 3, 3] == by_key
    assert [1, 2, 3] == [await admitted(peer=peer) for peer in ("192.0.2.1", "10.1.2.3", "192.0.2.2")]


@pytest.mark.parametrize(
    ("suffix", "text", "line", "hint"),
    [
        ("csv", "name,limit\nalice,5/minute\n", 1, "write principal,rule,limit,plan,until"),
        ("csv", "principal,limit\nalice,5/minute,x\n", 2, "has 3 columns and not 2"),
        ("csv", "principal,limit\nalice,5 parsecs\n", 2, "'5 parsecs' is not a limit"),
        ("csv", "principal,limit\nalice,5/minute\nbob,\n", 3, "neither a limit nor a plan"),
        ("csv", "principal,limit\nclient=10.0.0.1/8,5/minute\n", 2, "write 10.0.0.0/8"),
        ("csv", "principal,limit\nalice,5/hour\n", 2, "no rule has this kind and window"),
        ("csv", 'principal,limit\n"alice,5/minute\n', 2, "is not CSV"),
        ("jsonl", '{"principal": "alice", "limit": "5/minute"}\nalice\n', 2, "is not JSON"),
        ("jsonl", '{"principal": "alice", "limit": 5}\n', 1, "not an object of texts"),
        ("jsonl", '{"principal": "alice", "limits": "5/minute"}\n', 1, "not an object of texts"),
        ("jsonl", '{"principal": "", "limit": "5/minute"}\n', 1, "not a principal"),
    ],
)
def test_a_bad_row_is_named(tmp_path: Path, suffix: str, text: str, line: int, hint: str) -> None:
    """The file, the line, what is wrong and what would do."""
    with pytest.raises(ConfigError) as caught:
        loader.load(written(tmp_path, suffix, text))

    (problem,) = caught.value.problems
    assert f"customers.{suffix}:{line}: " in problem
    assert hint in problem


def test_a_file_of_nonsense_is_not_read_to_its_end(tmp_path: Path) -> None:
    """Twenty problems are told, and that there are more; values are not repeated."""
    text = "principal,limit\n" + "secret-key,5 parsecs\n" * 1000
    with pytest.raises(ConfigError) as caught:
        loader.load(written(tmp_path, "csv", text))

    assert override_rows.PROBLEMS_MAX + 1 == len(caught.value.problems)
    assert "secret-key" not in str(caught.value)


@given(st.lists(st.tuples(st.binary(min_size=WIDTH, max_size=WIDTH), st.integers(0, 3)), max_size=50))
def test_the_table_finds_what_was_added(rows: list[tuple[bytes, int]]) -> None:
    """Every digest has its overrides, in the order of the file; any other has none."""
    overrides = [Override(frozenset(), rule=f"r{number}") for number in range(4)]
    builder = OverrideTableBuilder()
    for digest, place in rows:
        builder.add(digest, place)
    steps = builder.steps(overrides)
    table = None
    pauses = 0
    while table is None:
        try:
            next(steps)
            pauses += 1
        except StopIteration as end:
            table = end.value

    assert (PARTS, len(rows)) == (pauses, len(table))
    for digest, _ in rows:
        assert [overrides[place] for other, place in rows if other == digest] == table.find(digest.hex())
    assert [] == table.find("00" * WIDTH) or bytes(WIDTH) in dict(rows)


async def test_a_hundred_thousand_customers(tmp_path: Path) -> None:
    """A file of many rows takes 20 bytes a row, and each finds its own."""
    text = "principal,limit\n" + "".join(f"customer-{n},{n % 9 + 1}/minute\n" for n in range(100_000))
    policy = loader.load(written(tmp_path, "csv", text))
    limiter = Limiter(policy, MemoryStore())

    assert policy.override_table is not None
    assert 100_000 == len(policy.override_table)
    assert 9 == len(policy.override_table.overrides)
    for number in (0, 4, 77_777, 99_999):
        one = request("/", headers=[("X-API-Key", f"customer-{number}")])
        answers = [(await limiter.judge(one)).decision.allowed for _ in range(12)]
        assert number % 9 + 1 == sum(answers)
