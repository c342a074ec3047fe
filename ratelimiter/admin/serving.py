"""The admin and operator listeners of a worker, put together."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from ratelimiter.admin.app import OwnNames, State, admin_app
from ratelimiter.admin.audit import audit_to_stderr
from ratelimiter.admin.console.app import Console
from ratelimiter.admin.listener import hosts_for, serve_admin
from ratelimiter.admin.operator import Operator
from ratelimiter.admin.operator_http import operator_app

if TYPE_CHECKING:
    import os
    import socket
    from collections.abc import Callable
    from contextlib import AbstractAsyncContextManager

    from ratelimiter.admin.console.app import ASGIApp
    from ratelimiter.admin.console.recorder import ConsoleRecorder
    from ratelimiter.admin.operator_tokens import Tokens
    from ratelimiter.engine.limiter import Limiter
    from ratelimiter.engine.override_watcher import OverrideWatcher
    from ratelimiter.metrics.heavy_hitters import Top
    from ratelimiter.metrics.limiter_metrics import Metrics


class Shown(NamedTuple):
    """The objects that the admin listener of a worker shows."""

    metrics: Metrics
    top: Top
    recorder: ConsoleRecorder
    file: str | os.PathLike[str] | None = None  # of the policy
    operator: ASGIApp | None = None  # of `operator_commands`; None: the console gives no orders
    tokens: Tokens | None = None


def operator_commands(tokens: Tokens, limiter: Limiter, watcher: OverrideWatcher) -> ASGIApp:
    """Return the application of the operator's commands, for the operator listener and the console."""
    audit_to_stderr()
    return operator_app(Operator(lambda: limiter.policy, limiter.store.unwrap(), "nobody", done=watcher.poll), tokens)


def serve_operator(listener: socket.socket, app: ASGIApp) -> AbstractAsyncContextManager[str]:
    """Serve the operator's commands on *listener* while the context lasts."""
    hosts = hosts_for(listener.getsockname()[0])
    return serve_admin(OwnNames(app, hosts) if hosts else app, listener)


def serve_shown(
    listener: socket.socket, limiter: Limiter, ready: Callable[[], bool], shown: Shown
) -> AbstractAsyncContextManager[str]:
    """Serve the admin listener of a worker while the context lasts.

    Args:
        listener: a socket that listens.
        limiter: its policy and the state of its store are shown.
        ready: False while the worker drains.
        shown: the rest.
    """
    app = admin_app(
        exposition=shown.metrics.exposition,
        policy=lambda: limiter.policy,
        state=lambda: State(() if ready() else ("draining",), limiter.store.state),
        top=shown.top.report,
        hosts=hosts_for(listener.getsockname()[0]),
        console=Console(shown.recorder, shown.file, shown.operator, shown.tokens),
        history=lambda: shown.recorder.history,
    )
    return serve_admin(app, listener)
