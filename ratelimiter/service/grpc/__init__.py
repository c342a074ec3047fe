"""As much of HTTP/2 (RFC 9113), HPACK (RFC 7541) and gRPC as a server of small unary calls needs; it knows no limits."""
