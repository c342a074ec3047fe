"""A limiter as an application holds it: with its store, its presenter, and what keeps both up to date."""

from __future__ import annotations

import os
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, Any, TypedDict

from ratelimiter.config import loader as configuration
from ratelimiter.config.reload import Reloader, Reloading
from ratelimiter.engine.limiter import Limiter
from ratelimiter.engine.observer import observer_of
from ratelimiter.engine.override_watcher import OverrideWatcher
from ratelimiter.engine.presenter import Presenter
from ratelimiter.stores.factory import store_for

if TYPE_CHECKING:
    from collections.abc import Sequence

    from ratelimiter.core.policy import Policy
    from ratelimiter.engine.observer import DecisionObserver, Observer
    from ratelimiter.stores.base import Store


CONFIG = "RATELIMITER_CONFIG"  # the variable that names a policy file


class Settings(TypedDict, total=False):
    """The fields of a policy file, by their names there, as keyword arguments. None counts as not given."""

    limit: str | Sequence[str] | None  # one limit or several, each on every request of a principal
    config: str | os.PathLike[str] | Policy | None  # a policy file, or a `Policy`, instead of a limit
    store: str | Store | None  # URL of the store, or a `Store`
    dialect: str | None  # name of a dialect, or the path of a dialect file
    principal: str | Sequence[str] | None  # the sources of who is charged, tried in order
    headers: str | Sequence[str] | None  # header families on every response
    trusted_proxies: str | Sequence[str] | None  # networks whose forwarding headers are believed
    trusted_hops: int | None
    client_header: str | None
    ipv6_prefix: int | None
    on_store_error: str | None
    local_share: float | None
    decision_timeout: str | None
    expose_headers: bool | None
    ambiguous_paths: str | None
    path_case: str | None
    method_override: bool | None
    json_bytes_max: int | None
    mode: str | None
    name: str | None
    secret: str | bytes | None


class Assembly:
    """A limiter, its store and its presenter, made of *settings*.

    Args:
        settings: of the policy; a `Store` among them stays the caller's to close.
        observer: of decisions; an `Observer` also of policies, reloads, runtime overrides and the store.
        reload: True if a changed policy file, and the files that it names, takes effect while the application runs.
        without_rules: True if the settings may leave out both a limit and a file, as the rules stand elsewhere.

    Attributes:
        limiter: judges requests.
        presenter: words the answers of the policy in force.
        timed: True if something changes by itself, so that `begin` is to be called with every request.

    Raises:
        ConfigError: the settings or the file cannot be used.
    """

    def __init__(
        self,
        settings: Settings,
        *,
        observer: Observer | DecisionObserver | None = None,
        reload: bool = True,
        without_rules: bool = False,
    ) -> None:
        unknown = sorted(settings.keys() - Settings.__annotations__.keys())
        if unknown:
            msg = f"{', '.join(unknown)} is no setting; write one of {', '.join(Settings.__annotations__)}"
            raise TypeError(msg)
        store = settings.get("store")
        fields: dict[str, Any] = {**settings, "store": store if isinstance(store, str) else None}
        ruleless = without_rules and not (fields.get("limit") or fields.get("config") or os.environ.get(CONFIG))
        # A limit that no request is charged to, as the policy is left without its rule.
        build = partial(configuration.build, **(fields | {"limit": "1/second"} if ruleless else fields))
        policy = replace(build(), rules=()) if ruleless else build()
        observed = observer_of(observer)
        self.presenter = Presenter(policy)
        self._opened = store is None or isinstance(store, str)
        if store is None or isinstance(store, str):
            store = store_for(policy, observed)
        self.limiter = Limiter(policy, store, observer=observed)
        self._watcher = OverrideWatcher(self.limiter)
        file = configuration.file_of(fields.get("limit"), fields.get("config")) if reload else None
        self._reloading = None
        if file is not None:
            self._reloading = Reloading(
                lambda: Reloader(
                    file,
                    self.limiter.policy,
                    self.swap,
                    load=build,
                    observer=observed,
                )
            )
        self.timed = self._reloading is not None or self._watcher.needs_time

    def swap(self, policy: Policy) -> None:
        """Judge and answer under *policy* from the next request on; what is counted stays.

        Raises:
            ConfigError: its dialect cannot be used, or it says something else of the store; then nothing has changed.
        """
        presenter = Presenter(policy)
        self.limiter.swap(policy)
        self.presenter = presenter
        self.timed = self._reloading is not None or self._watcher.needs_time

    def begin(self) -> None:
        """Watch the policy file and the runtime overrides on the running event loop, if they are not watched yet."""
        if self._reloading is not None:
            self._reloading.begin()
        if self._watcher.needs_time:
            self._watcher.start()

    async def close(self) -> None:
        """Send what is to be settled, and stop what was begun; close the store, if it was opened here.

        A request that comes after all begins everything anew.
        """
        if self._reloading is not None:
            self._reloading.end()
        await self._watcher.stop()
        await (self.limiter.close() if self._opened else self.limiter.settled())
