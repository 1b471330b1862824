"""Merging: one network from many aligned ones."""

from depfuse.merge.average import average

__all__ = ["average"]
