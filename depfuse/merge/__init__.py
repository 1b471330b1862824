"""Merging: one network from many aligned ones."""

from depfuse.merge.average import average
from depfuse.merge.refit import refit

__all__ = ["average", "refit"]
