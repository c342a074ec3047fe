"""Error bodies and headers of refusals as data: one dialect per documented API."""
