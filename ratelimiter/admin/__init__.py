"""Health, policy and operator's commands."""
