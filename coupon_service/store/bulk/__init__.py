"""Codes by the million: generated, uploaded and exported, in turns that give way to others."""
