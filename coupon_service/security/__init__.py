"""Who callers are and how the line is protected: bearer tokens and TLS."""
