"""The console in Chromium: that it works by mouse, by keyboard, on a phone, in the dark, and for a screen reader."""

from __future__ import annotations

import asyncio
import json
from typing import TYPE_CHECKING

import pytest

from tests import axe
from tests.admin.console import TOKEN, consoled
from tests.proxy.browser import browser

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path

    from tests.admin.console import Consoled
    from tests.proxy.browser import Page

HOSTILE = "<img src=x onerror=document.title='owned'>"
WATCH = """
window.faults = [];
document.addEventListener('securitypolicyviolation', event => faults.push('csp ' + event.violatedDirective));
window.addEventListener('error', event => faults.push('error ' + event.message));
window.addEventListener('unhandledrejection', event => faults.push('promise ' + event.reason));
"""


@pytest.fixture
async def console(tmp_path: Path) -> AsyncIterator[Consoled]:
    async with consoled(tmp_path) as served:
        await served.ask("alice", 9, request_id="req_alice")
        await served.ask(HOSTILE, 7, request_id="req_hostile")
        await served.ask("bob", 4, path="/v1/exports/1", request_id="req_bob")
        yield served


@pytest.fixture
async def shown(console: Consoled) -> AsyncIterator[Page]:
    async with browser() as page:
        await page.call("Page.addScriptToEvaluateOnNewDocument", source=WATCH)
        await page.open(console.url)
        yield page
        assert [] == await page.run("faults"), "the page broke its own policy or threw"


async def becomes(page: Page, script: str, wanted: object = True) -> None:
    """Wait until *script* is *wanted*."""
    async with asyncio.timeout(20):
        while (found := await page.run(script)) != wanted:
            assert found is not None or wanted is not None
            await asyncio.sleep(0.05)


async def test_hostile_principals_are_text(shown: Page) -> None:
    """Markup in a principal is shown as it is, and nothing of it becomes an element."""
    assert 0 == await shown.run("document.images.length")
    assert "ratelimiter console" == await shown.run("document.title")
    assert await shown.run(f"document.body.textContent.includes({json.dumps(HOSTILE)})")


async def test_the_numbers_come_by_themselves(console: Consoled, shown: Page) -> None:
    """New refusals appear without a reload; paused, they do not."""
    before = await shown.run("document.querySelectorAll('#refusals tbody tr').length")
    await console.ask("carol", 8, request_id="req_carol")
    await becomes(shown, "document.querySelector('#refusals').textContent.includes('req_carol')")

    assert before + 3 == await shown.run("document.querySelectorAll('#refusals tbody tr').length")
    await shown.run("document.getElementById('pause').click()")
    assert "true" == await shown.run("document.getElementById('pause').getAttribute('aria-pressed')")


async def test_a_refusal_is_found(shown: Page) -> None:
    """The search keeps the rows that have the text, also when the numbers are replaced."""
    await shown.run(
        "(() => { const field = document.getElementById('find'); field.value = 'REQ_bob'; "
        "field.dispatchEvent(new Event('input', {bubbles: true})); })()"
    )
    visible = "[...document.querySelectorAll('#refusals tbody tr')].filter(row => !row.hidden).length"

    assert 2 == await shown.run(visible)
    assert "2 of 8" == await shown.run("document.getElementById('found').textContent")
    await shown.run("update()")
    assert 2 == await shown.run(visible)


FILL = """
document.getElementById('token').value = '%s';
document.querySelector('button[data-verb=block]').click();
document.getElementById('for').value = '10m';
document.querySelector('#operator button[type=submit]').click();
"""


async def test_a_caller_is_blocked_from_the_page(console: Consoled, shown: Page) -> None:
    """Block, confirm, and the caller is out; the order is in force, and its author is in the audit log."""
    await shown.run(FILL % TOKEN)
    await becomes(shown, "document.getElementById('confirm').open")
    asked = await shown.run("document.getElementById('confirm-text').textContent")
    assert "block: principal digest=" in asked
    await shown.run("document.getElementById('confirm-yes').click()")
    await becomes(shown, "document.getElementById('result').textContent.length > 5")
    await becomes(shown, "document.querySelector('#orders').textContent.includes('block')")
    blocked = await shown.run("document.getElementById('principal').value")

    assert console.recorder.overrides is not None
    assert [blocked.removeprefix("digest=")] == [each.digest for each in console.recorder.overrides.blocks]
    kept = "JSON.stringify([{...localStorage}, {...sessionStorage}, document.cookie, location.href, history.length])"
    assert TOKEN not in await shown.run(kept)
    assert TOKEN not in await shown.run("performance.getEntries().map(each => each.name).join()")


async def test_no_means_no(console: Consoled, shown: Page) -> None:
    """An order that is not confirmed is not given."""
    await shown.run(FILL % TOKEN)
    await becomes(shown, "document.getElementById('confirm').open")
    assert "confirm-no" == await shown.run("document.activeElement.id")  # the safe answer has the focus
    await shown.run("document.getElementById('confirm-no').click()")
    await becomes(shown, "document.getElementById('confirm').open", False)

    assert "-" == await shown.run("document.getElementById('result').textContent")
    assert console.recorder.overrides is None or not console.recorder.overrides.blocks


async def test_a_wrong_token_is_said(shown: Page) -> None:
    """The refusal is shown as the listener words it."""
    await shown.run(FILL % ("x" * 20))
    await becomes(shown, "document.getElementById('confirm').open")
    await shown.run("document.getElementById('confirm-yes').click()")

    await becomes(shown, "document.getElementById('result').textContent.includes('a token of an operator is needed')")


async def test_peek_and_explain_answer(shown: Page) -> None:
    """What is counted of a principal, and what every rule says of a request."""
    await shown.run(f"document.getElementById('token').value = '{TOKEN}'")
    await shown.run("document.querySelector('button[data-verb=peek]').click()")
    await shown.run("document.querySelector('#operator button[type=submit]').click()")
    await becomes(shown, "document.getElementById('result').textContent.includes('per-minute')")
    await shown.run("document.getElementById('x-url').value = '/v1/exports/7'")
    await shown.run("document.querySelector('#explain button').click()")

    await becomes(shown, "document.getElementById('result').textContent.includes('3 of 3 match')")


@pytest.mark.parametrize("scheme", ["light", "dark"])
async def test_axe_finds_nothing(shown: Page, scheme: str) -> None:
    """No violation of axe-core's rules, light and dark, contrast included."""
    await shown.call("Emulation.setEmulatedMedia", features=[{"name": "prefers-color-scheme", "value": scheme}])
    await shown.run("document.getElementById('pause').click()")
    await shown.run(axe.source() + ";0")

    assert [] == await shown.run(axe.RUN)


async def test_it_fits_a_phone(shown: Page) -> None:
    """At 360 pixels nothing makes the page scroll sideways."""
    await shown.call("Emulation.setDeviceMetricsOverride", width=360, height=740, deviceScaleFactor=1, mobile=True)

    assert 360 >= await shown.run("document.documentElement.scrollWidth")


async def test_everything_is_reached_by_keyboard(shown: Page) -> None:
    """Tab goes through all controls, and what has the focus is outlined."""
    await shown.run("document.getElementById('pause').click()")
    await shown.run("document.activeElement.blur()")
    reached = set()
    for _ in range(80):
        for kind in ("keyDown", "keyUp"):
            await shown.call("Input.dispatchKeyEvent", type=kind, key="Tab", code="Tab", windowsVirtualKeyCode=9)
        reached.add(await shown.run("document.activeElement.id || document.activeElement.textContent.slice(0, 20)"))

    assert {"pause", "find", "token", "verb", "principal", "x-url"} <= reached
    await shown.run("document.getElementById('find').focus()")
    assert "none" != await shown.run("getComputedStyle(document.activeElement).outlineStyle")
