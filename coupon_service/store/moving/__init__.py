"""Moves a shard as a whole from one PostgreSQL server, or database, to another."""
