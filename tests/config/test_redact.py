"""What may be seen of a policy."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from typing import TYPE_CHECKING

import pytest

from ratelimiter.config import loader
from ratelimiter.config.redact import disclosed, fingerprint, without_secrets
from ratelimiter.core.match import Match
from ratelimiter.core.policy import Policy
from tests.config.test_identity import write_policy
from tests.identity.provider import ISSUER
from tests.requesting import per_minute

if TYPE_CHECKING:
    from pathlib import Path

SECRET = b"correct horse battery staple"


def test_all_settings_are_there_and_no_secret_is() -> None:
    """An operator sees every default in force; what keys the digests and what opens the store stay inside."""
    policy = Policy((per_minute(60),), store="redis://limiter:hunter2@redis:6379/1", secret=SECRET)
    text = json.dumps(disclosed(policy))

    assert {"decision_timeout_ms": 50, "store": "redis://redis:6379/1", "local_share": 1.0}.items() <= disclosed(
        policy
    ).items()
    assert {"limit": 60, "window_ms": 60_000} == disclosed(policy)["rules"][0]["quota"]
    assert not [word for word in ("hunter2", "horse", "secret") if word in text]


@pytest.mark.parametrize(
    ("url", "shown"),
    [
        ("memory://", "memory://"),
        ("memory://?keys_max=3", "memory://?keys_max=3"),
        ("redis://user:secret@[::1]:6379/0", "redis://[::1]:6379/0"),
        ("rediss+sentinel://:secret@a:1,b:2/master?db=3", "rediss+sentinel://a:1,b:2/master?db=3"),
        ("redis://:secret@a,user:secret@b:3", "redis://a,b:3"),
        ("unix:///tmp/redis.sock?password=secret", "unix:///tmp/redis.sock?password=hidden"),
        ("redis://:secret/half@host/0", "redis://hidden"),
        ("redis://:secret#half@host/0", "redis://hidden"),
        ("redis://:secret?half@host/0", "redis://hidden"),
    ],
)
def test_a_store_is_shown_without_who_gets_in(url: str, shown: str) -> None:
    """Whatever a password is made of, no part of it is repeated."""
    assert shown == without_secrets(url)


def test_equal_policies_have_equal_hashes_in_every_process() -> None:
    """The hash tells replicas with different policies apart, so it depends on nothing but the policy."""
    program = (
        "from ratelimiter.config import loader, redact; print(redact.fingerprint(loader.load('config/sentinel.yaml')))"
    )
    seen = {
        subprocess.run(
            [sys.executable, "-c", program],
            env=os.environ | {"PYTHONHASHSEED": seed},
            check=True,
            capture_output=True,
            text=True,
        ).stdout.strip()
        for seed in ("1", "2", "3")
    }

    assert {fingerprint(loader.load("config/sentinel.yaml"))} == seen


def test_any_change_changes_the_hash() -> None:
    """A limit, a condition or a timeout: whatever is decided otherwise is another policy; a secret never shows."""
    policies = [
        Policy((per_minute(60),)),
        Policy((per_minute(61),)),
        Policy((per_minute(60, match=Match(frozenset({"GET", "PUT", "POST"}))),)),
        Policy((per_minute(60),), decision_timeout_ms=51),
    ]

    assert len(policies) == len({fingerprint(policy) for policy in policies})
    assert fingerprint(policies[0]) == fingerprint(Policy((per_minute(60),), secret=SECRET))


def test_identity_is_shown_without_any_key(tmp_path: Path) -> None:
    """How callers are identified is no secret; which keys there are, and whose, is."""
    policy = loader.load(write_policy(tmp_path))
    assert policy.identity is not None
    assert policy.identity.api_keys is not None
    text = json.dumps(disclosed(policy))

    assert ISSUER in text
    assert "ulla" not in text
    assert not [entry for entry in policy.identity.api_keys.entries if entry.hex() in text]
    assert "ulla" not in repr(policy)
