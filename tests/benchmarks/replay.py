"""What a replay costs: seconds, CPU and memory for a log of many lines and three rules.

    python -m tests.benchmarks.replay [--lines 1000000] [--callers 20000] [--processes 1 2]

The log is made up: a day in the combined format, callers by a power law, 550 paths. Run it on a quiet machine; CPU is
that of all processes, memory that of the largest one.
"""

from __future__ import annotations

import argparse
import random
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

POLICY = """\
principal: client
rules:
  - {name: minute, limit: 60/minute}
  - {name: hour, limit: 1000/hour}
  - {name: items, match: {path: /v1/items/**}, limit: 20/minute}
"""
BEGIN_S, DAY_S = 1_795_865_376, 86_400
AGENT = "Mozilla/5.0 (X11; Linux x86_64) AppleWebKit/537.36 (KHTML, like Gecko) Chrome/130.0 Safari/537.36"


def make_log(path: Path, lines: int, callers: int) -> None:
    """Write the log."""
    chance = random.Random(7)  # noqa: S311  # the same log each time
    addresses = [".".join(str(chance.randrange(1, 224)) for _ in range(4)) for _ in range(callers)]
    weights = [1 / (rank + 1) ** 0.8 for rank in range(callers)]
    paths = [f"/v1/items?page={at}" for at in range(50)] + [f"/v1/items/{at}" for at in range(500)]
    with path.open("w") as file:
        for number, address in enumerate(chance.choices(addresses, weights, k=lines)):
            stamp = time.strftime("%d/%b/%Y:%H:%M:%S +0000", time.gmtime(BEGIN_S + number * DAY_S // lines))
            target, size = chance.choice(paths), chance.randrange(100, 5000)
            file.write(f'{address} - - [{stamp}] "GET {target} HTTP/1.1" 200 {size} "-" "{AGENT}"\n')


def main() -> None:
    """Print one line for each number of processes."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--lines", type=int, default=1_000_000)
    parser.add_argument("--callers", type=int, default=20_000)
    parser.add_argument("--processes", type=int, nargs="+", default=[1, 2])
    chosen = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        policy, log = Path(name, "policy.yaml"), Path(name, "access.log")
        policy.write_text(POLICY)
        make_log(log, chosen.lines, chosen.callers)
        print(f"{chosen.lines:,} lines, {chosen.callers:,} callers, {log.stat().st_size / 1e6:.0f} MB")
        for processes in chosen.processes:
            words = [sys.executable, "-m", "ratelimiter", "replay", "--config", str(policy), "--json"]
            before, started_s = resource.getrusage(resource.RUSAGE_CHILDREN), time.monotonic()
            subprocess.run([*words, "--processes", str(processes), str(log)], check=True, stdout=subprocess.DEVNULL)
            took_s, after = time.monotonic() - started_s, resource.getrusage(resource.RUSAGE_CHILDREN)
            cpu_s = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
            print(
                f"{processes} processes: {took_s:6.1f} s, {cpu_s:6.1f} s of CPU, "
                f"{cpu_s / chosen.lines * 1e6:5.1f} us a line, {after.ru_maxrss / 1024:.0f} MB"
            )


if __name__ == "__main__":
    main()
