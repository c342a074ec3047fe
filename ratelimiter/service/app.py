"""The process behind `ratelimiter serve`: the doors, the engine behind them, and the observers, put together."""

from __future__ import annotations

import asyncio
import ipaddress
import logging
import os
import secrets
import ssl
from contextlib import AsyncExitStack, ExitStack
from itertools import chain
from typing import TYPE_CHECKING, Any, NamedTuple

from ratelimiter.config import loader as configuration
from ratelimiter.engine.override_watcher import OverrideWatcher
from ratelimiter.errors import ConfigError
from ratelimiter.logs import diagnostics
from ratelimiter.logs.access_log import REFUSALS_PER_S, AccessLog
from ratelimiter.metrics.counting_directory import counting_directory
from ratelimiter.proxy import lifecycle, listener
from ratelimiter.proxy.addresses import parse_listen
from ratelimiter.proxy.fd_limit import make_room
from ratelimiter.proxy.pool import Target
from ratelimiter.proxy.process import every_second, spare_collections
from ratelimiter.proxy.proxy import Proxy
from ratelimiter.proxy.settings import ProxySettings
from ratelimiter.proxy.workers import Supervisor, reap_orphans
from ratelimiter.service import ext_authz, rls
from ratelimiter.service.decider import Decider
from ratelimiter.service.doors import Doors
from ratelimiter.service.grpc.calls import Server
from ratelimiter.service.grpc.health import CHECK, WATCH, Health
from ratelimiter.service.grpc.listener import Listener
from ratelimiter.service.json_api import JsonApi
from ratelimiter.stores.factory import store_for

if TYPE_CHECKING:
    import socket
    from collections.abc import Callable, Mapping

    from ratelimiter.admin.serving import Shown
    from ratelimiter.core.policy import Policy
    from ratelimiter.engine.observer import Observer
    from ratelimiter.metrics.service_metrics import ServiceMetrics
    from ratelimiter.proxy.exchange_record import ExchangeRecord
    from ratelimiter.service.grpc.calls import Status

log = logging.getLogger(__name__)

NOWHERE = Target("127.0.0.1", 9)  # of the proxy behind the HTTP doors, which forwards nothing
NO_LISTENER = "none"


class _Plan(NamedTuple):
    """The work of every worker."""

    policy: Policy
    settings: Mapping[str, Any]  # of which the policy was made
    file: str | os.PathLike[str] | None  # that the policy was read from
    bounds: ProxySettings
    grpc_tls: ssl.SSLContext | None
    http_tls: ssl.SSLContext | None
    admin: socket.socket | None
    access_log: AccessLog | None
    secret: bytes


class _Sockets(NamedTuple):
    """The listening sockets of one worker."""

    grpc: list[socket.socket]
    http: list[socket.socket]


def run(
    *,
    grpc: str = "127.0.0.1:8081",
    http: str = "127.0.0.1:8082",
    admin: str | None = "127.0.0.1:9090",
    workers: int = 1,
    tls_cert: str | None = None,
    tls_key: str | None = None,
    tls_client_ca: str | None = None,
    access_log: str | None = None,
    log_format: str = diagnostics.TEXT,
    **settings: Any,
) -> int:
    """Serve decisions until SIGTERM.

    Args:
        grpc: `HOST:PORT` or `unix:PATH` for gRPC; `none` for no such listener.
        http: likewise for the HTTP doors.
        admin: `HOST:PORT` for health, readiness and metrics; `none` or None for no such listener.
        workers: processes that share the ports.
        tls_cert: file of a certificate, for both doors; without one they speak in clear.
        tls_key: file of its key; without one it is in the same file.
        tls_client_ca: file of the authorities that vouch for clients; then only these are served.
        access_log: file to which a JSON line for each call is appended, or `-` for standard output.
        log_format: of the diagnostics on standard error, `text` or `json`.
        settings: what `ratelimiter.config.loader.build` takes.

    Returns:
        The exit status of the process.

    Raises:
        ConfigError: an argument or the policy file cannot be used.
    """
    policy, section, file, _ = configuration.build_loaded(**settings)
    of_proxy = {name: value for name, value in section.items() if name not in ("forwarded", "via")}
    refusals_per_s = of_proxy.pop("access_log_refusals", REFUSALS_PER_S)
    of_proxy.pop("access_log_caller", None)  # calls of a decision service name no caller of their own
    place = of_proxy.pop("access_log", None) if access_log is None else access_log
    written = None if place is None else AccessLog(place, refusals_per_s=refusals_per_s)
    if grpc == http == NO_LISTENER:
        msg = "--grpc and --http: both are none; name an address for one of them"
        raise ConfigError(msg)
    tls = [_tls(tls_cert, tls_key, tls_client_ca) for _ in range(2)]
    with ExitStack() as stack:  # closes what was bound if something else cannot be
        watching = None
        if admin is not None and admin != NO_LISTENER:
            watching = stack.enter_context(listener.bind(parse_listen(admin, "--admin"), "--admin"))
        bound = [_bound(grpc, "--grpc", workers), _bound(http, "--http", workers)]
        stack.pop_all()
    sockets = [_Sockets(*pair) for pair in zip(*bound, strict=True)]
    bounds = make_room(ProxySettings(**of_proxy))
    secret = policy.secret or secrets.token_bytes(32)
    plan = _Plan(policy, settings, file, bounds, tls[0], tls[1], watching, written, secret)
    _announce(sockets[0], watching, tls_cert is not None)
    diagnostics.start(log_format)
    _warn_of_strangers(chain(*sockets[0]), tls_client_ca)
    if workers == 1:
        lifecycle.run(_serve(plan, sockets[0]))
        return 0
    return _run_several(plan, sockets)


def _bound(listen: str, flag: str, workers: int) -> list[list[socket.socket]]:
    if listen == NO_LISTENER:
        return [[] for _ in range(workers)]
    return listener.bind_all(parse_listen(listen, flag), workers, flag)


def _tls(cert: str | None, key: str | None, client_ca: str | None) -> ssl.SSLContext | None:
    """Return what TLS listeners need; None for plain TCP.

    Raises:
        ConfigError: a file cannot be used, or is missing.
    """
    if cert is None:
        if key is not None or client_ca is not None:
            msg = "--tls-cert: is missing; name the file of a certificate, too"
            raise ConfigError(msg)
        return None
    context = listener.tls_context(cert, key)
    if client_ca is not None:
        try:
            context.load_verify_locations(client_ca)
        except (OSError, ssl.SSLError) as fault:
            msg = f"--tls-client-ca: {client_ca!r} cannot be used ({fault.strerror or fault})"
            raise ConfigError(msg) from None
        context.verify_mode = ssl.CERT_REQUIRED
    return context


def _announce(sockets: _Sockets, admin: socket.socket | None, tls: bool) -> None:
    told = []
    if sockets.grpc:
        told.append(f"grpc{'s' if tls else ''}://{listener.name_of(sockets.grpc[0])}")
    if sockets.http:
        told.append(f"http{'s' if tls else ''}://{listener.name_of(sockets.http[0])}")
    if admin is not None:
        told.append(f"admin http://{listener.name_of(admin)}")
    print(", ".join(told), flush=True)


def _warn_of_strangers(sockets: Any, client_ca: str | None) -> None:
    """Warn of a listener that other machines can reach: the service trusts its callers to name their clients."""
    for sock in sockets:
        name = sock.getsockname()
        if isinstance(name, tuple) and not ipaddress.ip_address(name[0]).is_loopback and client_ca is None:
            log.warning(
                "%s is open to other machines, and every caller is trusted to speak for any client and to spend any "
                "limit: admit only your proxies, by a network policy or with --tls-client-ca",
                listener.name_of(sock),
            )


def _run_several(plan: _Plan, sockets: list[_Sockets]) -> int:
    def work(index: int, beat: Callable[[], None]) -> None:
        for sock in chain(*chain(*sockets[:index], *sockets[index + 1 :])):
            sock.close()
        lifecycle.run(_serve(plan, sockets[index], beat))

    def stopping() -> None:
        for sock in chain(*chain(*sockets)):  # else connections would wait in the queues of workers that have gone
            sock.close()

    def ended(pid: int) -> None:
        from ratelimiter.metrics.prometheus import forget_process  # noqa: PLC0415  # see counting_directory

        forget_process(pid)

    with counting_directory():
        within_s = lifecycle.stop_within_s(plan.bounds) + 1  # a worker ends itself before
        return Supervisor(work, len(sockets), stopping=stopping, ended=ended, stop_within_s=within_s).run()


class _Serving(lifecycle.Server):
    """Both doors as one server, which is ready, drains and ends as a whole."""

    def __init__(
        self, proxy: Proxy, sockets: _Sockets, tls: ssl.SSLContext | None, listener: Listener, health: Health
    ) -> None:
        super().__init__(proxy, sockets.http, tls)
        self._grpc_sockets = sockets.grpc
        self._grpc = listener
        self._health = health

    async def start(self) -> None:
        """Begin to serve."""
        await self._grpc.start(self._grpc_sockets)
        await super().start()

    async def drain(self, at_once: asyncio.Event | None = None, *, lame_duck: bool = True) -> None:
        """Report the process as not ready, then finish what is in flight."""
        self._health.drain()
        http = asyncio.ensure_future(super().drain(at_once, lame_duck=lame_duck))
        await asyncio.wait([http], timeout=self.proxy.settings.lame_duck_ms / 1000 if lame_duck else 0)
        self._health.close()
        await self._grpc.drain(self.proxy.settings.grace_ms / 1000, at_once)
        await http


async def _serve(plan: _Plan, sockets: _Sockets, beat: Callable[[], None] | None = None) -> None:
    from ratelimiter.admin.console.recorder import ConsoleRecorder  # noqa: PLC0415
    from ratelimiter.engine.fan_out import FanOut  # noqa: PLC0415
    from ratelimiter.engine.observer import NULL_OBSERVER  # noqa: PLC0415
    from ratelimiter.metrics.heavy_hitters import Top  # noqa: PLC0415
    from ratelimiter.metrics.limiter_metrics import Metrics  # noqa: PLC0415
    from ratelimiter.metrics.prometheus import process_registry  # noqa: PLC0415  # see counting_directory
    from ratelimiter.metrics.service_metrics import ServiceMetrics  # noqa: PLC0415

    loop = asyncio.get_running_loop()
    registry = process_registry()
    metrics, top, recorder = Metrics(registry), Top(), ConsoleRecorder()
    observers = NULL_OBSERVER if plan.admin is None else FanOut(metrics, top, recorder)
    engine = Decider(plan.policy, store_for(plan.policy, observers), loop, observer=observers)
    calls = rls.RateLimitService(engine)
    counted = None
    if plan.admin is not None:
        counted = ServiceMetrics(registry, lambda: engine.missed, lambda: calls.refunds_unknown)
    told = _Told(counted, plan.access_log)
    health = Health([rls.SERVICE, ext_authz.SERVICE])
    methods = {
        rls.PATH: calls.should_rate_limit,
        ext_authz.PATH: ext_authz.Authorization(engine).check,
        CHECK: health.check,
    }
    server = Server(methods, {WATCH: health.watch}, loop, done=told.called)
    doors = Doors(engine, JsonApi(engine, calls, plan.secret))
    proxy = Proxy(NOWHERE, doors, engine.gate, plan.bounds, loop, trusts=lambda _: True, observer=told)
    serving = _Serving(proxy, sockets, plan.http_tls, Listener(server, loop, plan.grpc_tls), health)

    def swap(policy: Policy) -> None:
        engine.swap(policy)
        calls.renew()

    from ratelimiter.admin import serving as admin  # noqa: PLC0415  # brings uvicorn along

    shown = admin.Shown(metrics, top, recorder, plan.file)
    await _live(plan, engine, serving, _Watched(observers, shown), swap, beat)


class _Watched(NamedTuple):
    """The observers of the engine, and those of them that the admin listener shows."""

    all: Observer
    shown: Shown


async def _live(  # noqa: PLR0917  # each is there once
    plan: _Plan,
    engine: Decider,
    serving: _Serving,
    observers: _Watched,
    swap: Callable[[Policy], None],
    beat: Callable[[], None] | None,
) -> None:
    """Serve until the process is told to stop, then drain."""
    from ratelimiter.config.reload import Reloader  # noqa: PLC0415

    async with AsyncExitStack() as stack:
        stack.push_async_callback(engine.close)
        reloader = None
        if plan.file is not None:
            reloader = Reloader(
                plan.file,
                plan.policy,
                swap,
                load=lambda: configuration.build(**plan.settings),
                observer=observers.all,
            )
            reloading = asyncio.create_task(reloader.run())
            stack.callback(reloading.cancel)
        standing = OverrideWatcher(engine.gate.limiter)
        standing.start()
        stack.push_async_callback(standing.stop)
        if plan.admin is not None:
            from ratelimiter.admin.serving import serve_shown  # noqa: PLC0415

            await stack.enter_async_context(
                serve_shown(plan.admin, engine.gate.limiter, lambda: serving.ready, observers.shown)
            )
        if plan.access_log is not None:
            stack.callback(plan.access_log.close)
        await serving.start()
        spare_collections()
        if beat is None and os.getpid() == 1:  # of a container, whose orphans are ours; uvloop keeps SIGCHLD for itself
            beat = reap_orphans
        if beat is not None:
            stack.callback(asyncio.create_task(every_second(beat)).cancel)

        def hang_up() -> None:
            if reloader is not None:
                reloader.ask()
            if plan.access_log is not None:
                plan.access_log.reopen()

        await lifecycle.until_stopped(serving, on_hangup=hang_up)


class _Told:
    """Tells metrics and the access log of every call."""

    def __init__(self, counted: ServiceMetrics | None, written: AccessLog | None) -> None:
        self._counted = counted
        self._written = written

    def called(self, path: str, status: Status, seconds: float) -> None:
        """Note a gRPC call."""
        if self._counted is not None:
            self._counted.called(path, status, seconds)
        if self._written is not None:
            self._written.exchanged(_record(path, status, seconds))

    def exchanged(self, exchange: ExchangeRecord) -> None:
        """Note a request to an HTTP door; see `ratelimiter.proxy.interfaces.ExchangeObserver`."""
        if self._counted is not None:
            self._counted.exchanged(exchange)
        if self._written is not None:
            self._written.exchanged(exchange)


def _record(path: str, status: Status, seconds: float) -> ExchangeRecord:
    """Return a gRPC call as the access log has it: its status is that of gRPC."""
    from ratelimiter.proxy.exchange_record import PROXY, ExchangeRecord  # noqa: PLC0415

    return ExchangeRecord("POST", path.encode(), int(status), PROXY, 0, 0, seconds * 1000, 0.0, "")
