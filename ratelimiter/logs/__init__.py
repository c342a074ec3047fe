"""Logs of a process: diagnostics and the access log, written off the event loop, in bounded memory."""
