"""Codes by the million: generated or uploaded in committed chunks."""
