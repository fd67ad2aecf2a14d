"""Processes: a supervisor, its workers, and where they run."""
