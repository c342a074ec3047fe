"""Usage of language models: read from answers and streams, estimated before the call, weighed into units."""
