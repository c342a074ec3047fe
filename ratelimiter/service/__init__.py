"""The decision service, `ratelimiter serve`: the engine for those who already have a proxy."""
