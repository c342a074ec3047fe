"""Look for bytes that two readers read differently, guided by coverage, until the time is over or some are found.

    python -m tests.fuzz TARGET [FLAG]... [FOLDER]

TARGET is `requests`, `responses`, `bodies` or `paths`; flags and folder are libFuzzer's: `-max_total_time=60` for a
minute, `-runs=10000` for so many inputs, a folder to keep what covers something new. Needs the extra `fuzz`. What is
found is written to a file in the temporary directory, its bytes and the broken promise are printed, and the exit code
is not 0.
"""

from __future__ import annotations

import asyncio
import importlib
import logging
import sys
import tempfile
from pathlib import Path

import atheris

TARGETS = ("requests", "responses", "bodies", "paths")
# What a mutation by chance would take long to find, as libFuzzer writes it.
WORDS = (Path(__file__).parent / "words.txt").read_text().split()


def main() -> None:
    """Fuzz what the command line names."""
    if len(sys.argv) < 2 or sys.argv[1] not in TARGETS:
        sys.exit(f"name what to fuzz: {', '.join(TARGETS)}")
    target, flags = sys.argv[1], sys.argv[2:]
    with atheris.instrument_imports(include=["ratelimiter.proxy", "ratelimiter.core", "h11"]):
        module = importlib.import_module(f"tests.fuzz.{target}")
    logging.disable()  # each refusal would be a line
    loop = asyncio.new_event_loop()
    with tempfile.TemporaryDirectory() as folder:
        for number, seed in enumerate(module.SEEDS):
            Path(folder, f"seed-{number}").write_bytes(seed)
        words = Path(folder, "words")
        words.write_text("".join(f'"{word}"\n' for word in WORDS))
        found = Path(tempfile.gettempdir(), f"ratelimiter-{target}-")
        ours = [f"-dict={words}", f"-artifact_prefix={found}", "-max_len=2048", "-timeout=10", "-print_final_stats=1"]
        # libFuzzer keeps what is new in the first folder it is given, and only reads the others.
        folders = [flag for flag in flags if not flag.startswith("-")]
        flags = [flag for flag in flags if flag.startswith("-")]
        atheris.Setup(
            [sys.argv[0], *ours, *flags, *folders, folder], lambda data: loop.run_until_complete(module.check(data))
        )
        atheris.Fuzz()


if __name__ == "__main__":
    main()
