"""Strict rate limiting for APIs."""

from ratelimiter.asgi.middleware import RateLimitMiddleware
from ratelimiter.core.caller import Caller
from ratelimiter.dialects.error import DialectError
from ratelimiter.distribution import warn_of_namesake
from ratelimiter.errors import ConfigError, RateLimiterError, StoreError

__version__ = "0.1.0"

__all__ = [  # noqa: RUF022  # as a reader sorts, without regard to case
    "Caller",
    "ConfigError",
    "DialectError",
    "RateLimiterError",
    "RateLimitMiddleware",
    "StoreError",
]

warn_of_namesake()
