"""Attempts to bring back what was removed, one idea per file."""
