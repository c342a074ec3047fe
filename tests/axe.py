"""axe-core, which finds what keeps people from using a page; fetched once with npm."""

from __future__ import annotations

import shutil
import subprocess
import tarfile
from pathlib import Path

VERSION = "4.14.1"
CACHE = Path.home() / ".cache" / "ratelimiter-tests"
RUN = "axe.run(document, {resultTypes: ['violations']}).then(told => told.violations.map(each => "
RUN += "each.id + ': ' + each.nodes.map(node => node.html).join(' | ')))"


def source() -> str:
    """Return the script, to be run in a page before `RUN`."""
    script = CACHE / f"axe-core-{VERSION}.js"
    if not script.exists():
        assert shutil.which("npm"), "npm is missing, and axe-core comes by it: apt-get install npm"
        CACHE.mkdir(parents=True, exist_ok=True)
        subprocess.run(["npm", "pack", f"axe-core@{VERSION}"], cwd=CACHE, check=True, capture_output=True)  # noqa: S607
        with tarfile.open(CACHE / f"axe-core-{VERSION}.tgz") as packed:
            found = packed.extractfile("package/axe.min.js")
            assert found is not None
            script.write_bytes(found.read())
    return script.read_text()
