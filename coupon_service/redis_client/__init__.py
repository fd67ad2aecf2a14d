"""The one way to Redis: pipelines of commands with a time limit, for leases and limits."""
