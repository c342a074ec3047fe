"""Access logs against a policy: read the lines, rebuild the requests, judge them with the core on the log's clock."""
