"""Merging: one network from many aligned ones."""

from depfuse.merge.average import average
from depfuse.merge.fisher import fisher_information
from depfuse.merge.polish import Polished, polish
from depfuse.merge.refit import Hints, refit_head, refit_layers
from depfuse.merge.shares import Shares

__all__ = ["Hints", "Polished", "Shares", "average", "fisher_information", "polish", "refit_head", "refit_layers"]
