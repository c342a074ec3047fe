"""`ratelimiter replay`: its flags, its progress bar, and its report."""

from __future__ import annotations

import argparse
import json as json_module
import re
import sys
import time
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ratelimiter.errors import ConfigError

if TYPE_CHECKING:
    from collections.abc import Callable

    from ratelimiter.replay.run import Replay

# What the command needs is imported inside of it, as in `main`.
# ruff: noqa: PLC0415

ABOVE = 1  # exit status when more was refused than --fail-above allows
BAR = 24  # columns
STEP_S = 0.2  # between two drawings of the bar
ALGORITHMS = ("fixed", "two-counter", "exact-log")
EXAMPLE = """\
example:
  ratelimiter replay --config policy.yaml /var/log/nginx/access.log*
  zcat access.log.gz | ratelimiter replay --config policy.yaml --json -
  ratelimiter replay --config new.yaml --against now.yaml --report report.html access.log
"""

_PERCENT = re.compile(r"(\d{1,3}(?:\.\d{1,6})?)\s*%")


def add_command(command: Callable[[str, Any, str], argparse.ArgumentParser]) -> None:
    """Add `replay` to the commands."""
    replay = command("replay", run, "judge an access log by a policy, and show who would have been refused")
    replay.epilog = EXAMPLE
    replay.formatter_class = argparse.RawDescriptionHelpFormatter
    replay.add_argument("--config", metavar="FILE", required=True, help="read this policy file")
    replay.add_argument("--against", metavar="FILE", help="compare with this policy file")
    replay.add_argument(
        "--format",
        metavar="FORMAT",
        default="auto",
        help="read this format: a name, one of nginx ($remote_addr ...) or Apache (%%h ...), or json:time=KEY,...; "
        "default: told from the log",
    )
    replay.add_argument("--principal", metavar="FIELD", default="", help="charge the caller in this field")
    replay.add_argument(
        "--timezone", metavar="ZONE", default="UTC", help="zone of times without one; default: %(default)s"
    )
    replay.add_argument("--reorder", metavar="TIME", default="60s", help="sort lines within this; default: %(default)s")
    replay.add_argument("--compare", metavar="NAMES", default="", help=f"compare with some of {','.join(ALGORITHMS)}")
    replay.add_argument("--suggest", action="store_true", help="suggest a limit for each rule, with the reason")
    replay.add_argument("--names", action="store_true", help="show callers by name, not by digest")
    replay.add_argument("--top", metavar="N", type=int, default=10, help="list this many callers; default: %(default)s")
    replay.add_argument("--json", action="store_true", help="print the answer as one JSON object")
    replay.add_argument("--report", metavar="FILE", help="write the answer as one HTML file")
    replay.add_argument("--fail-above", metavar="SHARE", help="exit 1 if more is refused, like 0.1%%")
    replay.add_argument(
        "--processes", metavar="N", type=int, help="share the callers; default: by the size of the logs"
    )
    replay.add_argument("logs", metavar="LOG", nargs="+", help="read this file, plain or compressed, a pattern, or -")


def run(
    *,
    config: str,
    against: str | None,
    format: str,  # noqa: A002  # the flag's name
    principal: str,
    timezone: str,
    reorder: str,
    compare: str,
    suggest: bool,
    names: bool,
    top: int,
    json: bool,
    report: str | None,
    fail_above: str | None,
    processes: int | None,
    logs: list[str],
) -> None:
    """Replay *logs* and print what was found; exit with `ABOVE` if too much was refused."""
    from ratelimiter.config.loader import load
    from ratelimiter.replay.answer import answer_of
    from ratelimiter.replay.parts import processes_for, run_parted
    from ratelimiter.replay.run import Replay
    from ratelimiter.replay.suggestion import suggestions
    from ratelimiter.replay.times import timezone as zone_named

    allowed = None if fail_above is None else _share(fail_above)
    policy = load(config)
    make = partial(
        Replay,
        policy,
        logs,
        wanted=format,
        principal=principal,
        against=None if against is None else load(against),
        zone=zone_named(timezone),
        names=names or policy.show_principals,
        compare=_algorithms(compare),
        reorder_ms=_duration_ms(reorder),
    )
    if processes is not None and processes < 1:
        msg = f"--processes: {processes} is not a number of processes; write 1 or more"
        raise ConfigError(msg)
    replay = make()
    bar = ProgressBar() if sys.stderr.isatty() else None
    shared = processes_for(replay, processes)
    if shared > 1:
        run_parted(replay, lambda part: make(part=part), shared, bar)
    else:
        replay.run(bar)
    if bar is not None:
        bar.clear()
    answer = answer_of(replay, top=max(0, top))
    if suggest:
        answer["suggestions"] = suggestions(replay.policy, answer)
    if report is not None:
        _write_report(report, answer, config)
    _print(answer, as_json=json)
    if allowed is not None and answer["share"] > allowed:
        print(
            f"--fail-above: {answer['share']:.4%} of the requests are refused, more than {fail_above}", file=sys.stderr
        )
        sys.exit(ABOVE)


def _print(answer: dict[str, Any], *, as_json: bool) -> None:
    if as_json:
        print(json_module.dumps(answer, indent=1))
        return
    from ratelimiter.replay.text_report import text_report

    print(text_report(answer), end="")


def _write_report(path: str, answer: dict[str, Any], config: str) -> None:
    from ratelimiter.replay.html_report import html_report

    try:
        Path(path).write_text(html_report(answer, Path(config).name), encoding="utf-8")
    except OSError as fault:
        msg = f"--report: {path!r} cannot be written ({fault.strerror}); name a file that this process may write"
        raise ConfigError(msg) from None


def _share(text: str) -> float:
    found = _PERCENT.fullmatch(text.strip())
    if found is None or float(found[1]) > 100:
        msg = f"--fail-above: {text!r} is not a share; write one like 0.1%"
        raise ConfigError(msg)
    return float(found[1]) / 100


def _algorithms(text: str) -> tuple[str, ...]:
    names = tuple(filter(None, (name.strip() for name in text.split(","))))
    unknown = [name for name in names if name not in ALGORITHMS]
    if unknown:
        msg = f"--compare: {unknown[0]!r} is not an algorithm; write some of {', '.join(ALGORITHMS)}"
        raise ConfigError(msg)
    return names


def _duration_ms(text: str) -> int:
    from ratelimiter.parsing.units import read_duration_ms

    try:
        return read_duration_ms(text, 1, 24 * 3600 * 1000)
    except ValueError as fault:
        msg = f"--reorder: {fault}"
        raise ConfigError(msg) from None


class ProgressBar:
    """One line on stderr that is drawn over: share, rate, and the time that is left."""

    def __init__(self, stopwatch: Callable[[], float] = time.monotonic) -> None:
        self._stopwatch = stopwatch
        self._begun = self._drawn = stopwatch()
        self._width = 0

    def __call__(self, replay: Replay) -> None:
        """Draw how far *replay* is, unless that was done a moment ago."""
        now = self._stopwatch()
        if now - self._drawn < STEP_S:
            return
        self._drawn = now
        elapsed = max(1e-9, now - self._begun)
        line = progress_line(replay.judge.requests, replay.done, replay.size, elapsed)
        self._write(line)

    def clear(self) -> None:
        """Take the line away."""
        self._write("")
        sys.stderr.write("\r")
        sys.stderr.flush()

    def _write(self, line: str) -> None:
        sys.stderr.write(f"\r{line:<{self._width}}")
        sys.stderr.flush()
        self._width = len(line)


def progress_line(requests: int, done: int, size: int, elapsed_s: float) -> str:
    """Return the bar, the share, the rate and the time left; without a bar if the size is not known."""
    rate = f"{requests:,} requests, {requests / elapsed_s:,.0f}/s"
    if not size:
        return rate
    share = min(1.0, done / size)
    filled = int(share * BAR)
    left_s = elapsed_s * (1 - share) / share if share else 0
    return f"[{'#' * filled}{'.' * (BAR - filled)}] {share:4.0%}  {rate}, {left_s:.0f} s left"
