"""`ratelimiter doctor`: a checkup of a policy and its store from where the limiter will run."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from ratelimiter.cli.parser import Commands
    from ratelimiter.stores.redis.checkup import Check

# What the command needs is imported when it runs.
# ruff: noqa: PLC0415

FAILED = 1  # exit status if a check failed


def add_command(commands: Commands) -> None:
    """Add `doctor` to the commands."""
    doctor = commands.add("operate", "doctor", run, "check the store of a policy: connection, version, eviction, clock")
    doctor.add_argument("--config", metavar="FILE", required=True, help="read this policy file")
    doctor.add_argument("--store", metavar="URL", help="check this store; default: the policy's")


def run(*, config: str, store: str | None) -> None:
    """Print a line for each check; exit with `FAILED` if one failed."""
    import asyncio

    from ratelimiter.config.lint import warnings
    from ratelimiter.config.loader import build_loaded
    from ratelimiter.stores.redis.checkup import BAD, DOUBTFUL, GOOD, Check, checkup

    loaded = build_loaded(config=config, store=store)
    number = len(warnings(loaded.policy, loaded.document))
    doubts = f"ok, with {number} warnings; see check-config" if number else "ok"
    failed = False

    def tell(check: Check) -> None:
        nonlocal failed
        failed = failed or check.result == BAD
        print(f"{check.result:<8} {check.name}: {check.text}", flush=True)

    async def check_all() -> None:
        tell(Check("policy", DOUBTFUL if number else GOOD, doubts))
        async for check in checkup(loaded.policy.store, loaded.policy.decision_timeout_ms):
            tell(check)

    asyncio.run(check_all())
    if failed:
        sys.exit(FAILED)
