"""Stores of tallies: in memory and in Redis, and what stands in front of them."""
