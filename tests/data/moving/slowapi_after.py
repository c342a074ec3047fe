from fastapi import FastAPI, Request

from ratelimiter.fastapi import RateLimits

limits = RateLimits()
app = FastAPI(lifespan=limits.lifespan)


def user(request: Request):
    return request.headers.get("x-user")  # or None: the client's address


@app.get("/reports", dependencies=[limits("3/minute", by=user)])
def reports():
    return {"reports": []}


@app.get("/search", dependencies=[limits("4/minute", shared="search", by=user)])
def search():
    return {"found": []}


@app.get("/suggest", dependencies=[limits("4/minute", shared="search", by=user)])
def suggest():
    return {"found": []}


@app.get("/health")
def health():
    return "ok"
