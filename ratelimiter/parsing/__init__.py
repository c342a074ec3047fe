"""Readers of what people write: strict YAML, JSON Schema, units, environment, principals."""
