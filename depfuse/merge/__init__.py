"""Merging: one network from many aligned ones."""

from depfuse.merge.average import average
from depfuse.merge.refit import refit_head, refit_layers

__all__ = ["average", "refit_head", "refit_layers"]
