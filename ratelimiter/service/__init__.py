"""The decision service, `ratelimiter serve`: the engine behind a proxy that is already there."""
