"""Archives of the ledger: made of the events of closed books, which are then deleted, and restored.

By the owner of the tables, on connections of its own, while the service goes on.
"""
