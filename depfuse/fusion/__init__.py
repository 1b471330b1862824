"""Fuse parents, stage after stage."""
