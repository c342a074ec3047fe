"""Prometheus metrics and heavy hitters."""
