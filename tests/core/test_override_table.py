"""Very many overrides of single principals: each is found, and none for another principal."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ratelimiter.core.override_table import WIDTH, OverrideTable, OverrideTableBuilder
from ratelimiter.core.overrides import Override
from ratelimiter.core.quota import Quota

OVERRIDES = [Override(frozenset(), quota=Quota(limit, 60_000)) for limit in (1, 2, 3)]


def table_of(rows: list[tuple[bytes, int]]) -> OverrideTable:
    builder = OverrideTableBuilder()
    for digest, place in rows:
        builder.add(digest, place)
    steps = builder.steps(OVERRIDES)
    while True:
        try:
            next(steps)
        except StopIteration as end:
            return end.value  # type: ignore[no-any-return]


digests = st.binary(min_size=WIDTH, max_size=WIDTH) | st.sampled_from([bytes([n]) * WIDTH for n in (0, 1, 0x10, 255)])


@given(st.lists(st.tuples(digests, st.integers(0, 2)), max_size=30), digests)
def test_agrees_with_a_scan(rows: list[tuple[bytes, int]], other: bytes) -> None:
    """Each principal has the overrides of its rows, in the order of the file; any other has none."""
    table = table_of(rows)

    assert len(rows) == len(table)
    for wanted in [other, *(digest for digest, _ in rows)]:
        expected = [OVERRIDES[place] for digest, place in rows if digest == wanted]
        assert expected == table.find(wanted.hex())


@pytest.mark.parametrize("digest", [b"\0" * WIDTH, b"\xff" * WIDTH])
def test_the_ends_of_the_table(digest: bytes) -> None:
    """The first and the last digest there can be are found, twice if they are there twice; an empty table has none."""
    between = [(bytes([n]) * WIDTH, 0) for n in (7, 9)]

    assert [] == table_of([]).find(digest.hex())
    assert [] == table_of(between).find(digest.hex())
    assert [OVERRIDES[2], OVERRIDES[1]] == table_of([(digest, 2), *between, (digest, 1)]).find(digest.hex())
