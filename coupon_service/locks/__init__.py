"""The life of a lock: acquired, extended, released, expired."""
