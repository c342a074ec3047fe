"""Reload of a policy file that changes while it is in force: polled each second and on demand; a bad file is refused.

Its content is compared, not its time or its inode, so that all ways to change a file are equal: written in place,
renamed over, a symlink swapped, a Kubernetes ConfigMap's `..data` turned.
"""

from __future__ import annotations

import asyncio
import logging
import os
import stat
from hashlib import blake2b
from typing import TYPE_CHECKING, Final, NamedTuple, Protocol

from ratelimiter.config import loader
from ratelimiter.config.changes import changes
from ratelimiter.config.redact import fingerprint
from ratelimiter.errors import ConfigError
from ratelimiter.parsing.document import shown_name
from ratelimiter.parsing.yaml import BYTES_MAX

if TYPE_CHECKING:
    from collections.abc import Callable

    from ratelimiter.core.policy import Policy

POLL_S = 1.0
RETRY_POLLS = 10  # polls after which a bad policy is loaded again: files that only it names are not polled
PROBLEMS_MAX = 5  # of a bad file in its log line; check-config tells all

# Result of a changed file. A closed set: it becomes a metric label.
LOADED: Final = "loaded"
UNCHANGED: Final = "unchanged"  # the file states the policy in force
FAILED: Final = "failed"  # the last good policy stays
RESULTS = (LOADED, UNCHANGED, FAILED)

log = logging.getLogger("ratelimiter.config.reload")


class ReloadObserver(Protocol):
    """The observer of a policy file, of which `ratelimiter.engine.observer.Observer` is one. Methods must not raise."""

    def checked(self) -> None:
        """Note that the file was read."""

    def reloaded(self, result: str) -> None:
        """Note that a change, or a request to read the file, had one of `RESULTS`."""


class _Silent:
    """The observer of a reloader that was given none."""

    def checked(self) -> None:
        pass

    def reloaded(self, result: str) -> None:
        pass


SILENT = _Silent()


class _Look(NamedTuple):
    """The content of the files at one moment."""

    digest: bytes
    unreadable: str  # why one of them could not be read; else empty


class Reloader:
    """Applies a policy file whenever its content changes.

    A file that has just changed may be incomplete: it is loaded when two polls found the same content. The files that
    the policy names (a dialect, API keys, public keys) are polled, too.

    Belongs to one event loop; files are read in a thread, and *apply* is called on the loop, between two requests.

    Args:
        path: the policy file.
        policy: the policy in force, from that file.
        apply: puts a policy in force; raises a ConfigError if that is impossible.
        load: reads the policy; by default from the file alone.
        observer: is notified of every poll and every result.
        poll_s: seconds between two polls.
    """

    def __init__(
        self,
        path: str | os.PathLike[str],
        policy: Policy,
        apply: Callable[[Policy], None],
        *,
        load: Callable[[], Policy] | None = None,
        observer: ReloadObserver = SILENT,
        poll_s: float = POLL_S,
    ) -> None:
        self.policy = policy
        self._path = path
        self._apply = apply
        self._load = load or (lambda: loader.load(path))
        self._observer = observer
        self._poll_s = poll_s
        self._asked = asyncio.Event()
        self._in_force: _Look | None = None  # unknown before the first poll: the file may have changed since
        self._settled: _Look | None = None  # the last content that had a result
        self._last: _Look | None = None
        self._problems: tuple[str, ...] = ()  # of that content
        self._looks = 0  # since then

    async def run(self) -> None:
        """Poll until cancelled: each *poll_s*, and at once after `ask`."""
        while True:
            try:
                async with asyncio.timeout(self._poll_s):
                    await self._asked.wait()
            except TimeoutError:
                await self.poll()
            else:
                await self.reload()

    def ask(self) -> None:
        """Make `run` load the file now, as for SIGHUP."""
        self._asked.set()

    async def poll(self) -> str | None:
        """Poll once; return one of `RESULTS`, or None if there was nothing to do."""
        look = await self._look()
        if look == self._settled:
            self._last = look
            self._looks += 1
            if self._problems and self._looks % RETRY_POLLS == 0:
                return await self._take(look)
            return None
        if look != self._last:
            self._last = look
            return None
        return await self._take(look)

    async def reload(self) -> str | None:
        """Load the file now, changed or not; return one of `RESULTS`, or None if it changed meanwhile."""
        self._asked.clear()
        return await self._take(await self._look(), asked=True)

    async def _take(self, look: _Look, *, asked: bool = False) -> str | None:
        """Act on a snapshot of the files: load it if it differs. None if nothing changed."""
        name = shown_name(self._path)
        if look.unreadable:
            return self._failed(look, f"{name}: cannot be read ({look.unreadable})")
        if look == self._in_force:
            return self._settle(look, UNCHANGED, f"{name}: is in force already, policy {fingerprint(self.policy)}")
        try:
            return await self._put_in_force(look, name, asked=asked)
        except ConfigError as fault:
            if fault.problems == self._problems and look == self._settled and not asked:
                return None
            more = len(fault.problems) - PROBLEMS_MAX
            told = [*fault.problems[:PROBLEMS_MAX], *([f"and {more} more"] if more > 0 else [])]
            return self._failed(look, "; ".join(told), fault.problems)
        except Exception:  # after any failure the last good policy stays
            log.exception("%s: could not be loaded; policy %s stays in force", name, fingerprint(self.policy))
            return self._settle(look, FAILED)

    async def _put_in_force(self, look: _Look, name: str, *, asked: bool) -> str | None:
        policy = await asyncio.to_thread(self._load)
        if await self._look() != look:  # either content may have been loaded: the next poll decides
            return None
        if self._in_force is None and policy == self.policy and not asked:
            self._in_force = self._settled = look
            return None
        self._apply(policy)
        before, self.policy, self._in_force = self.policy, policy, look
        what = ", ".join(changes(before, policy)) or "nothing that it says has changed"
        told = f"{name}: policy {fingerprint(policy)} in force, was {fingerprint(before)}: {what}"
        return self._settle(look, LOADED, told)

    def _failed(self, look: _Look, reason: str, problems: tuple[str, ...] = ()) -> str:
        log.error("%s; policy %s stays in force", reason, fingerprint(self.policy))
        result = self._settle(look, FAILED)
        self._problems = problems
        return result

    def _settle(self, look: _Look, result: str, told: str = "") -> str:
        if told:
            log.info(told)
        self._settled = self._last = look
        self._problems, self._looks = (), 0
        self._observer.reloaded(result)
        return result

    async def _look(self) -> _Look:
        look = await asyncio.to_thread(_examine, [self._path, *self.policy.files])
        self._observer.checked()
        return look


class Reloading:
    """Runs a reloader on the event loop that serves, where no lifespan event announces begin and end.

    Args:
        make: returns a reloader; each event loop has its own.
    """

    def __init__(self, make: Callable[[], Reloader]) -> None:
        self._make = make
        self._loop: asyncio.AbstractEventLoop | None = None
        self._task: asyncio.Task[None] | None = None

    def begin(self) -> None:
        """Start the reloader on the running loop, if it does not run there. It ends with the loop."""
        loop = asyncio.get_running_loop()
        if loop is not self._loop:
            self._loop = loop
            self._task = loop.create_task(self._make().run())

    def end(self) -> None:
        """Stop the reloader until `begin` is called again."""
        if self._task is not None and self._loop is asyncio.get_running_loop():
            self._task.cancel()
        self._loop = self._task = None


def _examine(paths: list[str | os.PathLike[str]]) -> _Look:
    digest = blake2b(digest_size=16)
    for path in paths:
        try:
            content = _read(path)
        except (OSError, ValueError) as fault:  # ValueError: a NUL in the path
            return _Look(b"", getattr(fault, "strerror", None) or str(fault))
        digest.update(b"%d:%s" % (len(content), content))
    return _Look(digest.digest(), "")


def _read(path: str | os.PathLike[str]) -> bytes:
    # A pipe in the file's place must not block the read.
    with open(os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC), "rb") as file:
        if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
            msg = "not a regular file"
            raise ValueError(msg)
        return file.read(BYTES_MAX + 1)  # a longer file is refused
