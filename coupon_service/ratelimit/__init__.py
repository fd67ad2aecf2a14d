"""How often a caller may call, and how often it may guess codes."""
