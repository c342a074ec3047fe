from __future__ import annotations

from pathlib import Path
from time import perf_counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ratelimiter.core.identity import API_KEY, KEY_INVALID, Identity
from ratelimiter.core.principal import Source
from ratelimiter.errors import ConfigError
from ratelimiter.identity.api_keys import UNKNOWN, hash_key, identify, new_key, read_key_file

KEY_FILES = Path(__file__).parents[1] / "data" / "keys"
HEADER = Source("header", "X-API-Key")
SECRET = b"secret"


def written(folder: Path, text: str) -> Path:
    path = folder / "keys.yaml"
    path.write_text(text)
    return path


def entry(key: str, more: str = "", secret: bytes = b"") -> str:
    return f"- {{hash: {hash_key(key.encode(), secret).hex()}, principal: acme{more}}}\n"


def test_what_a_key_proves(tmp_path: Path) -> None:
    """Everything that its entry says, and nothing for any other key."""
    more = ", plan: gold, scopes: [a, b], kind: org, org: acme-inc, email_verified: true"
    entries = read_key_file(written(tmp_path, f"keys:\n{entry('k1', more)}"), HEADER)

    assert identify(b"k1", entries, b"", 0) == Identity(
        source="header:x-api-key",
        principal="acme",
        plan="gold",
        scopes=frozenset({"a", "b"}),
        kind="org",
        method=API_KEY,
        org="acme-inc",
        email_verified=True,
        verified=(("header:x-api-key", "acme"), ("org", "acme-inc")),
    )
    assert identify(b"k2", entries, b"", 0) == Identity(fault=KEY_INVALID)


def test_keys_that_are_worth_nothing(tmp_path: Path) -> None:
    """Revoked, or expired: from the very millisecond on."""
    text = entry("gone", ", revoked: true") + entry("old", ", expires: '1970-01-01T01:00:01+01:00'") + entry("good")
    entries = read_key_file(written(tmp_path, f"keys:\n{text}"), HEADER)

    assert [identify(b"old", entries, b"", now_ms).fault for now_ms in (0, 999, 1000)] == ["", "", KEY_INVALID]
    assert identify(b"gone", entries, b"", 0).fault == KEY_INVALID
    assert identify(b"good", entries, b"", 10**15).fault == ""


def test_the_secret_is_part_of_the_hash(tmp_path: Path) -> None:
    """Who has the file and not the secret cannot tell a key; with another secret no key is good."""
    entries = read_key_file(written(tmp_path, f"keys:\n{entry('k1', secret=SECRET)}"), HEADER)

    assert [identify(b"k1", entries, secret, 0).fault for secret in (SECRET, b"", b"other")] == [
        "",
        KEY_INVALID,
        KEY_INVALID,
    ]


@given(st.binary(max_size=1024))
def test_no_bytes_are_a_key(key: bytes) -> None:
    """Nothing but the key itself is."""
    entries = {hash_key(b"the key"): UNKNOWN._replace(identity=Identity(principal="acme"))}

    assert identify(key, entries, b"", 0).fault == KEY_INVALID
    assert identify(key, {UNKNOWN.digest: UNKNOWN}, b"", 0).fault == KEY_INVALID


@given(st.binary(min_size=1), st.binary(min_size=1), st.binary(max_size=64))
def test_different_keys_have_different_hashes(one: bytes, other: bytes, secret: bytes) -> None:
    """Equal keys, and only they, have equal hashes; none is the digest of a principal."""
    assert (hash_key(one, secret) == hash_key(other, secret)) == (one == other)


def test_new_keys() -> None:
    """No two alike, of 256 bits, and never taken for a token."""
    keys = {new_key() for _ in range(100)}

    assert len(keys) == 100
    assert all(key.startswith("rl_") and len(key) == 46 and "." not in key for key in keys)
    assert new_key("trace_").startswith("trace_")


def test_the_time_of_a_lookup_does_not_depend_on_the_keys() -> None:
    """Neither on how many there are nor on where a wrong one differs: it is one hash."""
    few = {hash_key(b"0"): UNKNOWN}
    many = {hash_key(b"%d" % number): UNKNOWN for number in range(20_000)}

    def best_s(entries: dict[bytes, object]) -> float:
        def once() -> float:
            began_s = perf_counter()
            for number in range(200):
                identify(b"wrong %d" % number, entries, b"", 0)  # type: ignore[arg-type]
            return perf_counter() - began_s

        return min(once() for _ in range(15))

    assert best_s(many) < 3 * best_s(few)  # type: ignore[arg-type]


@pytest.mark.parametrize("path", sorted(KEY_FILES.glob("*.yaml")), ids=lambda path: path.stem)
def test_a_bad_file_is_refused_in_so_many_words(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each file in the folder has one mistake, and its first line is what must be said of it, to the letter."""
    monkeypatch.chdir(KEY_FILES)
    lines = path.read_text().splitlines()
    expected = "\n".join(line.removeprefix("# ") for line in lines if line.startswith("# "))

    with pytest.raises(ConfigError) as caught:
        read_key_file(path.name, HEADER)
    assert expected == str(caught.value)


def test_the_folder_of_bad_files_is_there() -> None:
    """The test above does not pass for lack of files."""
    assert len(list(KEY_FILES.glob("*.yaml"))) >= 12
