"""The engine that every edge calls: a request in, a judgement out."""
