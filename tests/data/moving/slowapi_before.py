from fastapi import FastAPI, Request
from slowapi import Limiter, _rate_limit_exceeded_handler
from slowapi.errors import RateLimitExceeded

limiter = Limiter(key_func=lambda request: request.headers.get("x-user") or request.client.host)
app = FastAPI()
app.state.limiter = limiter
app.add_exception_handler(RateLimitExceeded, _rate_limit_exceeded_handler)


@app.get("/reports")
@limiter.limit("3/minute")
def reports(request: Request):
    return {"reports": []}


@app.get("/search")
@limiter.shared_limit("4/minute", scope="search")
def search(request: Request):
    return {"found": []}


@app.get("/suggest")
@limiter.shared_limit("4/minute", scope="search")
def suggest(request: Request):
    return {"found": []}


@app.get("/health")
def health():
    return "ok"
