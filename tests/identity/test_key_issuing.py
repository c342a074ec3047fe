"""Goal: what `ratelimiter keys` prints works. Method: the command itself, then a policy with what it printed."""

from __future__ import annotations

import io
import subprocess
import sys
from types import SimpleNamespace
from typing import TYPE_CHECKING

import pytest

from ratelimiter.cli.main import main
from ratelimiter.config import loader
from ratelimiter.core.identity import KEY_INVALID
from ratelimiter.errors import ConfigError
from ratelimiter.identity.api_keys import hash_key
from ratelimiter.identity.authenticator import Authenticator
from tests.requesting import request

if TYPE_CHECKING:
    from pathlib import Path

Capture = pytest.CaptureFixture[str]


@pytest.fixture(autouse=True)
def _no_secret(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("RATELIMITER_SECRET", raising=False)


def printed(capsys: Capture, *arguments: str) -> tuple[str, str]:
    """The key and the entry that `keys new` printed."""
    assert main(["keys", "new", *arguments]) == 0
    lines = capsys.readouterr().out.splitlines()
    start = next(number for number, line in enumerate(lines) if line.startswith("  - hash: "))
    return lines[2], "\n".join(lines[start:]) + "\n"


def identified(folder: Path, entry: str, key: str, more: str = "") -> Authenticator:
    (folder / "keys.yaml").write_text(f"keys:\n{entry}")
    (folder / "policy.yaml").write_text(
        f"identity: {{api_keys: {{file: keys.yaml}}}}\n{more}rules: [{{limit: 1/hour}}]\n"
    )
    return Authenticator(loader.load(folder / "policy.yaml"))


def test_a_new_key_works(tmp_path: Path, capsys: Capture) -> None:
    """The entry goes into the file as it is printed, and the key is good for what was said."""
    said = ["--principal", "it's: acme # 1", "--plan", "gold", "--scope", "a", "--scope", "b", "--kind", "service"]
    key, entry = printed(capsys, *said, "--org", "Zoë", "--expires", "2999-01-01T00:00:00Z", "--prefix", "trace_")
    identity = identified(tmp_path, entry, key).identify(request(headers=[("X-API-Key", key)]))

    assert key.startswith("trace_")
    assert key not in entry
    assert (identity.principal, identity.plan, identity.kind, identity.org) == (
        "it's: acme # 1",
        "gold",
        "service",
        "Zoë",
    )
    assert identity.scopes == {"a", "b"}
    assert identity.fault == ""


@pytest.mark.parametrize("where", ["flag", "environment"])
def test_a_new_key_of_a_policy_with_a_secret(
    tmp_path: Path, capsys: Capture, monkeypatch: pytest.MonkeyPatch, where: str
) -> None:
    """Hashed with the same secret, and worthless without."""
    (tmp_path / "secret").write_text("s3cret\n")
    flags = ["--secret-file", str(tmp_path / "secret")] if where == "flag" else []
    if where == "environment":
        monkeypatch.setenv("RATELIMITER_SECRET", "s3cret")
    key, entry = printed(capsys, "--principal", "acme", *flags)
    asked = request(headers=[("X-API-Key", key)])

    assert identified(tmp_path, entry, key, "secret_file: ./secret\n").identify(asked).principal == "acme"
    assert identified(tmp_path, entry, key).identify(asked).fault == KEY_INVALID


def hashed(text: bytes, monkeypatch: pytest.MonkeyPatch, *flags: str) -> int:
    monkeypatch.setattr(sys, "stdin", SimpleNamespace(buffer=io.BytesIO(text)))
    return main(["keys", "hash", *flags])


@pytest.mark.parametrize("text", [b"k1", b"k1\n", b"  k1\r\n"])
def test_a_key_is_hashed(text: bytes, capsys: Capture, monkeypatch: pytest.MonkeyPatch) -> None:
    """White space around it is none of it, as in a header."""
    assert hashed(text, monkeypatch) == 0
    assert capsys.readouterr().out == hash_key(b"k1").hex() + "\n"


@pytest.mark.parametrize("text", [b"", b"\n", b"two words", b"two\nlines", "é".encode(), b"\0", b"k" * 1025])
def test_what_no_request_could_carry(text: bytes, capsys: Capture, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is refused, and not repeated."""
    assert hashed(text, monkeypatch) == 2
    out, err = capsys.readouterr()

    assert (out, err) == ("", "stdin: is not a key: one line of 1 to 1024 visible characters\n")


@pytest.mark.parametrize(
    ("flags", "problem"),
    [
        (["--principal", ""], "--principal: '' is not a name of 1 to 256 characters; write acme"),
        (["--principal", "a\nb"], "--principal: 'a\\nb' is not a name of 1 to 256 characters; write acme"),
        (["--principal", "a", "--plan", "a b"], "--plan: 'a b' is not a plan: 1 to 64 of A-Z a-z 0-9 - _ .; write "),
        (["--principal", "a", "--kind", "User"], "--kind: 'User' is not a kind: 1 to 32 of a-z 0-9 - _; write "),
        (["--principal", "a", "--scope", "a b"], "--scope: 'a b' is not a scope: visible characters but quotes "),
        (["--principal", "a", "--expires", "soon"], "--expires: 'soon' is not a moment with its time zone; write "),
        (["--principal", "a", "--prefix", "a.b"], "--prefix: 'a.b' is not at most 32 of A-Z a-z 0-9 - _; write rl_"),
        (["--principal", "a", "--secret-file", "/nowhere"], "--secret-file: '/nowhere' cannot be read (No such file "),
    ],
)
def test_what_makes_no_entry(flags: list[str], problem: str, capsys: Capture) -> None:
    """Each flag by its name, and no key for nothing."""
    assert main(["keys", "new", *flags]) == 2
    out, err = capsys.readouterr()

    assert out == ""
    assert err.startswith(problem)
    assert err.count("\n") == 1


def test_without_pyjwt_it_says_what_to_install(tmp_path: Path) -> None:
    """Keys need nothing; tokens say which extra they need."""
    jwt = "{issuer: https://id.example/, audience: api, keys: https://id.example/jwks.json}"
    (tmp_path / "tokens.yaml").write_text(f"identity: {{jwt: {jwt}}}\nrules: [{{limit: 1/hour}}]\n")
    (tmp_path / "keys.yaml").write_text("keys: []\n")
    (tmp_path / "keyed.yaml").write_text("identity: {api_keys: {file: keys.yaml}}\nrules: [{limit: 1/hour}]\n")
    program = (
        "import sys; sys.modules['jwt'] = None; from ratelimiter.cli.main import main; sys.exit(main(sys.argv[1:]))"
    )

    def run(file: str) -> tuple[int, str]:
        words = [sys.executable, "-c", program, "check-config", file]
        done = subprocess.run(words, cwd=tmp_path, capture_output=True, text=True, check=False)
        return done.returncode, done.stderr.splitlines()[0] if done.stderr else ""

    needed = (
        "tokens.yaml:1:17: identity.jwt: needs PyJWT and cryptography; "
        "run pip install '.[jwt]' in a clone of ratelimiter-service"
    )
    assert run("tokens.yaml") == (2, needed)
    assert run("keyed.yaml")[0] == 0


def test_a_bad_file_names_itself_not_the_policy(tmp_path: Path) -> None:
    """A problem of a key file has the place in that file."""
    (tmp_path / "keys.yaml").write_text("keys:\n  - {hash: x, principal: a}\n")
    (tmp_path / "policy.yaml").write_text("identity: {api_keys: {file: ./keys.yaml}}\nrules: [{limit: 1/hour}]\n")
    with pytest.raises(ConfigError, match=r"/keys\.yaml:2:12: keys\[0\]\.hash: 'x' is not a hash"):
        loader.load(tmp_path / "policy.yaml")
