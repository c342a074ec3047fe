"""The five documented systems: which policy file, which example API, and who may call it."""

from __future__ import annotations

import secrets
import shutil
import uuid
from pathlib import Path
from typing import NamedTuple

CONFIG = Path(__file__).parents[2] / "config"


class Call(NamedTuple):
    """A call that costs one unit of the system's main limit."""

    method: str
    path: str
    body: object = None

    def __str__(self) -> str:
        return f"{self.method} {self.path}"


class System(NamedTuple):
    """A documented system."""

    name: str  # of its policy file and of its dialect
    call: Call
    limits: str  # what its policy file says, in short
    used: int = 0  # calls that somebody else makes before a batch, where the limits are far above 200 calls

    @property
    def api(self) -> str:
        """The module of its example API."""
        return self.name.replace("-", "_")

    def deployed(self, folder: Path) -> Deployment:
        """Its policy file and what that refers to, in *folder*."""
        shutil.copytree(CONFIG, folder, dirs_exist_ok=True)
        return Deployment(self, folder)


class Deployment:
    """A system's files, with credentials that were made for this one occasion."""

    def __init__(self, system: System, folder: Path) -> None:
        self.system = system
        self.policy = folder / f"{system.name}.yaml"

    def headers(self) -> dict[str, str]:
        """What a caller sends who may call: credentials of somebody new."""
        if self.system.name == "sentinel":
            return {"X-Tenant-ID": str(uuid.uuid4())}
        new = secrets.token_hex(16)
        return {"X-API-Key": new} if self.system.name in ("intrace", "trace") else {"Authorization": f"Bearer {new}"}


SYSTEMS = {
    system.name: system
    for system in (
        System("intrace", Call("GET", "/v1/status"), "60 a minute and a burst of 10 for each principal"),
        System("trace", Call("GET", "/v1/companies/acme.example"), "600 a minute for each key", used=500),
        System("tracefinance", Call("GET", "/v1/balance"), "300 a minute for each token", used=200),
        System("tracefinance-v1", Call("GET", "/v1/transfers?seconds=0.2"), "10 requests in flight for each token"),
        System("sentinel", Call("GET", "/profiles"), "plan Basic, 30 a minute and 1,000 an hour for each tenant"),
    )
}
