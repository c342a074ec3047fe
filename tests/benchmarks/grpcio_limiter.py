"""A rate limit service for Envoy that answers OK to everything, by grpcio: what one in Python costs at the least.

python -m tests.benchmarks.grpcio_limiter PORT
"""

from __future__ import annotations

import asyncio
import sys

import grpc

OVERALL_OK = b"\x08\x01"  # field 1, overall_code, is 1


async def should_rate_limit(request: bytes, context: grpc.aio.ServicerContext) -> bytes:
    """Envoy's one question, unread."""
    return OVERALL_OK


async def main() -> None:
    """Serve until killed."""
    server = grpc.aio.server()
    method = grpc.unary_unary_rpc_method_handler(should_rate_limit)
    name = "envoy.service.ratelimit.v3.RateLimitService"
    server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(name, {"ShouldRateLimit": method}),))
    server.add_insecure_port(f"127.0.0.1:{sys.argv[1]}")
    await server.start()
    await server.wait_for_termination()


if __name__ == "__main__":
    asyncio.run(main())
