"""What a process writes down: diagnostics and the access log, off the event loop and bounded."""
