"""Reads that change nothing: single rows, lists and their pages."""
