"""An example API behind the limiter, to try with curl."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import uvicorn
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.responses import JSONResponse
from starlette.routing import Route

from ratelimiter.asgi.error_handlers import install_error_handlers
from ratelimiter.asgi.middleware import RateLimitMiddleware
from ratelimiter.config import loader as configuration
from ratelimiter.core.headers import exact_s
from ratelimiter.errors import ConfigError

if TYPE_CHECKING:
    from starlette.requests import Request

    from ratelimiter.core.policy import Policy

ITEMS = {"1": "anvil", "2": "bolt", "3": "cog"}


async def items(_: Request) -> JSONResponse:
    """List the items."""
    return JSONResponse({"items": [{"id": key, "name": name} for key, name in ITEMS.items()]})


async def item(request: Request) -> JSONResponse:
    """Show one item, or the dialect's 404."""
    key = request.path_params["id"]
    if key not in ITEMS:
        raise HTTPException(404)
    return JSONResponse({"id": key, "name": ITEMS[key]})


def build_app(policy: Policy) -> Starlette:
    """Make the example API behind *policy*."""
    app = Starlette(routes=[Route("/v1/items", items), Route("/v1/items/{id}", item)])
    app.add_middleware(RateLimitMiddleware, config=policy)
    install_error_handlers(app, dialect=policy.dialect)
    return app


def describe(policy: Policy, url: str) -> str:
    """Return the start message: address, rules, and three commands to try."""
    rules = ", ".join(
        f"{rule.name}: {rule.quota.limit} in {exact_s(rule.quota.window_ms)} s"
        f"{f' with a burst of {rule.burst}' if rule.burst else ''} by {' or '.join(map(str, rule.principal))}"
        for rule in policy.rules
    )
    header = next((s.name for rule in policy.rules for s in rule.principal if s.kind == "header"), "x-api-key")
    as_alice = f"-H '{header.title()}: alice' {url}/v1/items"
    return (
        f"An example API behind the limiter, at {url}"
        f" (store {policy.store.partition('://')[0]}, dialect {policy.dialect})\n"
        f"  {rules}\n"
        "Try:\n"
        f"  curl -i {as_alice}\n"
        f"  for i in $(seq 70); do curl -s -o /dev/null -w '%{{http_code}}\\n' {as_alice}; done | sort | uniq -c\n"
        f"  curl -i -H '{header.title()}: bob' {url}/v1/items/404\n"
    )


def run(*, listen: str = "127.0.0.1:8080", **settings: Any) -> None:
    """Serve the example API until interrupted.

    Args:
        listen: HOST:PORT; port 0 takes a free one.
        settings: arguments of `ratelimiter.config.loader.build`; without a limit, 60 requests a minute by API key.

    Raises:
        ConfigError: an argument or the policy file cannot be used.
    """
    host, separator, port = listen.rpartition(":")
    if not separator or not port.isdigit() or int(port) > 65535:
        msg = f"--listen: {listen!r} is not HOST:PORT, like 127.0.0.1:8080"
        raise ConfigError(msg)
    if not any(settings.get(name) for name in ("limit", "config")):
        settings["limit"] = "60/minute"
        settings["principal"] = settings.get("principal") or ["header:X-API-Key", "client"]
    policy = configuration.build(**settings)
    # The limiter resolves the client's address itself, from the socket's peer.
    config = uvicorn.Config(
        build_app(policy), host=host.strip("[]"), port=int(port), proxy_headers=False, log_level="warning"
    )
    listener = config.bind_socket()
    listener.listen(config.backlog)  # before the address is printed
    bound_host, bound_port = listener.getsockname()[:2]
    shown = f"[{bound_host}]" if ":" in bound_host else bound_host
    print(describe(policy, f"http://{shown}:{bound_port}"), flush=True)
    uvicorn.Server(config).run(sockets=[listener])
