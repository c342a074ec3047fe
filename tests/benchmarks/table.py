"""Contestants in turn, round after round, and a table of medians with ratios: a machine that drifts drifts for all."""

from __future__ import annotations

from statistics import median
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

ROUNDS = 7


def compare(
    contestants: Mapping[str, Callable[[], float]],
    *,
    unit: str,
    floor: str,
    rounds: int = ROUNDS,
    higher_is_better: bool,
) -> dict[str, float]:
    """Run every contestant once per round and print the median of each, and of its per-round ratio to *floor*.

    Returns:
        The median ratio of each contestant; above 1 is better than the floor.
    """
    seen: dict[str, list[float]] = {name: [] for name in contestants}
    for _ in range(rounds):
        for name, run in contestants.items():
            seen[name].append(run())
    ratios: dict[str, float] = {}
    width = max(map(len, contestants))
    print(f"{'':{width}}  {unit:>14}  {'min':>10}  {'max':>10}  vs {floor}")
    for name, values in seen.items():
        pairs = zip(values, seen[floor], strict=True)
        ratios[name] = median(ours / theirs if higher_is_better else theirs / ours for ours, theirs in pairs)
        print(
            f"{name:{width}}  {median(values):14,.1f}  {min(values):10,.1f}  {max(values):10,.1f}  {ratios[name]:.2f}"
        )
    return ratios
