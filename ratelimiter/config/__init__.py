"""The policy file, arguments and environment, read into a `Policy`."""
