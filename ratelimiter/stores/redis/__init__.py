"""The Redis store: connection, group commit, script, cluster and Sentinel."""
