"""The live table of `ratelimiter top`: the most refused and the busiest principals of an admin listener."""

from __future__ import annotations

import http.client
import json
import shutil
import sys
import time
from collections import Counter
from typing import TYPE_CHECKING, Any
from urllib.error import URLError
from urllib.request import ProxyHandler, build_opener

from ratelimiter.core.headers import ceil_s
from ratelimiter.errors import ConfigError

if TYPE_CHECKING:
    from collections.abc import Mapping

TIMEOUT_S = 5
BYTES_MAX = 1 << 20
HOME_AND_CLEAR = "\x1b[H\x1b[J"  # ECMA-48: cursor to the top left, erase to the end
HEADER_LINES = 3


def run(url: str, *, every_s: float = 2.0, once: bool = False, number: int = 20) -> None:
    """Print the table of the admin listener at *url* until interrupted, in place on a terminal.

    Args:
        url: like `http://127.0.0.1:9090`.
        every_s: seconds between two refreshes.
        once: print it once.
        number: greatest number of principals.

    Raises:
        ConfigError: *url* is not a URL, or not that of an admin listener.
    """
    in_place = sys.stdout.isatty() and not once
    while True:
        lines = table(fetch(url, number), number)
        if in_place:
            fitting = max(HEADER_LINES, shutil.get_terminal_size().lines - 1)
            print(HOME_AND_CLEAR, end="")
            lines = lines[:fitting]
        print(*lines, sep="\n", flush=True)
        if once:
            return
        try:
            time.sleep(every_s)
        except KeyboardInterrupt:
            return


def fetch(url: str, number: int) -> dict[str, Any]:
    """Return the report of the admin listener at *url* on *number* principals of each kind.

    Raises:
        ConfigError: *url* is not a URL, or not that of an admin listener.
    """
    if not url.startswith(("http://", "https://")):
        msg = f"--admin: {url!r} is not an http URL; write one like http://127.0.0.1:9090"
        raise ConfigError(msg)
    try:
        # No proxy of the environment: the listener must be reached directly.
        with build_opener(ProxyHandler({})).open(f"{url.rstrip('/')}/top?n={number}", timeout=TIMEOUT_S) as answer:
            report: dict[str, Any] = json.loads(answer.read(BYTES_MAX))
    except (URLError, OSError, ValueError, http.client.HTTPException) as fault:
        msg = f"--admin: {url} does not answer as an admin listener does ({fault}); is it one, and counting?"
        raise ConfigError(msg) from None
    return report


def table(report: Mapping[str, Any], number: int) -> list[str]:
    """Return the lines of the table: the most refused first, then by units.

    Args:
        report: result of `fetch`.
        number: greatest number of principals.
    """
    refusals: Counter[tuple[str, str]] = Counter()
    units: Counter[tuple[str, str]] = Counter()
    names: dict[str, str] = {}
    for span in ("before", "now"):
        for each in (*report[span]["refused"], *report[span]["heaviest"]):
            if "name" in each:
                names[each["principal"]] = _printable(each["name"])
        for each in report[span]["refused"]:
            refusals[each["rule"], each["principal"]] += each["refusals"]
        for each in report[span]["heaviest"]:
            units[each["rule"], each["principal"]] += each["units"]
    order = sorted(refusals | units, key=lambda who: (-refusals[who], -units[who], who))
    rows = [("RULE", "PRINCIPAL", "REFUSED", "UNITS", *(("NAME",) if names else ()))]
    for rule, who in order[:number]:
        counted = str(refusals[rule, who]), str(units[rule, who])
        rows.append((rule, who, *counted, *((names.get(who, ""),) if names else ())))
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    begun = time.strftime("%H:%M:%S", time.localtime(report["begun_ms"] / 1000))
    span_s = ceil_s(report["span_ms"])
    return [
        f"since {begun} and in the {span_s} s before; principals are digests, see `ratelimiter explain`",
        "",
        *(
            "  ".join(
                [
                    f"{rule:<{widths[0]}}  {who:<{widths[1]}}  {refused:>{widths[2]}}  {spent:>{widths[3]}}",
                    *name,  # the last, as it may be of any width
                ]
            ).rstrip()
            for rule, who, refused, spent, *name in rows
        ),
    ]


def _printable(name: str) -> str:
    """Return *name* without control characters of a terminal: callers choose their names."""
    return "".join(each if each.isprintable() else f"\\x{ord(each):02x}" for each in name)
