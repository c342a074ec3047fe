"""Credential providers: user name and password from the application's own code, asked at every connect."""

from __future__ import annotations

import asyncio
import sys
import types
from typing import TYPE_CHECKING

import pytest
from redis.credentials import CredentialProvider, UsernamePasswordCredentialProvider

from ratelimiter.errors import ConfigError, Kind, StoreMisconfigured
from ratelimiter.stores.factory import open_store
from ratelimiter.stores.redis.store import RedisStore
from tests.stores.redis.test_store import PATIENT_MS, closing, hit
from tests.stores.redis_server import RedisServer

if TYPE_CHECKING:
    from collections.abc import Iterator


class RotatingToken(CredentialProvider):
    """A token that changes, as those of cloud providers do."""

    def __init__(self) -> None:
        self.token = "first"  # noqa: S105 - of a server of this test
        self.asked = 0

    async def get_credentials_async(self) -> tuple[str, str]:
        await asyncio.sleep(0)
        self.asked += 1
        return "limiter", self.token


class Blocking(CredentialProvider):
    """A provider that can only be asked synchronously."""

    def get_credentials(self) -> tuple[str, str]:
        with pytest.raises(RuntimeError):
            asyncio.get_running_loop()  # not on the event loop
        return "limiter", "first"


class Failing(CredentialProvider):
    async def get_credentials_async(self) -> tuple[str, str]:
        msg = "the token service is out"
        raise OSError(msg)


@pytest.fixture
def providers(monkeypatch: pytest.MonkeyPatch) -> types.ModuleType:
    module = types.ModuleType("our_credentials")
    monkeypatch.setitem(sys.modules, "our_credentials", module)
    module.rotating = RotatingToken()  # type: ignore[attr-defined]
    module.Blocking, module.Failing = Blocking, Failing  # type: ignore[attr-defined]
    module.make = lambda: UsernamePasswordCredentialProvider("limiter", "first")  # type: ignore[attr-defined]
    module.number = 12  # type: ignore[attr-defined]
    return module


@pytest.fixture(scope="module")
def guarded() -> Iterator[RedisServer]:
    with RedisServer() as server:
        with server.client() as client:
            client.execute_command("ACL", "SETUSER", "limiter", "on", ">first", "~*", "+@all")
            client.execute_command("ACL", "SETUSER", "default", "on", "nopass", "-@all", "+acl|setuser", "+ping")
        yield server


@pytest.mark.parametrize("name", ["rotating", "Blocking", "make"])
async def test_a_provider_is_asked(guarded: RedisServer, providers: types.ModuleType, name: str) -> None:
    """An instance, a class and a function are taken; charges and commands get in by what the provider says."""
    url = f"{guarded.url}?credential_provider=our_credentials:{name}"

    async with closing(open_store(url, timeout_ms=PATIENT_MS)) as store:
        assert isinstance(store, RedisStore)
        assert (await store.charge([hit()])).now_ms > 0
        assert await store.command(b"k", "HGET", "none", "version") is None


async def test_a_token_that_was_rotated_is_fetched_anew(guarded: RedisServer, providers: types.ModuleType) -> None:
    """Every new connection asks the provider, so a rotated token needs no restart."""
    provider = RotatingToken()
    providers.rotating = provider  # type: ignore[attr-defined]
    async with closing(open_store(f"{guarded.url}?credential_provider=our_credentials:rotating")) as store:
        await store.charge([hit()])
        with guarded.client() as client:
            client.execute_command("ACL", "SETUSER", "limiter", "resetpass", ">second")
        provider.token = "second"  # noqa: S105
        await store.close()

        assert (await store.charge([hit()])).now_ms > 0
        assert 2 == provider.asked
    with guarded.client() as client:
        client.execute_command("ACL", "SETUSER", "limiter", "resetpass", ">first")


async def test_a_provider_that_fails_is_named(guarded: RedisServer, providers: types.ModuleType) -> None:
    """Its error is a misconfiguration that says where it comes from."""
    url = f"{guarded.url}?credential_provider=our_credentials:Failing"
    async with closing(open_store(url, timeout_ms=PATIENT_MS)) as store:
        with pytest.raises(StoreMisconfigured, match="credential_provider: OSError: the token") as caught:
            await store.charge([hit()])

    assert Kind.AUTHENTICATION is caught.value.kind


@pytest.mark.parametrize(
    ("query", "message"),
    [
        ("credential_provider=nowhere:x", "cannot be used .*nowhere.*; write package.module:name"),
        ("credential_provider=our_credentials", "cannot be used"),
        ("credential_provider=our_credentials:absent", "cannot be used .*absent"),
        ("credential_provider=our_credentials:number", "cannot be used"),
        (
            "credential_provider=our_credentials:make&password_file=/run/p",
            "leave out those of the URL",
        ),
    ],
)
def test_what_is_no_provider_is_refused(providers: types.ModuleType, query: str, message: str) -> None:
    """A provider that cannot be made is an error of the policy, before anything connects."""
    with pytest.raises(ConfigError, match=message):
        open_store(f"redis://localhost/0?{query}")


def test_a_url_with_a_password_takes_no_provider(providers: types.ModuleType) -> None:
    """Two sources of a password are refused, and the password is not repeated."""
    with pytest.raises(ConfigError, match="leave out") as caught:
        open_store("redis://alice:secret@localhost/0?credential_provider=our_credentials:make")

    assert "secret" not in str(caught.value)
