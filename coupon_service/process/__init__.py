"""The supervisor and its worker processes: pid file, scheduling, shutdown."""
