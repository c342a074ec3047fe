"""An example of the Trace API: companies by domain, at a credit each, and lists that belong to a user."""

from __future__ import annotations

from fastapi import FastAPI, Query, Request, Response

from ratelimiter import DialectError
from ratelimiter.asgi.error_handlers import install_error_handlers

KNOWN = frozenset({"acme.example", "globex.example", "initech.example"})
COST = "X-RateLimit-Cost"


def api() -> FastAPI:
    """The application, without its limiter. Each answer says in a header what it cost."""
    app = FastAPI()
    install_error_handlers(app, dialect="trace")

    @app.get("/v1/companies/{domain}")
    async def company(domain: str, response: Response, request: Request) -> dict[str, str]:
        if domain not in KNOWN:
            raise DialectError("company_not_found", resource=domain, headers={COST: "0"})
        response.headers[COST] = "1"
        return {"domain": domain, "for": request.headers.get("x-auth-principal", "")}

    @app.get("/v1/search")
    async def search(response: Response, limit: int = Query(default=10, ge=1, le=50)) -> dict[str, list[str]]:
        response.headers[COST] = str(limit)
        return {"companies": [f"company-{n}.example" for n in range(limit)]}

    @app.get("/v1/lists")
    async def lists(response: Response) -> dict[str, list[str]]:
        response.headers[COST] = "0"
        return {"lists": []}

    @app.get("/v1/me")
    async def me(response: Response, request: Request) -> dict[str, str]:
        """What only the application knows: that a key's user has not verified an address, or has no organisation."""
        principal = request.headers.get("x-auth-principal", "")
        free = {COST: "0"}
        if principal.startswith("unverified"):
            raise DialectError("email_verification_required", headers=free)
        if principal.startswith("orphan"):
            raise DialectError("key_missing_org_association", headers=free)
        response.headers[COST] = "0"
        return {"for": principal, "plan": request.headers.get("x-auth-plan", "")}

    @app.get("/v1/broken")
    async def broken() -> None:
        msg = "postgres://admin:hunter2@db"
        raise RuntimeError(msg)

    return app
