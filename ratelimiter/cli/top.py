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
# A table of the report: the heading of its column, and the name of its numbers; the first differences decide the order.
COLUMNS = {
    "refused": ("REFUSED", "refusals"),
    "would_refuse": ("SHADOW", "shadow_refusals"),
    "blocked": ("BLOCKED", "requests"),
    "heaviest": ("UNITS", "units"),
}
ALWAYS = ("refused", "heaviest")  # columns that are shown also when they are empty
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
    counts = {kind: Counter[tuple[str, str]]() for kind in COLUMNS}
    names: dict[str, str] = {}
    for span in ("before", "now"):
        for kind, (_, unit) in COLUMNS.items():
            for each in report[span].get(kind, ()):
                counts[kind][each["rule"], each["principal"]] += each[unit]
                if "name" in each:
                    names[each["principal"]] = _printable(each["name"])
    shown = [kind for kind in COLUMNS if counts[kind] or kind in ALWAYS]
    everybody = {who for counter in counts.values() for who in counter}
    order = sorted(everybody, key=lambda who: (*(-counts[kind][who] for kind in COLUMNS), who))
    rows = [("RULE", "PRINCIPAL", *(COLUMNS[kind][0] for kind in shown), *(("NAME",) if names else ()))]
    for rule, who in order[:number]:
        counted = [str(counts[kind][rule, who]) for kind in shown]
        rows.append((rule, who, *counted, *((names.get(who, ""),) if names else ())))
    numbers = range(2, 2 + len(shown))
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    begun = time.strftime("%H:%M:%S", time.localtime(report["begun_ms"] / 1000))
    span_s = ceil_s(report["span_ms"])
    return [
        f"since {begun} and in the {span_s} s before; principals are digests, see `ratelimiter explain`",
        "",
        *(
            "  ".join(
                f"{cell:>{width}}" if column in numbers else f"{cell:<{width}}"
                for column, (cell, width) in enumerate(zip(row, widths, strict=True))
            ).rstrip()
            for row in rows
        ),
    ]


def _printable(name: str) -> str:
    """Return *name* without control characters of a terminal: callers choose their names."""
    return "".join(each if each.isprintable() else f"\\x{ord(each):02x}" for each in name)
