"""Calls to the shard of their business. With one shard nothing of this is used."""
