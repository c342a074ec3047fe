"""Who a caller is: keys that were given out, tokens that an identity provider signed, and the keys it signs with."""
