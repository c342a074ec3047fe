"""The keys of an identity provider: fetched from its URL in a thread, renewed in time, kept during an outage."""

from __future__ import annotations

import logging
import socket
import threading
import urllib.error
import urllib.request
from concurrent.futures import Future
from contextlib import suppress
from http.client import HTTPConnection, HTTPException, HTTPResponse, HTTPSConnection
from typing import TYPE_CHECKING, Any, Generic, NamedTuple, TypeVar

from ratelimiter.clock import Clock, monotonic_ms

if TYPE_CHECKING:
    from collections.abc import Callable

BYTES_MAX = 1024 * 1024  # of a key set: real ones have a few thousand
EARLY = 0.8  # share of `refresh_ms` after which a set is fetched again while it is still used
LATE_S = 0.25  # after the deadline of a fetch its waiters go on, even if the thread hangs
RETRY_MS = 1_000  # minimum time from a failed fetch to the next

Keys = TypeVar("Keys")

log = logging.getLogger("ratelimiter.identity")


class FetchError(Exception):
    """No response, or an unusable one."""


def fetch(url: str, timeout_ms: int) -> bytes:
    """Return the content of *url*, at most `BYTES_MAX`. Blocks for at most *timeout_ms* once the name is resolved.

    The environment's proxies are used. Redirects are not followed: an attacker that redirects could replace the keys.

    Raises:
        FetchError: there was no answer in time, or no 200, or it was too long; with a reason.
    """
    opened: list[socket.socket] = []
    done, expired = threading.Event(), threading.Event()

    def watch() -> None:
        # The library's timeout begins anew with every byte, and with every address of a name; this ends them all.
        wait_s = timeout_ms / 1000
        while not done.wait(wait_s):
            expired.set()
            wait_s = 0.1
            for each in opened:
                with suppress(OSError):
                    each.shutdown(socket.SHUT_RDWR)

    threading.Thread(target=watch, name="ratelimiter-keys-deadline", daemon=True).start()
    try:
        request = urllib.request.Request(url, headers={"Accept": "application/json"})  # noqa: S310 - config allows http(s)
        with _opener(opened).open(request, timeout=timeout_ms / 1000) as response:
            if response.status != 200:
                msg = f"status {response.status}"
                raise FetchError(msg)
            body: bytes = response.read(BYTES_MAX + 1)
            cut_off = bool(response.length)  # announced bytes that are missing
    except urllib.error.HTTPError as fault:
        fault.close()
        msg = f"status {fault.code}"
        raise FetchError(msg) from None
    except (OSError, HTTPException, ValueError) as fault:
        raise FetchError("timeout" if expired.is_set() else _reason(fault)) from None
    finally:
        done.set()
    if expired.is_set():
        msg = "timeout"
        raise FetchError(msg)
    if len(body) > BYTES_MAX:
        msg = f"longer than {BYTES_MAX} bytes"
        raise FetchError(msg)
    if cut_off:
        msg = "cut off"
        raise FetchError(msg)
    return body


def _reason(fault: Exception) -> str:
    reason = getattr(fault, "reason", fault)
    if isinstance(reason, TimeoutError):
        return "timeout"
    return str(getattr(reason, "strerror", None) or reason or type(fault).__name__)


class _NoRedirects(urllib.request.HTTPRedirectHandler):
    def redirect_request(self, *_: Any) -> None:
        return None


def _opener(opened: list[socket.socket]) -> urllib.request.OpenerDirector:
    """Return an opener that keeps its sockets in *opened*: the library drops them before it has read the body."""

    class Plain(HTTPConnection):
        def connect(self) -> None:
            super().connect()
            opened.append(self.sock)

    class Secure(HTTPSConnection):
        def connect(self) -> None:
            super().connect()
            opened.append(self.sock)

    class PlainHandler(urllib.request.HTTPHandler):
        def http_open(self, request: urllib.request.Request) -> HTTPResponse:
            return self.do_open(Plain, request)

    class SecureHandler(urllib.request.HTTPSHandler):
        def https_open(self, request: urllib.request.Request) -> HTTPResponse:
            return self.do_open(Secure, request)

    return urllib.request.build_opener(_NoRedirects, PlainHandler, SecureHandler)


class FetchSchedule(NamedTuple):
    """The times of a key set, in ms."""

    refresh_ms: int  # age after which a set is fetched before it is used
    keep_ms: int  # age after which a set is not used
    cooldown_ms: int  # between two fetches for unknown keys
    timeout_ms: int  # of one fetch


class FetchedKeys(Generic[Keys]):
    """The recent content of a URL.

    There is no task: a request that needs the keys starts the fetch, so an idle process fetches nothing. A fetch runs
    in a thread of its own, one at a time, and belongs to no event loop.

    Args:
        url: URL of the keys.
        parse: returns the keys in the content; raises ValueError if there are none.
        schedule: times of the set.
        fetched: returns the content; `fetch` by default.
        clock: monotonic time in ms.
    """

    def __init__(
        self,
        url: str,
        parse: Callable[[bytes], Keys],
        schedule: FetchSchedule,
        *,
        fetched: Callable[[str, int], bytes] = fetch,
        clock: Clock = monotonic_ms,
    ) -> None:
        self.url = url
        self.schedule = schedule
        self._parse = parse
        self._fetched = fetched
        self._clock = clock
        self._keys: Keys | None = None
        self._taken_ms = 0  # when they were fetched
        self._tried_ms: int | None = None  # when the last fetch began
        self._failed = False  # how it ended
        self._fetching: Future[None] | None = None  # until it ends, or takes too long
        self._thread: threading.Thread | None = None
        self._lock = threading.Lock()

    @property
    def keys(self) -> Keys | None:
        """The keys that may be used now; None if there are none, or if they are too old."""
        if self._keys is None or self._clock() - self._taken_ms >= self.schedule.keep_ms:
            return None
        return self._keys

    def wanted(self) -> Future[None] | None:
        """Start a fetch if it is due; return a future to await first, or None if the keys may be used now."""
        age_ms = self._clock() - self._taken_ms
        old = self._keys is None or age_ms >= self.schedule.refresh_ms
        if not old and age_ms < self.schedule.refresh_ms * EARLY:
            return None
        fetching = self._begun()
        return fetching if old else None

    def sought(self) -> Future[None] | None:
        """Start a fetch because a key is unknown; return None if one was tried within `cooldown_ms`.

        Callers that invent keys cause at most one fetch in `cooldown_ms`.
        """
        now_ms = self._clock()
        if (
            self._fetching is None
            and self._tried_ms is not None
            and now_ms - self._tried_ms < self.schedule.cooldown_ms
        ):
            return None
        return self._begun()

    def _begun(self) -> Future[None] | None:
        """Return the fetch in flight, or start one; None if the last one failed within `RETRY_MS`."""
        if self._fetching is not None:
            return self._fetching
        now_ms = self._clock()
        if self._failed and self._tried_ms is not None and now_ms - self._tried_ms < RETRY_MS:
            return None
        if self._thread is not None and self._thread.is_alive():  # timed out and still running: the resolver hangs
            return None
        self._tried_ms = now_ms
        fetching = self._fetching = Future[None]()
        fetching.set_running_or_notify_cancel()  # a waiter that gives up must not cancel it for the others
        self._thread = threading.Thread(target=self._fetch, args=(fetching,), name="ratelimiter-keys", daemon=True)
        self._thread.start()
        return fetching

    def _fetch(self, fetching: Future[None]) -> None:
        late = threading.Timer(self.schedule.timeout_ms / 1000 + LATE_S, self._end, (fetching, "timeout"))
        late.daemon = True
        late.start()
        reason = ""
        try:
            keys = self._parse(self._fetched(self.url, self.schedule.timeout_ms))
        except (FetchError, ValueError) as fault:
            reason = str(fault)
        except Exception:  # after any failure the present keys stay
            log.exception("%s: could not be read", self.url)
            reason = "a mistake of ours"
        else:
            # The keys first: a reader of the new age must not use the old keys.
            self._keys, self._taken_ms = keys, self._clock()
        finally:
            late.cancel()
            self._end(fetching, reason)

    def _end(self, fetching: Future[None], reason: str) -> None:
        """Complete *fetching*; *reason* is the reason of a failure, or empty."""
        with self._lock:
            if fetching.done():
                return
            if reason and not self._failed:  # one line for each change
                what = "those that are there serve on" if self._keys is not None else "there are none to verify with"
                log.error("%s: no keys (%s); %s", self.url, reason, what)
            elif self._failed and not reason:
                log.info("%s: keys are there again", self.url)
            self._failed = bool(reason)
            self._fetching = None
            fetching.set_result(None)
