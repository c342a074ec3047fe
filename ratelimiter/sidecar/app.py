"""The process behind `ratelimiter proxy`: a proxy, its judge, its listeners and logs, put together."""

from __future__ import annotations

import asyncio
import os
from contextlib import AsyncExitStack, ExitStack
from itertools import chain
from typing import TYPE_CHECKING, Any, NamedTuple

from ratelimiter.admin.operator_tokens import Tokens
from ratelimiter.config import loader as configuration
from ratelimiter.config.description import summary
from ratelimiter.engine.override_watcher import OverrideWatcher
from ratelimiter.errors import ConfigError, Problems
from ratelimiter.logs import diagnostics
from ratelimiter.logs.access_log import REFUSALS_PER_S, AccessLog
from ratelimiter.metrics.counting_directory import counting_directory
from ratelimiter.proxy import certificates, lifecycle, listener
from ratelimiter.proxy.addresses import parse_listen, parse_upstream
from ratelimiter.proxy.certificates import Credentials
from ratelimiter.proxy.fd_limit import make_room
from ratelimiter.proxy.process import every_second, spare_collections
from ratelimiter.proxy.proxy import Proxy
from ratelimiter.proxy.settings import ProxySettings
from ratelimiter.proxy.workers import Supervisor, reap_orphans
from ratelimiter.sidecar.judge import LimiterJudge
from ratelimiter.sidecar.logged_caller import NONE, LoggedCaller
from ratelimiter.stores.factory import store_for

if TYPE_CHECKING:
    import socket
    from collections.abc import Callable, Mapping

    from ratelimiter.core.policy import Policy
    from ratelimiter.metrics.proxy_metrics import ProxyMetrics
    from ratelimiter.proxy.exchange_record import ExchangeRecord
    from ratelimiter.proxy.interfaces import ExchangeObserver
    from ratelimiter.proxy.pool import Target


class _Plan(NamedTuple):
    """The settings of every worker."""

    policy: Policy
    settings: Mapping[str, Any]  # of which the policy was made
    file: str | os.PathLike[str] | None  # that the policy was read from
    target: Target
    bounds: ProxySettings
    families: tuple[str, ...]
    via: bytes
    listener_tls: Credentials | None
    upstream_tls: Credentials | None
    admin: socket.socket | None
    operator: socket.socket | None
    tokens: Tokens | None  # of operators; None without a listener for them
    access_log: AccessLog | None
    logged_caller: str = NONE  # the name of a caller in the log


def run(
    *,
    upstream: str,
    listen: str = "127.0.0.1:8080",
    admin: str | None = "127.0.0.1:9090",
    workers: int = 1,
    tls_cert: str | None = None,
    tls_key: str | None = None,
    tls_client_ca: str | None = None,
    upstream_ca: str | None = None,
    upstream_cert: str | None = None,
    upstream_key: str | None = None,
    access_log: str | None = None,
    operator: str | None = None,
    operator_token_file: str | None = None,
    log_format: str = diagnostics.TEXT,
    **settings: Any,
) -> int:
    """Serve as a sidecar until SIGTERM.

    Args:
        upstream: URL of the service behind, or `unix:PATH`.
        listen: `HOST:PORT`, all addresses of a host name, or `unix:PATH`; port 0 takes a free one.
        admin: `HOST:PORT` for health, readiness and metrics; `none` or None for no such listener.
        workers: processes that share the port.
        tls_cert: file of a certificate; without one the listener speaks plain HTTP.
        tls_key: file of its key; without one it is in the same file.
        tls_client_ca: file of the authorities that vouch for clients; then only these are served.
        upstream_ca: file of the authorities that vouch for the upstream; by default those of the system.
        upstream_cert: file of the certificate that is shown to the upstream; none by default.
        upstream_key: file of its key; without one it is in the same file.
        access_log: file to which a JSON line for each request is appended, or `-` for standard output; by default the
            value of the policy file.
        operator: `HOST:PORT` for the operator's commands; none by default.
        operator_token_file: file of tokens for `ratelimiter.admin.operator_tokens`.
        log_format: of the diagnostics on standard error, `text` or `json`.
        settings: keyword arguments of `ratelimiter.config.loader.build`.

    Returns:
        The exit status of the process.

    Raises:
        ConfigError: an argument or the policy file cannot be used.
    """
    problems = Problems()
    with problems.noted():
        policy, section, file, _ = configuration.build_loaded(**settings)
    with problems.noted():
        target = parse_upstream(upstream)
    with problems.noted():
        places = parse_listen(listen)
    with problems.noted():
        tls = _listener_tls(tls_cert, tls_key, tls_client_ca)
    with problems.noted():
        to_upstream = _upstream_tls(upstream, upstream_ca, upstream_cert, upstream_key)
    problems.raise_any()
    of_proxy = dict(section)
    families = tuple(of_proxy.pop("forwarded", ("x-forwarded",)))
    via = of_proxy.pop("via", "").encode()
    refusals_per_s = of_proxy.pop("access_log_refusals", REFUSALS_PER_S)
    place = of_proxy.pop("access_log", None) if access_log is None else access_log
    caller = of_proxy.pop("access_log_caller", NONE)
    written = None if place is None else AccessLog(place, refusals_per_s=refusals_per_s)
    tokens = _tokens(policy, operator, operator_token_file, workers)
    with ExitStack() as stack:  # closes what was bound if something else cannot be
        watched = operated = None
        if admin is not None and admin != "none":
            watched = stack.enter_context(listener.bind(parse_listen(admin, "--admin"), "--admin"))
        if operator is not None:
            operated = stack.enter_context(listener.bind(parse_listen(operator, "--operator"), "--operator"))
        sockets = listener.bind_all(places, workers)
        stack.pop_all()
    bounds = make_room(ProxySettings(**of_proxy))
    plan = _Plan(
        policy,
        settings,
        file,
        target,
        bounds,
        families,
        via,
        tls,
        to_upstream,
        watched,
        operated,
        tokens,
        written,
        caller,
    )
    scheme = "http" if tls is None else "https"
    told = f", admin http://{listener.name_of(watched)}" if watched is not None else ""
    told += f", operator http://{listener.name_of(operated)}" if operated is not None else ""
    print(f"{scheme}://{listener.name_of(sockets[0][0])} -> {upstream.rpartition('@')[2]}{told}")
    print(*summary(policy, file), sep="\n", flush=True)
    diagnostics.start(log_format)
    if workers == 1:
        lifecycle.run(_serve(plan, sockets[0]))
        return 0
    return _run_several(plan, sockets)


def _listener_tls(cert: str | None, key: str | None, client_ca: str | None) -> Credentials | None:
    """Return the TLS of the listener; None for plain HTTP.

    Raises:
        ConfigError: a file is missing or cannot be used.
    """
    if cert is None:
        for flag, value in (("--tls-key", key), ("--tls-client-ca", client_ca)):
            if value is not None:
                msg = f"{flag}: needs --tls-cert, the certificate of the listener"
                raise ConfigError(msg)
        return None
    files = (cert, key, client_ca)
    return Credentials("listener", files, lambda: certificates.listener_context(cert, key, client_ca), cert)


def _upstream_tls(upstream: str, ca: str | None, cert: str | None, key: str | None) -> Credentials | None:
    """Return the TLS to the upstream; None if it is plain HTTP, or if no file says anything of it.

    Raises:
        ConfigError: a file cannot be used, or the upstream does not speak TLS.
    """
    given = [flag for flag, value in (("-ca", ca), ("-cert", cert), ("-key", key)) if value is not None]
    if not given:
        return None
    if not upstream.lower().startswith("https:"):
        msg = f"--upstream{given[0]}: needs an upstream with https://"
        raise ConfigError(msg)
    if key is not None and cert is None:
        msg = "--upstream-key: needs --upstream-cert, the certificate of the proxy"
        raise ConfigError(msg)
    return Credentials("upstream", (ca, cert, key), lambda: certificates.upstream_context(ca, cert, key), cert)


def _tokens(policy: Policy, operator: str | None, token_file: str | None, workers: int) -> Tokens | None:
    """Return the tokens of the operator listener; None if there is no such listener.

    Raises:
        ConfigError: a setting of the listener is missing.
    """
    if operator is None and token_file is None:
        return None
    if operator is None or token_file is None:
        missing = "--operator" if operator is None else "--operator-token-file"
        msg = f"{missing}: is missing; an operator listener needs an address and a file of tokens"
        raise ConfigError(msg)
    if workers > 1 and policy.store.lower().startswith("memory:"):
        msg = "--operator: memory:// is counted by each worker alone, and only one would obey; write a redis:// URL"
        raise ConfigError(msg)
    return Tokens(token_file)


def _run_several(plan: _Plan, sockets: list[list[socket.socket]]) -> int:
    def work(index: int, beat: Callable[[], None]) -> None:
        for sock in chain(*sockets[:index], *sockets[index + 1 :]):
            sock.close()
        lifecycle.run(_serve(plan, sockets[index], beat))

    def stopping() -> None:
        for sock in chain(*sockets):  # else connections would wait in the queues of workers that have gone
            sock.close()

    def ended(pid: int) -> None:
        from ratelimiter.metrics.prometheus import forget_process  # noqa: PLC0415  # see counting_directory

        forget_process(pid)

    with counting_directory():
        within_s = lifecycle.stop_within_s(plan.bounds) + 1  # a worker ends itself before
        return Supervisor(work, len(sockets), stopping=stopping, ended=ended, stop_within_s=within_s).run()


async def _serve(  # noqa: PLR0915  # what is put together is much, and none of it branches
    plan: _Plan, sockets: list[socket.socket], beat: Callable[[], None] | None = None
) -> None:
    from ratelimiter.admin.console.recorder import ConsoleRecorder  # noqa: PLC0415
    from ratelimiter.admin.serving import Shown, operator_commands, serve_operator, serve_shown  # noqa: PLC0415  # brings uvicorn along
    from ratelimiter.config.reload import Reloader  # noqa: PLC0415
    from ratelimiter.engine.fan_out import FanOut  # noqa: PLC0415
    from ratelimiter.engine.observer import NULL_OBSERVER  # noqa: PLC0415
    from ratelimiter.metrics.heavy_hitters import Top  # noqa: PLC0415
    from ratelimiter.metrics.limiter_metrics import Metrics  # noqa: PLC0415
    from ratelimiter.metrics.prometheus import process_registry  # noqa: PLC0415  # see counting_directory
    from ratelimiter.metrics.proxy_metrics import ProxyMetrics  # noqa: PLC0415

    registry = process_registry()
    metrics, top, recorder = Metrics(registry), Top(), ConsoleRecorder()
    # Without an admin listener nothing is counted: that is a fifth of the cost of a request.
    observers = NULL_OBSERVER if plan.admin is None else FanOut(metrics, top, recorder)
    gate = LimiterJudge(plan.policy, store_for(plan.policy, observers), observer=observers)
    proxy = Proxy(
        plan.target,
        gate,
        gate,
        plan.bounds,
        asyncio.get_running_loop(),
        trusts=gate.trusts,
        families=plan.families,
        via=plan.via,
    )
    credentials = [each for each in (plan.listener_tls, plan.upstream_tls) if each is not None]
    counted = None if plan.admin is None else ProxyMetrics(proxy, registry, credentials)
    proxy.observer = _exchanges_told(plan.access_log, counted)

    def use_upstream_tls() -> None:
        if plan.upstream_tls is not None:
            proxy.pool.tls = plan.upstream_tls.current

    use_upstream_tls()
    if plan.access_log is not None and plan.logged_caller != NONE:
        plan.access_log.caller = LoggedCaller(plan.logged_caller, lambda: gate.policy)
    serving = lifecycle.Server(proxy, sockets, None if plan.listener_tls is None else plan.listener_tls.context)

    standing = OverrideWatcher(gate.limiter)

    async with AsyncExitStack() as stack:
        stack.push_async_callback(gate.limiter.close)
        reloader = None
        if plan.file is not None:
            reloader = Reloader(
                plan.file, plan.policy, gate.swap, load=lambda: configuration.build(**plan.settings), observer=observers
            )
            reloading = asyncio.create_task(reloader.run())
            stack.callback(reloading.cancel)
        standing.start()
        stack.push_async_callback(standing.stop)
        operator = None
        if plan.operator is not None and plan.tokens is not None:
            operator = operator_commands(plan.tokens, gate.limiter, standing)
            await stack.enter_async_context(serve_operator(plan.operator, operator))
        if plan.admin is not None:
            shown = Shown(metrics, top, recorder, plan.file, operator, plan.tokens)
            await stack.enter_async_context(serve_shown(plan.admin, gate.limiter, lambda: serving.ready, shown))
        if plan.access_log is not None:
            stack.callback(plan.access_log.close)
        if credentials:
            stack.callback(asyncio.create_task(certificates.watch(credentials, use_upstream_tls)).cancel)
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
            for each in credentials:
                each.reload()
            use_upstream_tls()

        await lifecycle.until_stopped(serving, on_hangup=hang_up)


class _Exchanges:
    """Passes each exchange on to the access log and the metrics."""

    def __init__(self, written: AccessLog, counted: ProxyMetrics) -> None:
        self._written = written
        self._counted = counted

    def exchanged(self, exchange: ExchangeRecord) -> None:
        self._counted.exchanged(exchange)
        self._written.exchanged(exchange)


def _exchanges_told(written: AccessLog | None, counted: ProxyMetrics | None) -> ExchangeObserver | None:
    """Return the observer of a proxy's exchanges; None if neither log nor metrics want them."""
    return _Exchanges(written, counted) if written is not None and counted is not None else written or counted
