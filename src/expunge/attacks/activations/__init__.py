"""Attacks that read or change what a model computes on the way to its answer, one idea per file."""
