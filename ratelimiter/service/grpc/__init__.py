"""HTTP/2 (RFC 9113), HPACK (RFC 7541) and gRPC, as far as a server of small unary calls needs them; knows no limits."""
