"""The five documented systems: which policy file, which example API, and who may call it."""

from __future__ import annotations

import re
import shutil
from contextlib import ExitStack
from pathlib import Path
from typing import Any, NamedTuple, Self

from tests.systems.credentials import Issuer, KeyRing

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
    keys: dict[str, dict[str, Any]]  # the sorts of its API keys, and what the key file says of each; the first is usual
    used: int = 0  # calls that somebody else makes before a batch, where the limits are far above 200 calls

    @property
    def api(self) -> str:
        """The module of its example API."""
        return self.name.replace("-", "_")


class Deployment:
    """A system's files in a folder, with credentials that were made for this one occasion.

    Args:
        system: which.
        folder: where the files go.
    """

    def __init__(self, system: System, folder: Path) -> None:
        self._system = system
        self._stack = ExitStack()
        shutil.copytree(CONFIG, folder, dirs_exist_ok=True)
        self.policy = folder / f"{system.name}.yaml"
        self._keys = KeyRing(folder / "keys" / f"{system.name}.yaml", system.keys)
        self.issuer = Issuer(f"https://id.{system.name}.example/", system.name)

    def __enter__(self) -> Self:
        """Let the identity provider answer, under an address of this machine."""
        self._stack.enter_context(self.issuer)
        text = self.policy.read_text()
        self.policy.write_text(re.sub(r"https://\S+/jwks\.json", self.issuer.url, text))
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    def headers(self, sort: str = "") -> dict[str, str]:
        """What a caller sends who may call: the credentials of somebody new.

        Args:
            sort: of the key; the usual by default.
        """
        key, told = self._keys.take(sort or next(iter(self._system.keys)))
        if self._system.name in ("intrace", "trace"):
            return {"X-API-Key": key}
        tenant = {"X-Tenant-ID": told["principal"]} if self._system.name == "sentinel" else {}
        return {"Authorization": f"Bearer {key}", **tenant}


_USER = {"principal": "user-{n}", "kind": "user", "org": "org-{n}", "email_verified": True}
_LIVE = {"kind": "production"}
_COMPANY: dict[str, dict[str, Any]] = {
    "company": {"principal": "company-{n}"},
    "revoked": {"principal": "former-{n}", "revoked": True},
}

SYSTEMS = {
    system.name: system
    for system in (
        System(
            "intrace",
            Call("GET", "/v1/status"),
            "60 a minute and a burst of 10 for each principal",
            {
                "service": {"principal": "service-{n}", "kind": "service"},
                "auditor": {"principal": "auditor-{n}", "scopes": ["audit"]},
                "batch": {"principal": "batch-enrichment"},
                "revoked": {"principal": "former-{n}", "revoked": True},
            },
        ),
        System(
            "trace",
            Call("GET", "/v1/companies/acme.example"),
            "600 a minute for each key, and 1,000 credits for each organisation",
            {
                "user": _USER,
                "org": {"principal": "org-key-{n}", "kind": "org", "org": "org-of-keys-{n}", "email_verified": True},
                "colleague": _USER | {"principal": "colleague-{n}", "org": "shared"},
                "topped-up": _USER | {"org": "topped-up"},
                "orphan": {"principal": "orphan-{n}", "kind": "user", "email_verified": True},
                "unverified": _USER | {"org": "unverified-{n}", "email_verified": False},
                "revoked": _USER | {"revoked": True},
                "expired": _USER | {"expires": "2026-01-01T00:00:00Z"},
            },
            used=500,
        ),
        System("tracefinance", Call("GET", "/v1/balance"), "300 a minute for each key", _COMPANY, used=200),
        System(
            "tracefinance-v1",
            Call("GET", "/v1/transfers?seconds=0.5"),
            "10 requests in flight for each key",
            _COMPANY,
        ),
        System(
            "sentinel",
            Call("GET", "/profiles"),
            "plan Basic, 30 a minute and 1,000 an hour for each tenant",
            {
                "basic": _LIVE | {"principal": "7d3f6b0e-4c1a-4f5e-9b57-{n:012d}", "plan": "basic"},
                "professional": _LIVE | {"principal": "7d3f6b0e-4c1a-4f5e-9b58-{n:012d}", "plan": "professional"},
                "enterprise": _LIVE | {"principal": "7d3f6b0e-4c1a-4f5e-9b59-{n:012d}", "plan": "enterprise"},
                "planless": _LIVE | {"principal": "7d3f6b0e-4c1a-4f5e-9b60-{n:012d}"},
                "revoked": _LIVE | {"principal": "7d3f6b0e-4c1a-4f5e-9b61-{n:012d}", "revoked": True},
                "sandbox": {"principal": "7d3f6b0e-4c1a-4f5e-9b62-{n:012d}", "kind": "sandbox"},
            },
        ),
    )
}
