"""A strict, streaming HTTP/1.1 reverse proxy. It does not know by what its judge decides."""
