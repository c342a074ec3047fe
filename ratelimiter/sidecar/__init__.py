"""The proxy and the engine together: `ratelimiter proxy`."""
