"""Strict rate limiting for APIs."""

from ratelimiter.errors import ConfigError, RateLimiterError, StoreError
from ratelimiter.middleware import RateLimitMiddleware

__version__ = "0.1.0"

__all__ = ["ConfigError", "RateLimiterError", "RateLimitMiddleware", "StoreError"]
