"""Data, metrics and the reference that a number needs, one benchmark per module."""
