"""A strict, streaming HTTP/1.1 reverse proxy. It does not know what it asks its judge for."""
