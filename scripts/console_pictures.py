"""Draw the pictures of the console: an attack by one key that is blocked from the page, and an outage of the store.

python -m scripts.console_pictures        # writes docs/pictures/console-*.png; needs Chromium
"""

from __future__ import annotations

import asyncio
import base64
import random
import tempfile
from pathlib import Path

from tests.admin.console import POLICY, TOKEN, Consoled, consoled
from tests.proxy.browser import Page, browser
from tests.stores.redis_server import RedisServer

PICTURES = Path(__file__).parent.parent / "docs" / "pictures"
KEYS = ["alice", "bob", "carol", "dave", "erin"]
ATTACKER = "mallory"


async def picture(page: Page, name: str, *, width: int = 1000, scheme: str = "light", height: int = 0) -> None:
    """Write the whole page, or its first *height* pixels, as it looks now."""
    await page.call("Emulation.setEmulatedMedia", features=[{"name": "prefers-color-scheme", "value": scheme}])
    await page.call(
        "Emulation.setDeviceMetricsOverride", width=width, height=800, deviceScaleFactor=1, mobile=width < 500
    )
    whole = await page.run("document.documentElement.scrollHeight")
    clip = {"x": 0, "y": 0, "width": width, "height": min(whole, height or whole), "scale": 1}
    told = await page.call("Page.captureScreenshot", format="png", clip=clip, captureBeyondViewport=True)
    (PICTURES / f"console-{name}.png").write_bytes(base64.b64decode(told["data"]))


async def traffic(console: Consoled, *, attacked: bool) -> None:
    """Ask as some clients do, for a few seconds."""
    chance = random.Random(7)  # noqa: S311  # the same picture each time
    for _ in range(12):
        for key in KEYS:
            await console.ask(key, chance.randrange(3), request_id=f"req_{chance.randrange(10**8):08x}")
        if attacked:
            await console.ask(ATTACKER, 25, path="/v1/exports/7", request_id=f"req_{chance.randrange(10**8):08x}")
        await asyncio.sleep(1)


async def main() -> None:
    """Draw all pictures."""
    policy = POLICY.replace("5/minute", "60/minute").replace("2/minute", "20/minute").replace("3/minute", "15/minute")
    with tempfile.TemporaryDirectory() as folder, RedisServer() as server:
        async with consoled(Path(folder), f"{policy}store: {server.url}\n") as console, browser() as page:
            await page.open(console.url)
            await traffic(console, attacked=True)
            await asyncio.sleep(3)
            await picture(page, "attack", height=1500)
            await picture(page, "phone", width=360, height=1100, scheme="dark")
            await page.run(
                f"document.getElementById('token').value = '{TOKEN}';"
                "document.querySelector('button[data-verb=block]').click();"
                "document.getElementById('for').value = '10m';"
                "document.querySelector('#operator button[type=submit]').click()"
            )
            await page.run("document.getElementById('confirm-yes').click()")
            await asyncio.sleep(1)
            await traffic(console, attacked=True)
            server.kill()  # the drill: Redis is gone, and clients go on asking
            await traffic(console, attacked=False)
            await asyncio.sleep(3)
            await picture(page, "blocked", scheme="dark", height=1500)


if __name__ == "__main__":
    asyncio.run(main())
