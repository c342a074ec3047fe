"""A policy file changes under a running limiter, in every way that files change."""

from __future__ import annotations

import asyncio
import logging
import os
import shutil
import signal
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from ratelimiter.config import loader
from ratelimiter.config.reload import FAILED, LOADED, RETRY_POLLS, UNCHANGED, Reloader
from ratelimiter.engine.limiter import Limiter
from ratelimiter.errors import ConfigError
from ratelimiter.stores.memory import MemoryStore
from tests.requesting import request

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from ratelimiter.core.policy import Policy

NOBODY = 65534


def text(limit: int) -> str:
    return f"rules:\n  - name: rule\n    limit: {limit}/minute\n"


ONE_KEY = f"keys:\n  - {{hash: '{'0' * 64}', principal: acme}}\n"
BAD = "rules:\n  - name: rule\n    limit: 10 parsecs\n"


class Watched:
    """A policy file, a limiter under it, and what came of each look."""

    def __init__(self, path: Path) -> None:
        self.path = path
        policy = loader.load(path)
        self.limiter = Limiter(policy, MemoryStore())
        self.results: list[str] = []
        self.looks = 0
        self.reloader = Reloader(path, policy, self.limiter.swap, observer=self, poll_s=0.01)

    def checked(self) -> None:
        self.looks += 1

    def reloaded(self, result: str) -> None:
        self.results.append(result)

    @property
    def limit(self) -> int:
        return self.limiter.policy.rules[0].quota.limit

    async def polled(self, times: int = 3) -> list[str]:
        """What came of *times* looks."""
        before = len(self.results)
        for _ in range(times):
            await self.reloader.poll()
        return self.results[before:]


@pytest.fixture
def folder() -> Iterator[Path]:
    """A folder that everybody may enter, unlike those of pytest."""
    path = Path(tempfile.mkdtemp(prefix="ratelimiter-policy-"))
    path.chmod(0o755)
    yield path
    shutil.rmtree(path)


@pytest.fixture
async def watched(folder: Path) -> Watched:
    path = folder / "policy.yaml"
    path.write_text(text(10))
    watched = Watched(path)
    assert [] == await watched.polled()
    return watched


def in_place(path: Path, content: str) -> None:
    path.write_text(content)


def renamed(path: Path, content: str) -> None:
    other = path.with_suffix(".new")
    other.write_text(content)
    other.rename(path)


def symlinked(path: Path, content: str) -> None:
    target = path.with_name(f"target-{len(list(path.parent.iterdir()))}")
    target.write_text(content)
    link = path.with_name("link")
    link.symlink_to(target)
    link.rename(path)


def in_place_as_old(path: Path, content: str) -> None:
    """Same size, same time, same inode: only the content tells."""
    before = path.stat()
    path.write_text(content)
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))


@pytest.mark.parametrize("change", [in_place, renamed, symlinked, in_place_as_old])
async def test_a_changed_file_is_in_force(watched: Watched, change: Callable[[Path, str], None]) -> None:
    """However it was changed; once, and again when it changes again."""
    change(watched.path, text(20))
    first = await watched.polled()
    change(watched.path, text(30))

    assert [LOADED] == first
    assert [LOADED] == await watched.polled()
    assert 30 == watched.limit


async def test_a_configmap_that_is_turned_is_in_force(folder: Path) -> None:
    """As the kubelet does it: the file is a link through `..data`, and that one is renamed over to a new folder."""

    def publish(name: str, content: str) -> None:
        (folder / name).mkdir()
        (folder / name / "policy.yaml").write_text(content)
        (folder / "..data_tmp").symlink_to(name)
        (folder / "..data_tmp").rename(folder / "..data")

    publish("..2030_01", text(10))
    (folder / "policy.yaml").symlink_to(Path("..data") / "policy.yaml")
    watched = Watched(folder / "policy.yaml")
    await watched.polled()
    publish("..2030_02", text(20))
    shutil.rmtree(folder / "..2030_01")

    assert [LOADED] == await watched.polled()
    assert 20 == watched.limit


async def test_what_is_counted_stays(watched: Watched) -> None:
    """A principal that has spent its limit has spent it under the new policy, too."""
    for _ in range(10):
        await watched.limiter.judge(request())
    in_place(watched.path, text(12))
    await watched.polled()
    decisions = [(await watched.limiter.judge(request())).decision.allowed for _ in range(3)]

    assert [True, True, False] == decisions


def deleted(path: Path) -> None:
    path.unlink()


def truncated(path: Path) -> None:
    path.write_text("")


def cut_short(path: Path) -> None:
    path.write_text(text(20)[:20])


def nonsense(path: Path) -> None:
    path.write_text(BAD)


def dangling(path: Path) -> None:
    path.unlink()
    path.symlink_to("nowhere")


def folder_instead(path: Path) -> None:
    path.unlink()
    path.mkdir()


def pipe_instead(path: Path) -> None:
    path.unlink()
    os.mkfifo(path)


def unreadable(path: Path) -> None:
    path.chmod(0)


def endless(path: Path) -> None:
    path.write_bytes(b"#" * (1 << 21))


@pytest.mark.parametrize(
    "spoil",
    [deleted, truncated, cut_short, nonsense, dangling, folder_instead, pipe_instead, unreadable, endless],
    ids=lambda spoil: spoil.__name__,
)
async def test_a_bad_file_never_replaces_a_good_one(
    watched: Watched, spoil: Callable[[Path], None], caplog: pytest.LogCaptureFixture
) -> None:
    """The last good policy stays, with one result and one log line however often it is looked at; and whatever was
    wrong, a good file is in force again.
    """
    caplog.set_level(logging.INFO, "ratelimiter.config.reload")
    spoil(watched.path)
    with as_nobody():
        results = await watched.polled(6)

    assert [FAILED] == results
    assert 10 == watched.limit
    assert 1 == len(caplog.records)
    assert "stays in force" in caplog.records[0].getMessage()

    if watched.path.is_dir():
        watched.path.rmdir()
    renamed(watched.path, text(20))

    assert [LOADED] == await watched.polled()
    assert 20 == watched.limit


class as_nobody:  # noqa: N801 - reads as a statement
    """Root may read what has no permissions, so the test gives that up for a moment."""

    def __enter__(self) -> None:
        self._root = os.geteuid() == 0
        if self._root:
            os.seteuid(NOBODY)

    def __exit__(self, *_: object) -> None:
        if self._root:
            os.seteuid(0)


async def test_a_file_that_comes_back_is_no_change(watched: Watched) -> None:
    """A bad file that is mended by putting back the old one loads nothing, and says that all is well again."""
    in_place(watched.path, BAD)
    await watched.polled()
    in_place(watched.path, text(10))
    policy = watched.limiter.policy

    assert [UNCHANGED] == await watched.polled()
    assert policy is watched.limiter.policy


async def test_a_file_under_way_is_waited_for(watched: Watched) -> None:
    """Half of a file may be a policy with half of its rules: what has changed since the last look is not loaded."""
    whole = text(20) + "  - name: other\n    limit: 5/second\n"
    watched.path.write_text(text(20))
    first = await watched.polled(1)
    watched.path.write_text(whole)
    second = await watched.polled(1)

    assert ([], []) == (first, second)
    assert [LOADED] == await watched.polled(1)
    assert 2 == len(watched.limiter.policy.rules)


async def test_a_file_changed_before_the_first_look_is_in_force(folder: Path) -> None:
    """Between the start and the first look nothing can slip through."""
    path = folder / "policy.yaml"
    path.write_text(text(10))
    watched = Watched(path)
    path.write_text(text(20))

    assert [LOADED] == await watched.polled()
    assert 20 == watched.limit


async def test_a_dialect_that_the_policy_names_is_watched(folder: Path) -> None:
    """Its words are part of what is in force."""
    from ratelimiter.dialects import loader

    packaged = Path(loader.__file__).parent / "data" / "plain.yaml"
    (folder / "own.yaml").write_text(packaged.read_text())
    (folder / "policy.yaml").write_text("dialect: ./own.yaml\n" + text(10))
    watched = Watched(folder / "policy.yaml")
    before = await watched.polled()
    (folder / "own.yaml").write_text(packaged.read_text() + "\n# another edition\n")
    changed = await watched.polled()
    (folder / "own.yaml").write_text("about: nothing\n")

    assert ([], [LOADED], [FAILED]) == (before, changed, await watched.polled())


@pytest.mark.parametrize("error", [ConfigError("store: cannot be changed"), RuntimeError("a mistake of ours")])
async def test_a_policy_that_cannot_be_applied_is_a_bad_one(
    watched: Watched, error: Exception, caplog: pytest.LogCaptureFixture
) -> None:
    """Whatever goes wrong on the way, the watch goes on and the last good policy stays."""

    def refuse(_: Policy) -> None:
        raise error

    reloader = Reloader(watched.path, watched.limiter.policy, refuse, observer=watched)
    in_place(watched.path, text(20))
    results = [await reloader.poll() for _ in range(4)]

    assert [None, FAILED, None, None] == results
    assert 1 == len(caplog.records)
    assert 10 == reloader.policy.rules[0].quota.limit


async def test_arguments_stay_in_force_over_the_file(folder: Path) -> None:
    """What makes a policy of the file is given, so that flags win over the new file as they did over the old one."""
    path = folder / "policy.yaml"
    path.write_text(text(10))

    def load() -> Policy:
        return loader.build(config=path, headers=[], environ={})

    limiter = Limiter(load(), MemoryStore())
    reloader = Reloader(path, limiter.policy, limiter.swap, load=load)
    path.write_text(text(20))
    results = [await reloader.poll() for _ in range(3)]

    assert [None, LOADED, None] == results
    assert ((), 20) == (limiter.policy.headers, limiter.policy.rules[0].quota.limit)


async def until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(5):
        while not condition():  # noqa: ASYNC110 - what is waited for tells nobody
            await asyncio.sleep(0.005)


async def test_sighup_loads_at_once(watched: Watched) -> None:
    """Who asks need not wait for two looks; asked for what is in force, it says so."""
    loop = asyncio.get_running_loop()
    loop.add_signal_handler(signal.SIGHUP, watched.reloader.ask)
    watched.reloader._poll_s = 60
    watching = asyncio.create_task(watched.reloader.run())
    try:
        for content, result in ((text(20), LOADED), (text(20), UNCHANGED), (BAD, FAILED)):
            watched.path.write_text(content)
            before = len(watched.results)
            os.kill(os.getpid(), signal.SIGHUP)
            await until(lambda: len(watched.results) > before)  # noqa: B023 - it is awaited here
            assert result == watched.results[-1]
    finally:
        loop.remove_signal_handler(signal.SIGHUP)
        watching.cancel()

    assert 20 == watched.limit


async def test_it_looks_by_itself(watched: Watched) -> None:
    """`run` polls for as long as it runs, and tells of every look."""
    watching = asyncio.create_task(watched.reloader.run())
    looks = watched.looks
    in_place(watched.path, text(20))
    await until(lambda: watched.limit == 20)
    watching.cancel()

    assert watched.looks >= looks + 2


async def test_requests_see_one_policy_or_the_other(watched: Watched) -> None:
    """While the file changes under load, each decision is made by one whole policy, and none fails."""
    watching = asyncio.create_task(watched.reloader.run())
    limits = set()
    for round_ in range(40):
        renamed(watched.path, text(1000 + round_ // 10))
        for _ in range(20):
            decision, hits, *_ = await watched.limiter.judge(request())
            assert decision.outcomes[0].rule is hits[0].rule
            limits.add(hits[0].quota.limit)
        await asyncio.sleep(0.005)
    watching.cancel()

    assert len(limits) >= 2
    assert limits <= {10, 1000, 1001, 1002, 1003}


async def test_files_that_a_policy_names_are_looked_at(folder: Path) -> None:
    """A key is revoked by a change of its file alone."""
    (folder / "keys.yaml").write_text(ONE_KEY)
    (folder / "policy.yaml").write_text(f"identity: {{api_keys: {{file: ./keys.yaml}}}}\n{text(60)}")
    watched = Watched(folder / "policy.yaml")
    await watched.polled()
    (folder / "keys.yaml").write_text("keys: []\n")

    assert await watched.polled() == [LOADED]
    assert watched.limiter.policy.identity is not None
    assert watched.limiter.policy.identity.api_keys is not None
    assert not watched.limiter.policy.identity.api_keys.entries


async def test_a_bad_file_that_only_the_new_policy_names(folder: Path, caplog: pytest.LogCaptureFixture) -> None:
    """When it is mended the policy is loaded, though nothing that is in force names it; until then it is told once."""
    (folder / "policy.yaml").write_text(text(60))
    watched = Watched(folder / "policy.yaml")
    await watched.polled()
    (folder / "new.yaml").write_text("keys: nonsense\n")
    (folder / "policy.yaml").write_text(f"identity: {{api_keys: {{file: ./new.yaml}}}}\n{text(61)}")
    assert await watched.polled(40) == [FAILED]
    (folder / "new.yaml").write_text(ONE_KEY)

    assert set(await watched.polled(RETRY_POLLS)) == {LOADED}
    assert watched.limit == 61
    assert caplog.text.count("nonsense") == 1
