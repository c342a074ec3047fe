"""Draw the picture of a replay's report, from made-up traffic of one day with an evening peak and one scraper.

python -m scripts.replay_picture        # writes docs/pictures/replay-report.png; needs Chromium
"""

from __future__ import annotations

import asyncio
import base64
import math
import random
import tempfile
from pathlib import Path

from ratelimiter.cli.main import main as ratelimiter
from tests.proxy.browser import browser
from tests.replay.lines import T0_S, combined, policy_file, write

PICTURE = Path(__file__).parent.parent / "docs" / "pictures" / "replay-report.png"
DAY_S = 86_400
POLICY = """\
principal: client
rules:
  - {name: per-minute, limit: 20/minute}
  - {name: exports, match: {path: /v1/exports/**}, limit: 30/hour}
"""


def traffic() -> list[str]:
    """Return a day of log lines."""
    chance = random.Random(11)  # noqa: S311  # the same picture each time
    clients = [f"198.51.{at // 250}.{at % 250}" for at in range(400)]
    begin_s = T0_S - T0_S % DAY_S
    found = []
    for minute in range(24 * 60):
        busy = 4 + 18 * math.exp(-(((minute - 1140) / 150) ** 2))
        for _ in range(int(chance.expovariate(1 / busy))):
            client = clients[int(len(clients) * chance.random() ** 3)]
            burst = min(40, 1 + int(chance.paretovariate(1.6)))
            found += [(begin_s + 60 * minute + chance.randrange(60), client, "/v1/items") for _ in range(burst)]
        if 560 <= minute < 640:
            found += [(begin_s + 60 * minute + at, "203.0.113.66", f"/v1/exports/{at}") for at in range(0, 60, 2)]
    return [combined(at_s, client, path) for at_s, client, path in sorted(found)]


async def main() -> None:
    """Draw it."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        policy, log = policy_file(folder, POLICY), write(folder / "access.log", traffic())
        report = folder / "report.html"
        ratelimiter(["replay", "--config", policy, "--names", "--suggest", "--report", str(report), log])
        async with browser() as page:
            await page.open(report.as_uri())
            await page.call(
                "Emulation.setDeviceMetricsOverride", width=1000, height=800, deviceScaleFactor=1, mobile=False
            )
            clip = {"x": 0, "y": 0, "width": 1000, "height": 1500, "scale": 1}
            told = await page.call("Page.captureScreenshot", format="png", clip=clip, captureBeyondViewport=True)
            PICTURE.write_bytes(base64.b64decode(told["data"]))


if __name__ == "__main__":
    asyncio.run(main())
