"""Load, decide, apply: the one transaction in which codes change."""
