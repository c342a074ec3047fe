"""The table of `ratelimiter top`."""

from __future__ import annotations

import asyncio
import socket

import pytest

from ratelimiter.admin.listener import bind, serve_admin
from ratelimiter.cli.top import fetch, run, table
from ratelimiter.errors import ConfigError
from tests.admin.test_app import Around
from tests.requesting import request


def part(*refused: tuple[str, int], heaviest: tuple[tuple[str, int], ...] = ()) -> dict[str, object]:
    return {
        "refused": [{"principal": who, "rule": "rule", "refusals": number} for who, number in refused],
        "heaviest": [{"principal": who, "rule": "rule", "units": number} for who, number in heaviest],
    }


def test_both_minutes_are_one_table() -> None:
    """Refusals and units of the last minute and this one are added, the most refused first."""
    report = {
        "begun_ms": 1_800_000_000_000,
        "span_ms": 60_000,
        "before": part(("aa", 2), ("bb", 1), heaviest=(("cc", 90),)),
        "now": part(("bb", 10), heaviest=(("bb", 5), ("cc", 7))),
    }
    lines = [line.split() for line in table(report, 20)]

    assert ["RULE", "PRINCIPAL", "REFUSED", "UNITS"] == lines[2]
    assert [["rule", "bb", "11", "5"], ["rule", "aa", "2", "0"], ["rule", "cc", "0", "97"]] == lines[3:]
    assert 5 == len(table(report, 2))


def test_names_stand_beside_the_digests() -> None:
    """Of those whom the listener names; and a terminal is told nothing but text, whatever somebody calls himself."""
    report = {
        "begun_ms": 1_800_000_000_000,
        "span_ms": 60_000,
        "before": part(heaviest=(("bb", 1),)),
        "now": part(("aa", 2)),
    }
    report["now"]["refused"][0]["name"] = "m\u00e4x \x1b[2J\u202e"  # type: ignore[index]
    lines = table(report, 20)

    assert ["RULE", "PRINCIPAL", "REFUSED", "UNITS", "NAME"] == lines[2].split()
    assert lines[3].endswith("0  m\u00e4x \\x1b[2J\\x202e")
    assert ["rule", "bb", "0", "1"] == lines[4].split()


async def test_it_is_what_the_listener_tells(capsys: pytest.CaptureFixture[str]) -> None:
    """From a decision to a line on the terminal."""
    around = Around()
    for _ in range(7):
        await around.limiter.judge(request())
    async with serve_admin(around.app, bind("127.0.0.1:0")) as url:
        await asyncio.to_thread(run, url, once=True)
    last = capsys.readouterr().out.splitlines()[-1].split()

    assert ["rule", "5", "2"] == [last[0], *last[2:]]


@pytest.mark.parametrize("url", ["", "127.0.0.1:9090", "ftp://127.0.0.1", "http://127.0.0.1:1", "http://["])
def test_nobody_there_is_told_in_one_line(url: str) -> None:
    """With what was given, and no traceback."""
    with pytest.raises(ConfigError, match=r"^--admin: "):
        fetch(url, 20)


def test_somebody_else_is_told_apart() -> None:
    """A listener that speaks no HTTP is none of ours."""
    with socket.create_server(("127.0.0.1", 0)) as other:
        import threading

        def babble() -> None:
            talking, _ = other.accept()
            talking.sendall(b"+PONG\r\n")
            talking.close()

        thread = threading.Thread(target=babble)
        thread.start()
        with pytest.raises(ConfigError, match="does not answer as an admin listener does"):
            fetch(f"http://127.0.0.1:{other.getsockname()[1]}", 20)
        thread.join()
