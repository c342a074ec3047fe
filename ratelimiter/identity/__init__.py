"""Authentication of callers: API keys, signed tokens (JWT), and the keys of identity providers (JWKS)."""
